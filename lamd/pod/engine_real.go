package pod

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/migrate"
	"github.com/lampause/lampause/pause"
)

// liveEngine is the engine made of pause, migrate and internal/stream. It is
// used by one goroutine at a time, except write.
type liveEngine struct {
	pod     *pause.Pod
	streams *stream.Streams
	images  *image.JobDir
	index   job.PodIndex
	files   string
	log     zerolog.Logger
	seed    func(ctx context.Context) (seedProcess, error)

	epoch   job.Epoch   // of the open checkpoint
	rebuilt *rebuilding // between restore and release
}

var _ engine = (*liveEngine)(nil)

// newEngine returns the engine of a supervisor's pod. It belongs to the
// supervisor's network namespace.
func newEngine(s *supervisor) (engine, error) {
	images, err := image.OpenJob(s.spec.ImageDir, s.spec.Job)
	if err != nil {
		return nil, err
	}
	streams := stream.New(kernel.New(nil), -1, s.log)
	return &liveEngine{
		pod: pause.New(pause.Config{
			Job: s.spec.Job, Pod: s.spec.Placement.Pod, Node: s.spec.Node, Incarnation: s.spec.Incarnation,
			Streams: streams, Files: s.spec.Spec.Files, Log: s.log,
		}),
		streams: streams, images: images, index: s.spec.Placement.Pod, files: s.spec.Spec.Files, log: s.log, seed: s.startSeed,
	}, nil
}

// setRanks tells pause who the ranks are. Ranks that have ended are not part
// of a checkpoint; the supervisor remembers how they ended.
func (e *liveEngine) setRanks(ranks []member) error {
	var list []pause.Rank
	var given []pause.External
	for _, m := range ranks {
		if m.outer == 0 {
			continue
		}
		list = append(list, pause.Rank{Rank: m.rank, PID: m.outer})
		for name, f := range m.given {
			var st unix.Stat_t
			if err := unix.Fstat(fdOf(f), &st); err != nil {
				return fmt.Errorf("%s of rank %d: %w", name, m.rank, err)
			}
			given = append(given, pause.External{Name: name, Rank: m.rank, Dev: st.Dev, Ino: st.Ino})
		}
	}
	e.pod.SetRanks(list, given)
	return nil
}

// outcome turns a report of pause into a reply, and its refusals into errRetry
// where that is so.
func outcome(r *pause.Report, err error) (podapi.PhaseReply, error) {
	var out podapi.PhaseReply
	if r != nil {
		out = podapi.PhaseReply{Marks: r.Marks, TimesMS: r.TimesMS, Bytes: r.Bytes, LostRanks: r.LostRanks, Obstacles: r.Obstacles}
	}
	var no *pause.Refusal
	var flow *stream.Refusal
	switch {
	case err == nil:
		return out, nil
	case errors.As(err, &no):
		out.Obstacles = no.Obstacles
		if no.Retry {
			err = errors.Join(err, errRetry)
		}
	case errors.As(err, &flow) && flow.Retry():
		err = errors.Join(err, errRetry)
	}
	return out, err
}

func (e *liveEngine) freeze(ctx context.Context, epoch job.Epoch, ranks []member) (podapi.PhaseReply, error) {
	if err := e.setRanks(ranks); err != nil {
		return podapi.PhaseReply{}, err
	}
	e.epoch = epoch
	return outcome(e.pod.Freeze(ctx, epoch))
}

func (e *liveEngine) captureSend(ctx context.Context) (podapi.PhaseReply, error) {
	return outcome(e.pod.CaptureSend(ctx, e.epoch))
}

func (e *liveEngine) captureRecv(ctx context.Context) (podapi.PhaseReply, error) {
	return outcome(e.pod.CaptureRecv(ctx, e.epoch))
}

func (e *liveEngine) resume(ctx context.Context, peers []podapi.Mark) (podapi.PhaseReply, error) {
	return outcome(e.pod.Resume(ctx, e.epoch, peers))
}

func (e *liveEngine) write(ctx context.Context, epoch job.Epoch, extra *side) (podapi.Written, error) {
	blob, err := extra.encode()
	if err != nil {
		return podapi.Written{}, err
	}
	w, err := e.pod.Write(ctx, epoch, e.images, image.Options{Direct: true}, pause.Extra{Stdio: extra.counts(), PMI: blob})
	if err != nil {
		return podapi.Written{}, err
	}
	return *w, nil
}

func (e *liveEngine) commit(ctx context.Context, epoch job.Epoch) error {
	if err := e.pod.Commit(ctx, epoch); err != nil {
		return err
	}
	// Room for the next copy, now that nobody waits for it. Without, the next
	// stall is longer: no reason to fail.
	if err := e.pod.Prepare(ctx); err != nil {
		e.log.Warn().Err(err).Msg("no room for the next copy yet")
	}
	return nil
}

func (e *liveEngine) abandon(ctx context.Context, epoch job.Epoch) error {
	return e.pod.Abandon(ctx, epoch)
}

func (e *liveEngine) stop(ctx context.Context, ranks []member) (podapi.PhaseReply, error) {
	if e.rebuilt != nil { // restored, not yet released: frozen already
		return podapi.PhaseReply{}, errors.New("the pod was rebuilt for another attempt and is to be replaced")
	}
	if err := e.setRanks(ranks); err != nil {
		return podapi.PhaseReply{}, err
	}
	return outcome(e.pod.Stop(ctx))
}

func (e *liveEngine) rollback(ctx context.Context, q podapi.PhaseRequest) (podapi.PhaseReply, error) {
	return outcome(e.pod.Rollback(ctx, q.Epoch, uint64(q.Incarnation)))
}

func (e *liveEngine) release(ctx context.Context) (podapi.PhaseReply, error) {
	if e.rebuilt == nil {
		return outcome(e.pod.Release(ctx))
	}
	if err := e.rebuilt.release(ctx); err != nil {
		return podapi.PhaseReply{}, err
	}
	e.rebuilt = nil
	return podapi.PhaseReply{}, nil
}

func (e *liveEngine) preflight(ctx context.Context, ranks []member) (podapi.PhaseReply, error) {
	if err := e.setRanks(ranks); err != nil {
		return podapi.PhaseReply{}, err
	}
	return outcome(e.pod.Preflight(ctx))
}

func (e *liveEngine) close() error {
	var err error
	if e.rebuilt != nil {
		err = e.rebuilt.undo()
		e.rebuilt = nil
	}
	return errors.Join(err, e.pod.Close())
}

// maxSeeds bounds the processes that are rebuilt at the same time.
const maxSeeds = 4

func (e *liveEngine) restore(ctx context.Context, q podapi.PhaseRequest, ranks []member) (podapi.PhaseReply, []member, *side, error) {
	var reply podapi.PhaseReply
	if e.rebuilt != nil { // of an attempt that failed elsewhere
		if err := e.rebuilt.undo(); err != nil {
			return reply, nil, nil, err
		}
		e.rebuilt = nil
	}
	b := &rebuilding{engine: e, ranks: ranks}
	x, err := b.build(ctx, q)
	if err != nil {
		return reply, nil, nil, errors.Join(err, b.undo())
	}
	e.rebuilt = b
	reply.TimesMS = map[string]float64{}
	if b.procs != nil {
		reply.Bytes = b.procs.Bytes
		for name, d := range b.procs.Times {
			reply.TimesMS[name] = float64(d.Microseconds()) / 1000
		}
	}
	return reply, b.ranks, x, nil
}

// rebuilding is a pod between restore and release.
type rebuilding struct {
	engine *liveEngine
	ranks  []member
	image  *image.Reader // given to pause at the end of build
	socks  *stream.Restored
	procs  *migrate.Restored
	seeds  []seedProcess
}

// seedProcess is a seed in the pod (package migrate).
type seedProcess struct {
	process
	sock *os.File
}

// build makes sockets, then processes. Nothing runs and nothing is sent when
// it returns.
func (b *rebuilding) build(ctx context.Context, q podapi.PhaseRequest) (*side, error) {
	e := b.engine
	r, err := e.images.Open(q.Epoch, e.index)
	if err != nil {
		return nil, err
	}
	b.image = r
	m := r.Manifest()
	x, err := decodeSide(m.PMI)
	if err != nil {
		return nil, err
	}
	host, err := image.LocalHost()
	if err != nil {
		return nil, err
	}
	rec := stream.FromDescriptions(m.Descriptions)
	if b.socks, err = e.streams.Restore(ctx, rec, nil, uint64(q.Incarnation)); err != nil {
		return nil, err
	}
	if len(m.Ranks) == 0 { // all had ended: there is nothing to build
		return x, nil
	}
	if err := b.buildProcesses(ctx, r, &host); err != nil {
		return nil, err
	}
	if err := e.setRanks(b.ranks); err != nil {
		return nil, err
	}
	if err := e.pod.Adopt(ctx, r, b.socks.Record()); err != nil {
		return nil, err
	}
	b.image = nil // pause's now
	return x, b.endSeeds()
}

// buildProcesses builds the processes of the image, from seeds, and notes the
// ranks' new numbers.
func (b *rebuilding) buildProcesses(ctx context.Context, r *image.Reader, host *image.Host) error {
	e, m := b.engine, r.Manifest()
	for range min(len(m.Ranks), maxSeeds) {
		s, err := e.seed(ctx)
		if err != nil {
			return fmt.Errorf("seed: %w", err)
		}
		b.seeds = append(b.seeds, s)
	}
	cfg := migrate.Config{
		Log: e.log, Sources: &sources{ranks: b.ranks, manifest: m, socks: b.socks},
		Files: migrate.FilePolicy(e.files), Owner: host,
	}
	for _, s := range b.seeds {
		cfg.Seeds = append(cfg.Seeds, migrate.Seed{PID: s.outer, Sock: s.sock})
	}
	var err error
	if b.procs, err = migrate.Restore(ctx, cfg, r); err != nil {
		return err
	}
	pids := b.procs.PIDs()
	for i := range b.ranks {
		if inner, ok := m.Ranks[b.ranks[i].rank]; ok {
			b.ranks[i].inner, b.ranks[i].outer = inner, pids[inner]
		}
	}
	return nil
}

// endSeeds ends the seeds: the processes are children of pod-init.
func (b *rebuilding) endSeeds() error {
	var errs []error
	for _, s := range b.seeds {
		err := unix.PidfdSendSignal(fdOf(s.pidfd), unix.SIGKILL, nil, 0)
		if errors.Is(err, unix.ESRCH) {
			err = nil
		}
		errs = append(errs, err, s.pidfd.Close(), s.sock.Close())
	}
	b.seeds = nil
	return errors.Join(errs...)
}

// release lets connections, then processes go on.
func (b *rebuilding) release(ctx context.Context) error {
	if err := b.socks.Release(ctx); err != nil {
		return err
	}
	if err := b.socks.Close(); err != nil {
		return err
	}
	if b.procs == nil {
		return b.image.Close()
	}
	return b.procs.Release(ctx)
}

// undo ends what was built.
func (b *rebuilding) undo() error {
	var errs []error
	if b.procs != nil {
		errs = append(errs, b.procs.Kill())
	}
	if b.socks != nil {
		errs = append(errs, b.socks.Close())
	}
	if b.image != nil {
		errs = append(errs, b.image.Close())
	}
	return errors.Join(append(errs, b.endSeeds())...)
}

// sources gives rebuilt processes what comes from outside of the image.
type sources struct {
	ranks    []member
	manifest *image.Manifest
	socks    *stream.Restored
}

// Descriptor implements migrate.Sources.
func (s *sources) Descriptor(_ context.Context, id int, d *image.Description) (int, error) {
	switch d.Kind {
	case image.FDTCP, image.FDListener:
		if d.TCP != nil {
			if fd, ok := s.socks.Socket(d.TCP.Cookie); ok {
				return fd, nil
			}
		}
		return -1, fmt.Errorf("%w: connection without a record", image.ErrMismatch)
	case image.FDExternal:
		r, ok := s.owner(id)
		if !ok {
			return -1, fmt.Errorf("%w: %q is nobody's", image.ErrMismatch, d.External)
		}
		for _, m := range s.ranks {
			if f := m.given[d.External]; m.rank == r && f != nil {
				return fdOf(f), nil
			}
		}
		return -1, fmt.Errorf("%w: rank %d has no %q", image.ErrMismatch, r, d.External)
	}
	return -1, fmt.Errorf("%w: descriptor of kind %s", image.ErrMismatch, d.Kind)
}

// owner returns the rank that a description belongs to: that of the first
// process which has it, or of its ancestor.
func (s *sources) owner(id int) (job.Rank, bool) {
	for i := range s.manifest.Processes {
		p := &s.manifest.Processes[i]
		for _, fd := range p.FDs {
			if fd.Desc == id {
				return s.rankOf(p)
			}
		}
	}
	return 0, false
}

func (s *sources) rankOf(p *image.Process) (job.Rank, bool) {
	for p != nil {
		for r, pid := range s.manifest.Ranks {
			if pid == p.PID {
				return r, true
			}
		}
		p = s.manifest.Process(p.PPID)
	}
	return 0, false
}

// startSeed starts a seed in the pod.
func (s *supervisor) startSeed(ctx context.Context) (seedProcess, error) {
	s.mu.Lock()
	init := s.init
	s.mu.Unlock()
	if init == nil {
		return seedProcess{}, errInitGone
	}
	program, err := migrate.SeedFile()
	if err != nil {
		return seedProcess{}, err
	}
	defer func() { _ = program.Close() }() // the seed has its copy
	ours, theirs, err := migrate.SeedSocket()
	if err != nil {
		return seedProcess{}, err
	}
	defer func() { _ = theirs.Close() }() // the seed has its copy
	p, err := init.start(ctx, procSpec{Path: migrate.SeedPath, Argv: []string{"lam-seed"}, Dir: "/", Umask: defaultUmask}, []*os.File{program, theirs})
	if err != nil {
		return seedProcess{}, errors.Join(err, ours.Close())
	}
	return seedProcess{process: p, sock: ours}, nil
}
