package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// Sources gives the descriptions that belong to the world outside of the
// image: kinds FDExternal, FDTCP, FDListener and FDTTY.
type Sources interface {
	// Descriptor returns a descriptor in the caller's process for description
	// id of the image; it is called once per description, before any process
	// is built. The descriptor stays the Sources', and must stay open until
	// Restore returns.
	Descriptor(ctx context.Context, id int, d *image.Description) (fd int, err error)
}

// FilePolicy says what happens to regular files that the program had open for
// writing.
type FilePolicy string

// The file policies; words of mpirun's --files. Contents that the image has,
// because it was made under FilesSave, are put back under FilesTruncate, too.
const (
	FilesTruncate FilePolicy = "truncate" // offset and length put back
	FilesSeek     FilePolicy = "seek"     // offset put back
	FilesVerify   FilePolicy = "verify"   // refused when length or contents differ
	FilesSave     FilePolicy = "save"     // as FilesTruncate
)

// Config is how to restore.
type Config struct {
	Sys     *kernel.Sys // nil for the plain kernel
	Log     zerolog.Logger
	Seeds   []Seed     // at least one; root processes are dealt round them and built in parallel
	Sources Sources    // nil: external descriptors are refused
	Files   FilePolicy // default FilesTruncate
	Workers int        // goroutines that store pages, per process; default 4
	// Owner is checked against the image's host when it is set: who the
	// processes belong to, on which machine. Nil trusts the caller's own check.
	Owner *image.Host
}

// Restored are the rebuilt processes of a pod, all frozen.
type Restored struct {
	// Times are the parts of Restore: verify, skeleton, layout, fill, state.
	Times map[string]time.Duration
	// Bytes is the memory that was stored in the processes.
	Bytes int64
	// Notes are things that are not as before and do not keep a program from
	// going on, such as a scheduling priority that is no longer permitted.
	Notes []string

	// LeaveStopped, set before Release, leaves the processes stopped as by
	// SIGSTOP: they execute nothing before somebody sends SIGCONT.
	LeaveStopped bool

	sysv    proc.SysV // what Kill removes
	tracers []*proc.Tracer
	procs   []*process
	over    bool
}

// process is one process being rebuilt.
type process struct {
	img   *image.Process
	pages *image.PageReader
	f     *proc.Frozen
	owned []kernel.Range // image's mappings
}

// Restore rebuilds every process of the image, frozen. r is verified first,
// whole; the files that the processes have mapped are compared with those
// there are. The caller keeps r open until Restore returns.
//
// On an error no process is left, and the seeds run on; but their sockets may
// hold a message that nobody took, so they must not be used again.
//
// Expected errors: those of image.Reader.Verify, image.ErrMismatch (files,
// host), *kernel.Error (EEXIST: a pid is taken; EPERM: the seed lacks the
// capability), kernel.ErrGone, those of Sources and of ctx.
func Restore(ctx context.Context, cfg Config, r *image.Reader) (*Restored, error) {
	if cfg.Workers < 1 {
		cfg.Workers = 4
	}
	if cfg.Files == "" {
		cfg.Files = FilesTruncate
	}
	b := &builder{cfg: cfg, r: r, m: r.Manifest(), out: &Restored{Times: map[string]time.Duration{}}}
	if err := b.run(ctx); err != nil {
		return nil, fmt.Errorf("migrate: job %d epoch %d pod %d: %w", b.m.Job, b.m.Epoch, b.m.Pod, err)
	}
	return b.out, nil
}

// builder is the state of one Restore.
type builder struct {
	cfg  Config
	r    *image.Reader
	m    *image.Manifest
	out  *Restored
	root string // the pod's file tree, seen from here

	sysv    proc.SysV        // what was made of Manifest.SysV
	objects []*os.File       // by index of Manifest.Objects
	descs   map[int]*os.File // by description id; nil for those of Sources
	fds     map[int]int      // by description id: our descriptor
	late    sync.Mutex       // guards fds and descs once processes are built: files of /proc come last

	mu sync.Mutex // guards out.Times, out.Bytes, out.Notes, out.procs
}

// timed adds the time since start to part name.
func (b *builder) timed(name string, start time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.out.Times[name] += time.Since(start)
}

// note records what is not as before.
func (b *builder) note(pid int, format string, args ...any) {
	text := fmt.Sprintf("process %d: ", pid) + fmt.Sprintf(format, args...)
	b.cfg.Log.Warn().Int("pid", pid).Msg(text)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.out.Notes = append(b.out.Notes, text)
}

// noteFile records what is not as before with a file.
func (b *builder) noteFile(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.cfg.Log.Warn().Msg(text)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.out.Notes, text) {
		b.out.Notes = append(b.out.Notes, text)
	}
}

func (b *builder) run(ctx context.Context) (err error) {
	if err := b.check(ctx); err != nil {
		return err
	}
	defer b.closeDescriptions()
	if err := b.buildObjects(ctx); err != nil {
		return err
	}
	if err := b.buildDescriptions(ctx); err != nil {
		return err
	}
	if err := b.lockDescriptions(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.out.Kill())
		}
	}()
	defer func() {
		if err != nil {
			err = errors.Join(err, b.undoSysV(ctx))
		}
	}()
	if err := b.buildSysV(ctx); err != nil {
		return err
	}
	groups := b.groups()
	g, gctx := errgroup.WithContext(ctx)
	for i, members := range groups {
		if len(members) == 0 {
			continue
		}
		t := proc.NewTracer(b.cfg.Sys)
		b.out.tracers = append(b.out.tracers, t)
		g.Go(func() error { return b.buildGroup(gctx, t, b.cfg.Seeds[i], members) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return b.finishSysV(ctx)
}

// check is everything that can be known before anything is started.
func (b *builder) check(ctx context.Context) error {
	defer b.timed("verify", time.Now())
	if len(b.cfg.Seeds) == 0 {
		return errors.New("no seed")
	}
	if b.cfg.Owner != nil {
		if err := b.m.Host.Fits(*b.cfg.Owner); err != nil {
			return err
		}
	}
	b.root = fmt.Sprintf("/proc/%d/root", b.cfg.Seeds[0].PID)
	if err := b.m.CheckFiles(b.root); err != nil {
		return err
	}
	if err := b.r.Verify(ctx, b.cfg.Workers); err != nil {
		return err
	}
	return b.checkLocks()
}

// groups deals the process trees round the seeds. A member of a group comes
// after its parent.
func (b *builder) groups() [][]*image.Process {
	groups := make([][]*image.Process, len(b.cfg.Seeds))
	group := map[int]int{}
	roots := 0
	for i := range b.m.Processes {
		p := &b.m.Processes[i]
		if p.Exited != nil {
			continue
		}
		g, ok := group[p.PPID]
		if !ok {
			g = roots % len(groups)
			roots++
		}
		group[p.PID] = g
		groups[g] = append(groups[g], p)
	}
	return groups
}

// buildGroup builds the processes that come from one seed.
func (b *builder) buildGroup(ctx context.Context, t *proc.Tracer, s Seed, members []*image.Process) (err error) {
	seed, err := t.Freeze(ctx, s.PID)
	if err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	defer func() { err = errors.Join(err, seed.Thaw(context.WithoutCancel(ctx))) }()
	start := time.Now()
	procs, err := b.skeleton(ctx, seed, members)
	b.timed("skeleton", start)
	if err != nil {
		return err
	}
	fills, fillCtx := errgroup.WithContext(ctx)
	for _, p := range procs {
		if err = b.layout(ctx, p, s); err != nil {
			err = fmt.Errorf("process %d: %w", p.img.PID, err)
			break
		}
		fills.Go(func() error { return b.fill(fillCtx, p) })
	}
	start = time.Now()
	err = errors.Join(err, fills.Wait())
	b.timed("fill", start)
	if err != nil {
		return err
	}
	start = time.Now()
	defer b.timed("state", start)
	for _, p := range procs {
		if err := b.state(ctx, p, s); err != nil {
			return fmt.Errorf("process %d: %w", p.img.PID, err)
		}
	}
	return nil
}

// add takes a process into the list of what Kill ends and Release lets go.
func (b *builder) add(p *process) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.out.procs = append(b.out.procs, p)
}

// Process returns the frozen process that has the given pid inside the pod, or
// nil. It stays the Restored's: others may read and write it, not thaw it.
func (r *Restored) Process(pid int) *proc.Frozen {
	for _, p := range r.procs {
		if p.img.PID == pid {
			return p.f
		}
	}
	return nil
}

// PIDs returns the pids of the processes as the caller sees them, by their
// pids inside the pod.
func (r *Restored) PIDs() map[int]int {
	out := make(map[int]int, len(r.procs))
	for _, p := range r.procs {
		out[p.img.PID] = p.f.PID
	}
	return out
}

// Release lets all processes go on. It does as much as it can and reports
// those that were killed meanwhile.
//
// Expected errors: kernel.ErrGone.
func (r *Restored) Release(ctx context.Context) error {
	if r.over {
		return nil
	}
	r.over = true
	var err error
	for _, p := range r.procs {
		p.f.LeaveStopped = r.LeaveStopped
		err = errors.Join(err, p.f.Thaw(ctx))
	}
	for _, t := range r.tracers {
		err = errors.Join(err, t.Close())
	}
	return err
}

// Kill ends all processes instead.
//
// Expected errors: those of kill(2).
func (r *Restored) Kill() error {
	if r.over {
		return nil
	}
	r.over = true
	var err error
	if len(r.procs) > 0 {
		err = removeSysV(context.Background(), r.procs[0].f, &r.sysv)
	}
	for i := len(r.procs) - 1; i >= 0; i-- {
		err = errors.Join(err, r.procs[i].f.Kill())
	}
	for _, t := range r.tracers {
		err = errors.Join(err, t.Close())
	}
	return err
}
