package pause

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
)

const (
	opFreezeCheckpoint = podapi.OpFreeze
	opResume           = podapi.OpResume

	clockMonotonic = unix.CLOCK_MONOTONIC
	clockBoottime  = unix.CLOCK_BOOTTIME
)

func clockNS(id int32) int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(id, &ts) // these clocks always exist
	return ts.Nano()
}

// snapshot is the state of all processes of a pod at an epoch.
type snapshot struct {
	epoch    job.Epoch
	procs    []*captured
	descs    []image.Description
	objects  []*object
	record   *stream.Record // nil without TCP
	clock    image.Clock
	sysv     *proc.SysV  // nil: not ours to look at
	segments map[int]int // objects by id of segment
	whole    bool        // everything was captured
	reader   *image.Reader

	later   *background // copying after the stall; nil for none
	copies  *errgroup.Group
	copyCtx context.Context //nolint:containedctx // of copies
	cancel  context.CancelFunc

	mu      sync.Mutex // guards users and dropped
	users   int        // Writes under way
	dropped func()     // frees the memory when the last user ends
}

func newSnapshot(epoch job.Epoch) *snapshot { return &snapshot{epoch: epoch} }

// startCopies prepares the group of memory copies. They outlive the step that
// starts them, not its values.
func (s *snapshot) startCopies(ctx context.Context) {
	var cctx context.Context
	cctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.copies, s.copyCtx = errgroup.WithContext(cctx)
}

// waitCopies waits for the memory copies, once.
func (s *snapshot) waitCopies() error {
	if s.copies == nil {
		return nil
	}
	err := s.copies.Wait()
	s.copies = nil
	s.cancel()
	if err != nil {
		return fmt.Errorf("copy memory: %w", err)
	}
	return nil
}

// release gives the buffers to the next snapshot, at once or when a Write that
// still reads them ends.
func (s *snapshot) release(g *group) {
	if s.copies != nil {
		s.cancel()
		_ = s.waitCopies() // what is dropped need not be whole
	}
	s.endForks()
	free := func() {
		for _, c := range s.procs {
			if c.pages == nil {
				continue
			}
			if m, ok := c.pages.(*memory); ok {
				if m.scan == 0 {
					g.giveBuffer(m.buf)
				} else {
					g.giveCopy(m)
				}
				continue
			}
			c.pages.free()
		}
		for _, o := range s.objects {
			if m, ok := o.pages.(*memory); ok {
				g.giveBuffer(m.buf)
			}
		}
		if s.reader != nil {
			_ = s.reader.Close() // read only
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users > 0 {
		s.dropped = free
		return
	}
	free()
}

// use keeps the memory until the returned function is called.
func (s *snapshot) use() func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.users--
		if s.users == 0 && s.dropped != nil {
			s.dropped()
			s.dropped = nil
		}
	}
}

// describe turns the inventory of descriptors into the vocabulary of images.
func (s *snapshot) describe(g *group, t *fileTable) {
	s.descs = make([]image.Description, len(t.descs))
	for i, d := range t.descs {
		s.descs[i] = d.Description
	}
	inner := map[int]int{}
	for _, c := range s.procs {
		inner[c.pid] = c.image.PID
	}
	for _, c := range s.procs {
		if q := g.procs[c.pid]; q != nil {
			c.image.PPID = inner[q.parent]
		}
		c.image.FDs, c.image.Locks = nil, t.processLocks(c.pid)
		for _, o := range t.files {
			if o.p.pid == c.pid {
				c.image.FDs = append(c.image.FDs, image.FD{
					Num: o.num, CloExec: o.info.Flags&unix.O_CLOEXEC != 0, Desc: o.desc,
				})
			}
		}
		for i := range c.image.PTimers {
			c.image.PTimers[i].TID = innerTID(g.procs[c.pid], c, c.image.PTimers[i].TID)
		}
	}
	for i := range s.descs {
		if s.descs[i].Kind == image.FDTCP {
			s.descs[i].TCP = &image.TCPEnd{Cookie: cookieOf(t.descs[i].id.name)}
		}
	}
}

// innerTID translates a thread id of ours to the process' own.
func innerTID(q *process, c *captured, tid int) int {
	if q == nil || q.frozen == nil || tid == 0 {
		return tid
	}
	for i, th := range q.frozen.Threads {
		if th.TID == tid && i < len(c.image.Threads) {
			return c.image.Threads[i].TID
		}
	}
	return tid
}

func cookieOf(name string) uint64 {
	var n uint64
	_, _ = fmt.Sscanf(name, "%d", &n) // written by identifySocket
	return n
}

// describeStreams fills the TCP ends in, once they are trimmed.
func (s *snapshot) describeStreams() {
	byCookie := map[uint64]stream.End{}
	for _, e := range s.record.Ends {
		byCookie[e.TCP.Cookie] = e
	}
	for i := range s.descs {
		d := &s.descs[i]
		if d.TCP == nil {
			continue
		}
		if e, ok := byCookie[d.TCP.Cookie]; ok {
			*d = e.Description()
		}
	}
}

// manifest returns the image's manifest, without what Writer.Commit sets.
func (s *snapshot) manifest(cfg Config, x Extra, files *identities) (*image.Manifest, error) {
	host, err := image.LocalHost()
	if err != nil {
		return nil, err
	}
	m := &image.Manifest{
		Node: cfg.Node, Ranks: map[job.Rank]int{}, Descriptions: slices.Clone(s.descs),
		Stdio: x.Stdio, PMI: x.PMI, Host: host, Clock: s.clock,
	}
	for _, o := range s.objects {
		m.Objects = append(m.Objects, o.Object)
	}
	m.SysV = s.imageSysV()
	for _, c := range s.procs {
		im := c.image
		if im.Exe, im.Maps, err = files.identifyFiles(c); err != nil {
			return nil, fmt.Errorf("rank %d: %w", c.rank, err)
		}
		m.Processes = append(m.Processes, im)
		if im.PPID == 0 {
			m.Ranks[c.rank] = im.PID
		}
	}
	return m, nil
}

// adopted builds the snapshot of a pod that was rebuilt from r.
func adopted(g *group, r *image.Reader, rec *stream.Record) (*snapshot, error) {
	m := r.Manifest()
	s := &snapshot{epoch: m.Epoch, descs: slices.Clone(m.Descriptions), record: rec, clock: m.Clock, whole: true, reader: r}
	pids, err := g.innerPIDs()
	if err != nil {
		return nil, err
	}
	for i := range m.Processes {
		im := m.Processes[i]
		c := &captured{image: im, pid: pids[im.PID], rank: rankOf(m, im.PID)}
		if c.pid == 0 {
			return nil, fmt.Errorf("adopt: process %d of the image is not there any more: %w", im.PID, ErrLost)
		}
		pr, err := r.Process(im.PID)
		if err != nil {
			return nil, err
		}
		c.pages = newStored(pr)
		s.procs = append(s.procs, c)
	}
	for i := range m.Objects {
		pr, err := r.Object(i + 1)
		if err != nil {
			return nil, err
		}
		s.objects = append(s.objects, &object{Object: m.Objects[i], pages: newStored(pr)})
	}
	if err := s.adoptObjects(); err != nil {
		return nil, err
	}
	s.adoptSysV(m.SysV)
	s.adoptStreams()
	return s, nil
}

// adoptObjects learns which files the objects are now, from the rebuilt
// processes.
func (s *snapshot) adoptObjects() error {
	for _, c := range s.procs {
		live, err := proc.Maps(c.pid)
		if err != nil {
			return err
		}
		c.image.Maps = slices.Clone(c.image.Maps)
		for i := range c.image.Maps {
			v := &c.image.Maps[i]
			k := slices.IndexFunc(live, func(m proc.Map) bool { return m.Start <= v.Start && v.Start < m.End })
			if v.Object == 0 || k < 0 {
				continue
			}
			v.File = &image.MappedFile{Path: live[k].Path, Dev: live[k].Dev, Ino: live[k].Ino}
			s.objects[v.Object-1].key = fileKey{live[k].Dev, live[k].Ino}
		}
		for _, fd := range c.image.FDs {
			d := &s.descs[fd.Desc-1]
			if d.Object == 0 || d.File == nil {
				continue
			}
			st, ok := s.isObject(c, fd.Num, d)
			if !ok {
				continue // closed since, or something else by now
			}
			f := *d.File
			f.Dev, f.Ino = st.Dev, st.Ino
			d.File = &f
			s.objects[d.Object-1].key = fileKey{st.Dev, st.Ino}
		}
	}
	return nil
}

// isObject reports whether descriptor num leads to the object of d: the process
// may have run on since it was rebuilt.
func (s *snapshot) isObject(c *captured, num int, d *image.Description) (st unix.Stat_t, ok bool) {
	path := fmt.Sprintf("/proc/%d/fd/%d", c.pid, num)
	if err := unix.Stat(path, &st); err != nil {
		return st, false
	}
	if st.Dev == d.File.Dev && st.Ino == d.File.Ino {
		return st, true
	}
	o := s.objects[d.Object-1]
	switch o.Kind {
	case image.ObjectMemfd:
		link, err := os.Readlink(path)
		return st, err == nil && strings.HasPrefix(link, "/memfd:")
	case image.ObjectDeleted:
		return st, st.Nlink == 0
	case image.ObjectMapped, image.ObjectShm:
		return st, leads(fmt.Sprintf("/proc/%d/root", c.pid), o.Name, &st)
	}
	return st, false
}

// adoptStreams gives the descriptions the identities that the connections have
// now: rec's ends come in the order of the descriptions.
func (s *snapshot) adoptStreams() {
	if s.record == nil {
		return
	}
	k := 0
	for i := range s.descs {
		if s.descs[i].TCP == nil || k >= len(s.record.Ends) {
			continue
		}
		s.descs[i].TCP = s.record.Ends[k].TCP
		k++
	}
}

// follow notes what the connections are after a rollback: now has the same ends
// as the record, in its order, with their new identities.
func (s *snapshot) follow(now *stream.Record) {
	ends := make(map[uint64]*image.TCPEnd, len(now.Ends))
	for i, e := range s.record.Ends {
		ends[e.TCP.Cookie] = now.Ends[i].TCP
	}
	for i := range s.descs {
		if t := s.descs[i].TCP; t != nil && ends[t.Cookie] != nil {
			s.descs[i].TCP = ends[t.Cookie]
		}
	}
	s.record = now
}

// rankOf returns the rank whose first process is pid, or that of the process'
// ancestor.
func rankOf(m *image.Manifest, pid int) job.Rank {
	for pid != 0 {
		for rank, first := range m.Ranks {
			if first == pid {
				return rank
			}
		}
		im := m.Process(pid)
		if im == nil {
			break
		}
		pid = im.PPID
	}
	return -1
}
