package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/pid1"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/pmi"
)

// buildTimeout bounds the start of pod-init and of the ranks.
const buildTimeout = 15 * time.Second

// build configures the link, starts pod-init, and starts the ranks unless a
// restore follows. It runs once; repetitions wait for the first one and get
// its result. link is "" when there is no link to configure.
//
// Expected errors: *startError; anything else is the machine's fault.
func (s *supervisor) build(ctx context.Context, link string) error {
	s.mu.Lock()
	first := !s.building
	s.building = true
	s.mu.Unlock()
	if first {
		err := s.buildOnce(ctx, link)
		s.mu.Lock()
		s.buildErr = err
		s.mu.Unlock()
		if err != nil {
			s.log.Error().Err(err).Msg("pod not built")
		}
		close(s.built)
	}
	select {
	case <-s.built:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buildErr
}

func (s *supervisor) buildOnce(ctx context.Context, link string) error {
	if err := s.net.up(link, s.self, s.spec.Book); err != nil {
		return err
	}
	// pod-init lives as long as the pod, not as long as a request.
	conf := initConf{Hostname: s.self.Hostname, TmpDir: s.spec.TmpDir}
	init, err := startInit(context.WithoutCancel(ctx), conf, s.owner, s.logTo)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.init = init
	s.mu.Unlock()
	if s.spec.Restore {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }() // the ranks have their copies
	for _, r := range s.spec.Placement.Ranks {
		if err := s.startRank(ctx, r, null); err != nil {
			prog, _ := s.spec.Spec.Program(r)
			return &startError{rank: r, path: prog.Argv[0], err: err}
		}
	}
	return nil
}

// startError says that a program could not be started.
type startError struct {
	rank job.Rank
	path string
	err  error
}

// Error implements error.
func (e *startError) Error() string { return fmt.Sprintf("rank %d: %v", e.rank, e.err) }

// Unwrap returns the cause.
func (e *startError) Unwrap() error { return e.err }

// exit is the exit code that the command should end with.
func (e *startError) exit() int {
	switch {
	case errors.Is(e.err, fs.ErrNotExist), errors.Is(e.err, unix.ENOTDIR), errors.Is(e.err, unix.EISDIR):
		return job.ExitUsage
	case errors.Is(e.err, fs.ErrPermission), errors.Is(e.err, unix.ENOEXEC):
		return job.ExitPermission
	}
	return job.ExitInternal
}

// startRank starts the program of one rank.
func (s *supervisor) startRank(ctx context.Context, id job.Rank, null *os.File) error {
	s.mu.Lock()
	init, r := s.init, s.ranks[id]
	s.mu.Unlock()
	tmp := ""
	if s.spec.TmpDir != "" {
		tmp = podTmp
	}
	in := null
	if id == s.spec.Spec.StdinRank {
		in = s.in.read
	}
	prog, _ := s.spec.Spec.Program(id)
	p, err := init.start(ctx, pid1.Spec{
		PID: r.inner, Path: prog.Argv[0], Argv: prog.Argv, Env: rankEnv(&s.spec.Spec, id, tmp), Dir: prog.Dir,
	}, in, s.out.rankEnd(id, 1), s.out.rankEnd(id, 2), s.pmi.RankEnd(id))
	if err != nil {
		return err
	}
	s.mu.Lock()
	r.proc, r.started, r.inner = p, true, p.inner
	s.mu.Unlock()
	s.events.add(podapi.Event{Kind: evStarted, Rank: id})
	s.log.Info().Int("rank", int(id)).Int("pid", p.outer).Int("inner_pid", p.inner).Msg("rank started")
	return nil
}

// rankEnded records the end of a process of the pod, if it is a rank.
func (s *supervisor) rankEnded(e ended) {
	s.mu.Lock()
	var r *rank
	for _, x := range s.ranks {
		if x.started && x.exit == nil && x.proc.inner == e.pid {
			r = x
		}
	}
	if r == nil {
		s.mu.Unlock()
		return // an orphan that pod-init adopted
	}
	exit := job.Exit{Rank: r.id}
	if e.status.Signaled() {
		exit.Signal, exit.Core = int(e.status.Signal()), e.status.CoreDump()
	} else {
		exit.Code = e.status.ExitStatus()
	}
	r.exit = &exit
	_ = r.proc.pidfd.Close() // the process is gone
	s.mu.Unlock()

	s.log.Info().Int("rank", int(r.id)).Int("code", exit.Code).Int("signal", exit.Signal).Msg("rank ended")
	if err := s.out.ended(r.id); err != nil {
		s.log.Error().Err(err).Msg("last output of a rank")
	}
	if err := s.exits.add(exit); err != nil {
		s.log.Error().Err(err).Msg("exit is recorded in memory only")
	}
	s.events.add(podapi.Event{Kind: evExit, Rank: r.id, Exit: &exit})
	s.pmi.Gone(r.id)
}

// pmiEvents hears of the ranks' progress in PMI. It is called with the PMI
// server's lock held.
type pmiEvents struct{ s *supervisor }

// Phase implements pmi.Listener.
func (p pmiEvents) Phase(r job.Rank, ph pmi.Phase) {
	p.s.log.Debug().Int("rank", int(r)).Str("phase", string(ph)).Msg("pmi")
}

// initFences is the number of fences in MPI_Init of MPICH 4.
const initFences = 2

// Fence implements pmi.Listener.
func (p pmiEvents) Fence(seq int) {
	if seq != initFences {
		return
	}
	p.s.mu.Lock()
	p.s.meshFrom = time.Now()
	p.s.mu.Unlock()
	p.s.events.add(podapi.Event{Kind: evReady})
	p.s.wantPrepared()
}

// Final implements pmi.Listener.
func (p pmiEvents) Final() {
	if err := p.s.shield.finish(); err != nil {
		p.s.log.Warn().Err(err).Msg("shield not lowered for MPI_Finalize")
	}
}

// Abort implements pmi.Listener.
func (p pmiEvents) Abort(r job.Rank, code int, text string, err error) {
	if err != nil {
		text = err.Error()
	}
	p.s.log.Warn().Int("rank", int(r)).Int("code", code).Str("text", text).Msg("the job is aborted")
	p.s.events.add(podapi.Event{Kind: evAbort, Rank: r, Exit: &job.Exit{Rank: r, Code: code}, Text: text})
}
