package pod

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/pid1"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/migrate"
)

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
	for i := range min(len(m.Ranks), maxSeeds) {
		s, err := e.seed(ctx, m.LastPID()+1+i)
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
		err := unix.PidfdSendSignal(pid1.FD(s.pidfd), unix.SIGKILL, nil, 0)
		if errors.Is(err, unix.ESRCH) {
			err = nil
		}
		errs = append(errs, err, s.pidfd.Close(), s.sock.Close())
	}
	b.seeds = nil
	return errors.Join(errs...)
}

// release lets connections, then processes go on; stopped leaves the processes
// stopped.
func (b *rebuilding) release(ctx context.Context, stopped bool) error {
	if err := b.socks.Release(ctx); err != nil {
		return err
	}
	if err := b.socks.Close(); err != nil {
		return err
	}
	if b.procs == nil {
		return b.image.Close()
	}
	b.procs.LeaveStopped = stopped
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
				return pid1.FD(f), nil
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

// startSeed starts a seed in the pod, with a number above those of the image:
// what ranks start later goes on from there, clear of pod-init's threads.
func (s *supervisor) startSeed(ctx context.Context, pid int) (seedProcess, error) {
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
	p, err := init.start(ctx, pid1.Spec{PID: pid, Path: migrate.SeedPath, Argv: []string{"lam-seed"}, Dir: "/"}, program, theirs)
	if err != nil {
		return seedProcess{}, errors.Join(err, ours.Close())
	}
	return seedProcess{process: p, sock: ours}, nil
}
