package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// do implements podWork: one op of the coordinator on engine, output, input
// and PMI together.
func (s *supervisor) do(ctx context.Context, q podapi.PhaseRequest) (podapi.PhaseReply, error) {
	start := time.Now()
	reply, err := s.dispatch(ctx, q)
	if reply.TimesMS == nil {
		reply.TimesMS = map[string]float64{}
	}
	reply.TimesMS["pod"] = float64(time.Since(start)) / float64(time.Millisecond)
	return reply, err
}

func (s *supervisor) dispatch(ctx context.Context, q podapi.PhaseRequest) (podapi.PhaseReply, error) {
	var r podapi.PhaseReply
	var err error
	switch q.Op {
	case podapi.OpFreeze:
		r, err = s.freeze(ctx, q.Epoch)
	case podapi.OpCaptureSend:
		r, err = s.captureSend(ctx, q.Epoch)
	case podapi.OpCaptureRecv:
		r, err = s.engine.captureRecv(ctx)
	case podapi.OpResume:
		r, err = s.engine.resume(ctx, q.Peers)
		if err == nil {
			s.goOn()
		}
	case podapi.OpWrite:
		r, err = s.write(ctx, q.Epoch)
	case podapi.OpCommit:
		err = s.commit(ctx, q.Epoch)
	case podapi.OpAbandon:
		err = s.giveUp(ctx, q.Epoch)
	case podapi.OpStop:
		r, err = s.stop(ctx)
	case podapi.OpRollback:
		r, err = s.rollback(ctx, q)
	case podapi.OpRestore:
		r, err = s.restore(ctx, q)
	case podapi.OpRelease:
		r, err = s.release(ctx, q.Suspended)
	case podapi.OpSuspend:
		err = s.holds.take(ctx, heldByUser)
	case podapi.OpContinue:
		err = s.holds.drop(ctx, heldByUser)
	case podapi.OpPreflight:
		r, err = s.engine.preflight(ctx, s.members())
	default:
		err = fmt.Errorf("unknown op %q", q.Op)
	}
	return r, err
}

// goOn lets PMI and input go on after the ranks do.
func (s *supervisor) goOn() {
	s.pmi.Resume()
	if s.in != nil {
		s.in.resume()
	}
}

// standStill stops PMI and input after the ranks were frozen.
func (s *supervisor) standStill() {
	s.pmi.Pause()
	if s.in != nil {
		s.in.pause()
	}
}

func (s *supervisor) freeze(ctx context.Context, e job.Epoch) (podapi.PhaseReply, error) {
	switch {
	case s.holds.any():
		return podapi.PhaseReply{}, fmt.Errorf("the ranks are suspended: %w", errRetry)
	case !s.lease.valid():
		return podapi.PhaseReply{}, fmt.Errorf("the lease of the pod has run out: %w", errRetry)
	}
	r, err := s.engine.freeze(ctx, e, s.members())
	if err != nil {
		return r, err
	}
	if err := s.inMesh(r.Marks); err != nil {
		return podapi.PhaseReply{}, errors.Join(err, s.engine.abandon(context.WithoutCancel(ctx), e))
	}
	s.standStill()
	return r, nil
}

// captureSend also captures what the supervisor holds, while memory is being
// copied.
func (s *supervisor) captureSend(ctx context.Context, e job.Epoch) (podapi.PhaseReply, error) {
	r, err := s.engine.captureSend(ctx)
	if err != nil {
		return r, err
	}
	x, err := s.capture(e)
	s.mu.Lock()
	s.pending = x
	s.mu.Unlock()
	return r, err
}

func (s *supervisor) write(ctx context.Context, e job.Epoch) (podapi.PhaseReply, error) {
	s.mu.Lock()
	x := s.pending
	s.mu.Unlock()
	if x == nil || x.Epoch != e {
		return podapi.PhaseReply{}, fmt.Errorf("nothing is captured of epoch %d", e)
	}
	full, err := s.withTails(x)
	if err != nil {
		return podapi.PhaseReply{}, err
	}
	w, err := s.engine.write(ctx, e, full)
	if err != nil {
		return podapi.PhaseReply{}, err
	}
	return podapi.PhaseReply{Written: &w, Bytes: total(w)}, nil
}

// total is the size of an image, in bytes.
func total(w podapi.Written) int64 {
	var n int64
	for _, f := range w.Files {
		n += f.Size
	}
	return n
}

func (s *supervisor) commit(ctx context.Context, e job.Epoch) error {
	if err := s.engine.commit(ctx, e); err != nil {
		return err
	}
	s.mu.Lock()
	if s.pending == nil || s.pending.Epoch != e { // repeated
		s.mu.Unlock()
		return nil
	}
	s.kept, s.pending = s.pending, nil
	kept := s.kept
	s.mu.Unlock()
	s.out.cover(kept.at())
	if s.in != nil && kept.Stdin != nil {
		if err := s.in.committed(kept.Stdin); err != nil {
			s.log.Warn().Err(err).Msg("old input is kept")
		}
	}
	return nil
}

// giveUp implements podWork.
func (s *supervisor) giveUp(ctx context.Context, e job.Epoch) error {
	err := s.engine.abandon(ctx, e)
	s.mu.Lock()
	s.pending = nil
	s.mu.Unlock()
	s.goOn()
	return err
}

// renamed implements podWork.
func (s *supervisor) renamed(h podapi.Header) {
	s.mu.Lock()
	s.header = h
	s.mu.Unlock()
	s.events.setIncarnation(h.Incarnation)
}

// stop freezes the ranks of a survivor. Ranks that a user suspended are let go
// for that: their memory goes back anyway, and they stand still again after
// the release.
func (s *supervisor) stop(ctx context.Context) (podapi.PhaseReply, error) {
	if !s.lease.valid() {
		return podapi.PhaseReply{}, fmt.Errorf("the lease of the pod has run out: %w", errRetry)
	}
	if err := s.holds.lift(ctx); err != nil {
		return podapi.PhaseReply{}, err
	}
	r, err := s.engine.stop(ctx, s.members())
	if err != nil {
		return r, errors.Join(err, s.holds.again(ctx))
	}
	s.standStill()
	r.LostRanks = append(r.LostRanks, s.endedSince()...)
	return r, nil
}

// endedSince lists the ranks that have ended since the newest epoch: there is
// no process to put back.
func (s *supervisor) endedSince() []job.Rank {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []job.Rank
	for _, id := range s.spec.Placement.Ranks {
		then := s.kept != nil && slices.ContainsFunc(s.kept.Exits, func(e job.Exit) bool { return e.Rank == id })
		if s.ranks[id].exit != nil && !then {
			out = append(out, id)
		}
	}
	return out
}

func (s *supervisor) rollback(ctx context.Context, q podapi.PhaseRequest) (podapi.PhaseReply, error) {
	s.mu.Lock()
	written := s.pending != nil && s.pending.Epoch == q.Epoch
	s.mu.Unlock()
	if written { // committed by the log before this pod heard of it
		if err := s.commit(ctx, q.Epoch); err != nil {
			return podapi.PhaseReply{}, err
		}
	}
	s.mu.Lock()
	x := s.kept
	s.mu.Unlock()
	if x == nil || x.Epoch != q.Epoch {
		return podapi.PhaseReply{LostRanks: s.spec.Placement.Ranks}, fmt.Errorf("epoch %d is not kept here", q.Epoch)
	}
	if gone := s.endedSince(); len(gone) > 0 {
		// A pod is rebuilt as a whole: its processes share one pid namespace.
		return podapi.PhaseReply{LostRanks: s.spec.Placement.Ranks}, fmt.Errorf("ranks %v have ended since epoch %d", gone, q.Epoch)
	}
	if err := s.moved(q.Book); err != nil {
		return podapi.PhaseReply{}, err
	}
	r, err := s.engine.rollback(ctx, q)
	if err != nil {
		return r, err
	}
	s.mu.Lock()
	for _, rk := range s.ranks {
		rk.exit = nil
	}
	for i := range x.Exits {
		s.ranks[x.Exits[i].Rank].exit = &x.Exits[i]
	}
	s.pending = nil
	s.mu.Unlock()
	return r, s.putBack(x, false)
}

// moved takes a new address book.
func (s *supervisor) moved(book []job.PodAddress) error {
	if len(book) == 0 {
		return nil
	}
	s.mu.Lock()
	s.book = book
	s.mu.Unlock()
	if s.spec.LinkReady {
		return nil
	}
	return s.net.move(s.self, book)
}

// restore rebuilds the ranks of an empty pod.
func (s *supervisor) restore(ctx context.Context, q podapi.PhaseRequest) (podapi.PhaseReply, error) {
	select {
	case <-s.built:
	case <-ctx.Done():
		return podapi.PhaseReply{}, fmt.Errorf("the pod has no link yet: %w", ctx.Err())
	}
	if err := s.moved(q.Book); err != nil {
		return podapi.PhaseReply{}, err
	}
	s.standStill()
	r, ranks, x, err := s.engine.restore(ctx, q, s.members())
	if err != nil {
		return r, err
	}
	if err := s.adopt(ranks, x); err != nil {
		return r, err
	}
	return r, s.putBack(x, true)
}

// adopt takes rebuilt ranks over.
func (s *supervisor) adopt(ranks []member, x *side) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range ranks {
		if m.outer == 0 {
			continue
		}
		fd, err := pidfdOpen(m.outer)
		if err != nil {
			return fmt.Errorf("rank %d: %w", m.rank, err)
		}
		r := s.ranks[m.rank]
		r.inner, r.started, r.exit = m.inner, true, nil
		r.proc = process{outer: m.outer, inner: m.inner, pidfd: os.NewFile(uintptr(fd), "pidfd")}
	}
	for i := range x.Exits {
		r := s.ranks[x.Exits[i].Rank]
		r.started, r.exit = true, &x.Exits[i]
	}
	s.kept, s.pending = x, nil
	return nil
}

// release lets the ranks go on. Those of a suspended job stand still from the
// first moment on: a rebuilt pod has not heard of the suspension yet, and a
// survivor's ranks were let go for the rollback.
func (s *supervisor) release(ctx context.Context, suspended bool) (podapi.PhaseReply, error) {
	if !s.lease.valid() {
		return podapi.PhaseReply{}, fmt.Errorf("the lease of the pod has run out: %w", errRetry)
	}
	s.updateShield()
	if suspended {
		s.holds.note(heldByUser)
	}
	r, err := s.engine.release(ctx, s.holds.any())
	if err != nil {
		return r, err
	}
	err = s.holds.again(ctx) // also children that are no ranks
	s.goOn()
	s.wantPrepared()
	return r, err
}

// prepareAfter is how long after MPI_Init, a commit or a release the pod makes
// room for the next copy: the programs allocate what they work on first.
const prepareAfter = time.Second

// wantPrepared asks keepPrepared for room for the next copy.
func (s *supervisor) wantPrepared() {
	select {
	case s.prepare <- struct{}{}:
	default: // asked for already
	}
}

// keepPrepared makes room for the next copy of memory when asked, while the
// ranks run and no op is under way.
func (s *supervisor) keepPrepared(ctx context.Context) error {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.prepare:
			t.Reset(prepareAfter)
			continue
		case <-t.C:
		}
		err := s.phases.idle(ctx, func(st phaseState) error {
			if st.Stage != stRunning || s.ended() {
				return nil
			}
			return s.engine.prepare(ctx, s.members())
		})
		if err != nil && ctx.Err() == nil {
			s.log.Warn().Err(err).Msg("no room for the next copy yet: the next stall is longer")
		}
	}
}
