package pause

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/job"
)

// captured is the state of one process at an epoch.
type captured struct {
	pid    int // ours
	rank   job.Rank
	image  image.Process
	pages  pages
	times  map[string]float64 // parts of the capture, in ms
	copied int64              // bytes of pages that were copied
	// forced are parts of private mappings that the process may not read.
	forced []kernel.Range

	choice   choice         // of the backing
	apart    []kernel.Range // private memory that a fork does not copy
	child    *proc.Frozen   // the copy that a fork made, to be copied from; nil for none
	later    []kernel.Range // what is copied from child, after the stall
	copyTook time.Duration  // the copy within the stall
}

// obstacles collects reasons why a process cannot be captured.
type obstacles struct {
	list  []string
	retry bool // all of them may pass
}

func (o *obstacles) add(p *process, format string, a ...any) {
	o.list = append(o.list, fmt.Sprintf("rank %d pid %d: ", p.rank, p.pid)+fmt.Sprintf(format, a...))
	o.retry = false
}

// err returns the refusal, or nil without obstacles.
func (o *obstacles) err() error {
	if len(o.list) == 0 {
		return nil
	}
	slices.Sort(o.list)
	return &Refusal{Obstacles: o.list, Retry: o.retry}
}

// captureMaps describes the mappings of p and says which ranges are private
// memory. It finds mappings that cannot be captured.
func captureMaps(p *process, c *captured, obs *obstacles) (private []kernel.Range, maps []proc.Map, err error) {
	if maps, err = p.maps(); err != nil {
		return nil, nil, err
	}
	c.image.Maps, c.forced = make([]image.Mapping, 0, len(maps)), nil
	for i := range maps {
		m := &maps[i]
		v, why := describeMap(m)
		if why != "" {
			obs.add(p, "mapping %x-%x %s: %s", m.Start, m.End, m.Path, why)
			continue
		}
		if isSegment(m.Path) && !privateIPC(p.pid) {
			obs.add(p, "mapping %x-%x %s: System V shared memory outside of an IPC namespace of its own is not supported", m.Start, m.End, m.Path)
		}
		c.image.Maps = append(c.image.Maps, v)
		if isPrivate(&v) {
			private = append(private, m.Range)
			if m.Prot&unix.PROT_READ == 0 {
				c.forced = append(c.forced, m.Range)
			}
		}
	}
	c.apart = apart(c.image.Maps)
	return private, maps, nil
}

// mapKey recognises a mapping from one checkpoint to the next.
type mapKey struct {
	start, ino uint64
	path       string
	shared     bool
}

// maps reads the mappings with their VmFlags. Those walk the page tables, some
// milliseconds per GB, and rarely change: they are asked for only when there is
// a mapping that was not there before. Later madvise(2) calls on a known
// mapping go unnoticed.
func (q *process) maps() ([]proc.Map, error) {
	list, err := q.frozen.Maps()
	if err != nil {
		return nil, err
	}
	if q.stale.Swap(false) {
		q.flags = nil
	}
	known := true
	for i := range list {
		m := &list[i]
		if m.Flags, known = q.flags[mapKey{m.Start, m.Ino, m.Path, m.Shared}]; !known {
			break
		}
	}
	if known {
		return list, nil
	}
	if list, err = q.frozen.SMaps(); err != nil {
		return nil, err
	}
	q.flags = make(map[mapKey][]string, len(list))
	for _, m := range list {
		q.flags[mapKey{m.Start, m.Ino, m.Path, m.Shared}] = m.Flags
	}
	return list, nil
}

// isPrivate reports whether the pages of v are the process' own.
func isPrivate(v *image.Mapping) bool {
	switch v.Kind {
	case image.MapAnon, image.MapPrivate, image.MapHeap, image.MapStack:
		return true
	}
	return false
}

// describeMap turns a line of smaps into its image, or says why it cannot.
func describeMap(m *proc.Map) (v image.Mapping, why string) {
	v = image.Mapping{Start: m.Start, End: m.End, Prot: m.Prot, Shared: m.Shared, Offset: m.Offset}
	for _, f := range m.Flags {
		switch f {
		case "gd":
			v.Grows = true
		case "hg", "nh", "dd", "wf", "dc", "lo":
			v.Advice = append(v.Advice, f)
		}
	}
	file := &image.MappedFile{Path: m.Path, Dev: m.Dev, Ino: m.Ino}
	switch {
	case m.Path == "[vdso]":
		v.Kind = image.MapVDSO
	case m.Path == "[vvar]", m.Path == "[vvar_vclock]":
		v.Kind = image.MapVVAR
	case m.Path == "[vsyscall]":
		v.Kind = image.MapVsyscall
	case m.HasFlag("ht"):
		return v, "pages of hugetlbfs are not supported"
	case m.HasFlag("io") || m.HasFlag("pf"):
		return v, "device memory is not supported"
	case m.HasFlag("um") || m.HasFlag("ui"):
		return v, "memory under userfaultfd is not supported"
	case m.Shared:
		return describeShared(m, v, file)
	case m.Path == "[heap]":
		v.Kind, v.Offset = image.MapHeap, 0
	case m.Path == "[stack]":
		v.Kind, v.Offset = image.MapStack, 0
	case m.Path == "" || strings.HasPrefix(m.Path, "[anon"):
		v.Kind, v.Offset = image.MapAnon, 0
	case strings.HasPrefix(m.Path, "["):
		return v, "this kind of mapping is not supported"
	case m.Gone:
		return v, "private mapping of a deleted file is not supported"
	default:
		v.Kind, v.File = image.MapPrivate, file
	}
	return v, ""
}

// describeShared tells shared mappings apart. Objects get their number later.
func describeShared(m *proc.Map, v image.Mapping, file *image.MappedFile) (image.Mapping, string) {
	switch {
	case strings.HasPrefix(m.Path, "[anon_shmem:") || m.Gone || isSegment(m.Path):
		v.Kind, v.File = image.MapObject, file
	default:
		v.Kind, v.File = image.MapSharedFile, file
	}
	return v, ""
}

// captureProcess describes everything of p except memory, mappings and
// descriptors. The program is made to answer questions that nobody else can.
func captureProcess(ctx context.Context, p *process, c *captured) error {
	f := p.frozen
	st, err := proc.ReadStatus(p.pid)
	if err != nil {
		return err
	}
	stat, err := proc.ReadStat(p.pid)
	if err != nil {
		return err
	}
	im := &c.image
	im.PID, im.PGID, im.SID = st.Inner(), last(st.NSPgid), last(st.NSSid)
	im.Umask, im.Comm, im.Nice = st.Umask, stat.Comm, stat.Nice
	im.Foreground = stat.TTY != 0 && stat.TTYGroup == stat.PGrp
	im.Seccomp, im.NoNewPriv = st.Seccomp, st.NoNewPrivs
	dir := "/proc/" + strconv.Itoa(p.pid)
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return fmt.Errorf("exe: %w", err)
	}
	im.Exe.Path = exe
	if im.Cwd, err = os.Readlink(dir + "/cwd"); err != nil {
		return fmt.Errorf("cwd: %w", err)
	}
	auxv, err := os.ReadFile(filepath.Join(dir, "auxv"))
	if err != nil {
		return fmt.Errorf("auxv: %w", err)
	}
	im.MM = image.MM{
		StartCode: stat.StartCode, EndCode: stat.EndCode, StartData: stat.StartData, EndData: stat.EndData,
		StartBrk: stat.StartBrk, StartStack: stat.StartStack, ArgStart: stat.ArgStart, ArgEnd: stat.ArgEnd,
		EnvStart: stat.EnvStart, EnvEnd: stat.EnvEnd, Auxv: auxv,
	}
	if im.Rlimits, err = rlimits(p.pid); err != nil {
		return err
	}
	if im.Pending, err = f.Pending(f.Leader(), true); err != nil {
		return err
	}
	if im.Zombies, err = zombies(p.pid); err != nil {
		return err
	}
	return captureThreads(ctx, p, im)
}

// zombies lists the children of pid that have ended and were not waited for.
func zombies(pid int) ([]image.Zombie, error) {
	kids, err := proc.Children(pid)
	if err != nil {
		return nil, err
	}
	var out []image.Zombie
	for _, kid := range kids {
		stat, err := proc.ReadStat(kid)
		if err != nil || stat.State != 'Z' {
			continue // it lives, or its parent is not the one that is frozen
		}
		st, err := proc.ReadStatus(kid)
		if err != nil {
			return nil, fmt.Errorf("ended child %d: %w", kid, err)
		}
		out = append(out, image.Zombie{PID: st.Inner(), Status: stat.ExitCode})
	}
	return out, nil
}

func last(ids []int) int {
	if len(ids) == 0 {
		return 0
	}
	return ids[len(ids)-1]
}

// rlimits reads all resource limits of pid.
func rlimits(pid int) ([]image.Rlimit, error) {
	const resources = 16 // RLIM_NLIMITS
	out := make([]image.Rlimit, resources)
	for i := range out {
		var lim unix.Rlimit
		if err := unix.Prlimit(pid, i, nil, &lim); err != nil {
			return nil, fmt.Errorf("prlimit %d: %w", i, err)
		}
		out[i] = image.Rlimit{Resource: i, Cur: lim.Cur, Max: lim.Max}
	}
	return out, nil
}

// captureThreads describes the threads, and with the leader's batch what
// belongs to the whole process.
func captureThreads(ctx context.Context, p *process, im *image.Process) error {
	f := p.frozen
	return f.Tracer().Do(func() error {
		for _, th := range f.Threads {
			b := f.Batch(th)
			ask := askThread(b)
			var shared *sharedAnswers
			if th == f.Leader() {
				timers, err := readTimers(p.pid)
				if err != nil {
					return err
				}
				shared = askShared(b, timers)
			}
			err := b.Run(ctx)
			if err == nil && shared != nil {
				err = shared.read(b, im)
			}
			if err != nil {
				return err
			}
			t, err := captureThread(f, th, b, ask)
			if err != nil {
				return fmt.Errorf("thread %d: %w", th.TID, err)
			}
			im.Threads = append(im.Threads, t)
		}
		return nil
	})
}

// askThread has a thread tell what nobody else knows, and returns where.
func askThread(b *proc.Batch) (at uint64) {
	at = b.Alloc(48) // stack_t, the thread id's address, the signal of the parent's death
	b.Call(unix.SYS_SIGALTSTACK, 0, at)
	b.Call(unix.SYS_PRCTL, unix.PR_GET_TID_ADDRESS, at+32)
	b.Call(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, at+40)
	return at
}

// captureThread describes one thread, which has answered at ask.
func captureThread(f *proc.Frozen, th *proc.Thread, b *proc.Batch, ask uint64) (t image.Thread, err error) {
	st, err := proc.ReadStatus(th.TID)
	if err != nil {
		return t, err
	}
	stat, err := proc.ReadStat(th.TID)
	if err != nil {
		return t, err
	}
	sys := f.Tracer().Sys()
	if t.Policy, t.Priority, err = sys.SchedParam(th.TID); err != nil {
		return t, err
	}
	if t.Affinity, err = sys.Affinity(th.TID); err != nil {
		return t, err
	}
	if t.RobustHead, t.RobustLen, err = sys.GetRobustList(th.TID); err != nil {
		return t, err
	}
	rs, err := f.Rseq(th)
	if err != nil {
		return t, err
	}
	t.RseqAddr, t.RseqLen, t.RseqSig = rs.Addr, rs.Len, rs.Sig
	if t.XState, err = f.XState(th); err != nil {
		return t, err
	}
	if t.Pending, err = f.Pending(th, false); err != nil {
		return t, err
	}
	if th.Signal != 0 {
		t.Pending = append([][]byte{th.SigInfo}, t.Pending...)
	}
	raw, err := b.Read(ask, 48)
	if err != nil {
		return t, err
	}
	le := binary.LittleEndian
	t.AltStack = image.AltStack{SP: le.Uint64(raw), Flags: int32(le.Uint32(raw[8:])), Size: le.Uint64(raw[16:])}
	t.ClearTID, t.PDeathSig = le.Uint64(raw[32:]), int(le.Uint32(raw[40:]))
	// After the injection: it may have moved the thread out of a restartable
	// sequence.
	regs := proc.Normalise(th.Regs)
	t.TID, t.Comm, t.Nice = st.Inner(), stat.Comm, stat.Nice
	t.Regs, t.SigMask = kernel.Words(&regs), th.SigMask
	return t, nil
}

// sharedAnswers is where the leader puts what belongs to the whole process.
type sharedAnswers struct {
	actions, itimers, ptimers uint64
	brk, dumpable             *proc.Call
	overruns                  []*proc.Call
	timers                    []image.PosixTimer
}

// askShared asks for handlers, timers, brk and flags of the process.
func askShared(b *proc.Batch, timers []image.PosixTimer) *sharedAnswers {
	s := &sharedAnswers{timers: timers, overruns: make([]*proc.Call, len(timers))}
	s.actions = b.Alloc(32 * 64)
	s.itimers = b.Alloc(32 * 3)
	s.ptimers = b.Alloc(32 * len(timers))
	s.brk = b.Call(unix.SYS_BRK, 0)
	s.dumpable = b.Call(unix.SYS_PRCTL, unix.PR_GET_DUMPABLE)
	for sig := range uint64(64) {
		b.Call(unix.SYS_RT_SIGACTION, sig+1, 0, s.actions+32*sig, 8)
	}
	for i := range uint64(3) {
		b.Call(unix.SYS_GETITIMER, i, s.itimers+32*i)
	}
	for i := range timers {
		b.Call(unix.SYS_TIMER_GETTIME, uint64(timers[i].ID), s.ptimers+32*uint64(i))
		s.overruns[i] = b.Call(unix.SYS_TIMER_GETOVERRUN, uint64(timers[i].ID))
	}
	return s
}

// read takes the answers over into im.
func (s *sharedAnswers) read(b *proc.Batch, im *image.Process) error {
	timers := s.timers
	raw, err := b.Read(s.actions, int(s.ptimers-s.actions)+32*len(timers))
	if err != nil {
		return err
	}
	im.MM.Brk, im.Dumpable = uint64(s.brk.Ret), int(s.dumpable.Ret)
	w := words(raw)
	im.Actions = make([]image.SigAction, 64)
	for i := range im.Actions {
		a := w[4*i:]
		im.Actions[i] = image.SigAction{Handler: a[0], Flags: a[1], Restorer: a[2], Mask: a[3]}
	}
	w = w[(s.itimers-s.actions)/8:]
	for i := range im.ITimers {
		t := w[4*i:]
		im.ITimers[i] = image.ITimer{IntervalUS: int64(t[0]*1e6 + t[1]), ValueUS: int64(t[2]*1e6 + t[3])}
	}
	w = words(raw[s.ptimers-s.actions:])
	for i := range timers {
		t := w[4*i:]
		timers[i].IntervalNS, timers[i].ValueNS = int64(t[0]*1e9+t[1]), int64(t[2]*1e9+t[3])
		timers[i].Overrun = int(s.overruns[i].Ret)
	}
	im.PTimers = timers
	return nil
}

// words reads little-endian 64-bit words.
func words(raw []byte) []uint64 {
	w := make([]uint64, len(raw)/8)
	for i := range w {
		w[i] = binary.LittleEndian.Uint64(raw[8*i:])
	}
	return w
}
