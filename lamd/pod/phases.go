package pod

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// podWork is what the ops do to a pod, seen from the state machine: the engine
// together with output, input and PMI (ops.go). Ops run one at a time.
type podWork interface {
	do(ctx context.Context, q podapi.PhaseRequest) (podapi.PhaseReply, error)
	// giveUp abandons the open checkpoint of epoch e; the ranks run on.
	giveUp(ctx context.Context, e job.Epoch) error
	// renamed says that a new incarnation began.
	renamed(h podapi.Header)
}

// phases serialises the coordinator's ops, applies their deadlines, and
// answers repetitions. Safe for concurrent use.
type phases struct {
	work podWork
	void string // file of the voided round
	now  func() time.Duration
	log  zerolog.Logger

	turn chan struct{} // holds one token: whoever has it may work and change the stage

	mu      sync.Mutex // guards below
	state   phaseState
	running *running // the op under way
	wake    chan struct{}
}

// running is an op under way.
type running struct {
	q      podapi.PhaseRequest
	cancel context.CancelCauseFunc
	done   chan struct{} // closed at the end, after reply and err are set
	reply  podapi.PhaseReply
	err    error
}

// refusal is an op that was not carried out, or that failed and left the ranks
// as they were.
type refusal struct {
	status int
	reason string
	retry  bool
	lost   []job.Rank
}

// Error implements error.
func (r *refusal) Error() string { return r.reason }

// newPhases returns the state machine of a pod that is about to be built, for a
// restore or not.
func newPhases(h podapi.Header, restore bool, dir string, work podWork, now func() time.Duration, log zerolog.Logger) *phases {
	p := &phases{
		work: work, void: filepath.Join(dir, voidFile), now: now, log: log,
		turn: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
	p.turn <- struct{}{}
	p.state = phaseState{Job: h.Job, Term: h.Term, Round: round{Incarnation: h.Incarnation}}
	if restore {
		p.state.Stage = stEmpty
	}
	return p
}

// handle carries a request out, or answers it from memory. It returns when the
// op is done; a repetition waits for the first one.
//
// Expected errors: *refusal.
func (p *phases) handle(ctx context.Context, q podapi.PhaseRequest) (podapi.PhaseReply, error) {
	if q.Op == podapi.OpPreflight {
		return p.aside(ctx, q)
	}
	for {
		p.mu.Lock()
		cur := p.running
		p.mu.Unlock()
		if cur == nil {
			reply, again, err := p.begin(ctx, q)
			if !again {
				return reply, err
			}
			continue
		}
		if same(cur.q, q) {
			return cur.wait(ctx)
		}
		if !p.mayInterrupt(cur.q, q) {
			return podapi.PhaseReply{}, &refusal{status: http.StatusConflict, retry: true, reason: fmt.Sprintf("%s is under way", cur.q.Op)}
		}
		cur.cancel(fmt.Errorf("given up for %s of attempt %d", q.Op, q.Attempt))
		if _, err := cur.wait(ctx); ctx.Err() != nil {
			return podapi.PhaseReply{}, err
		}
	}
}

// same reports whether b repeats a.
func same(a, b podapi.PhaseRequest) bool {
	return a.Op == b.Op && a.Header == b.Header && a.Epoch == b.Epoch
}

// mayInterrupt reports whether the running op gives way: to the abandoning of
// its round, and to a newer round.
func (p *phases) mayInterrupt(cur, q podapi.PhaseRequest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.state.admit(q)
	if !v.run {
		return q.Op == podapi.OpAbandon && v.status == 0
	}
	newer := round{cur.Incarnation, cur.Attempt}.before(round{q.Incarnation, q.Attempt})
	return q.Op == podapi.OpAbandon || newer && (q.Op == podapi.OpStop || q.Op == podapi.OpFreeze || q.Op == podapi.OpRestore)
}

// wait returns the result of an op that another request started.
func (r *running) wait(ctx context.Context) (podapi.PhaseReply, error) {
	select {
	case <-r.done:
		return r.reply, r.err
	case <-ctx.Done():
		return podapi.PhaseReply{}, ctx.Err()
	}
}

// begin starts an op and carries it out. again says that another one came
// first: the caller judges anew.
func (p *phases) begin(ctx context.Context, q podapi.PhaseRequest) (reply podapi.PhaseReply, again bool, err error) {
	select {
	case <-p.turn:
	case <-ctx.Done():
		return reply, false, ctx.Err()
	}
	defer func() { p.turn <- struct{}{} }()
	p.mu.Lock()
	if p.running != nil {
		p.mu.Unlock()
		return reply, true, nil
	}
	v := p.state.admit(q)
	if !v.run {
		p.mu.Unlock()
		if v.cached != nil {
			return *v.cached, false, nil
		}
		return reply, false, &refusal{status: v.status, reason: v.reason}
	}
	open := p.state.Epoch
	// The op is the pod's own from here on: a coordinator that goes away does
	// not leave it half done, its deadline does.
	opCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	run := &running{q: q, cancel: cancel, done: make(chan struct{})}
	p.running = run
	p.mu.Unlock()
	defer cancel(nil)

	if v.preempt {
		err = p.giveUp(opCtx, open)
	}
	if err == nil {
		p.mu.Lock()
		p.state = p.state.begin(q, p.now())
		p.mu.Unlock()
		if v.rename {
			p.work.renamed(q.Header)
		}
		reply, err = p.perform(opCtx, q)
	}
	p.mu.Lock()
	run.reply, run.err = reply, err
	p.running = nil
	close(run.done)
	p.mu.Unlock()
	p.alarm()
	return reply, false, err
}

// perform runs the op within its deadline and records how it ended.
func (p *phases) perform(ctx context.Context, q podapi.PhaseRequest) (podapi.PhaseReply, error) {
	if q.DeadlineMS > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(q.DeadlineMS)*time.Millisecond)
		defer cancel()
	}
	start := p.now()
	reply, err := p.work.do(ctx, q)
	p.mu.Lock()
	p.state = p.state.finish(q.Op, reply, err == nil)
	p.mu.Unlock()
	ev := p.log.Debug()
	if err != nil {
		ev = p.log.Warn().Err(err)
	}
	ev.Str("op", string(q.Op)).Uint64("epoch", uint64(q.Epoch)).Uint64("attempt", q.Attempt).
		Dur("dur_ms", p.now()-start).Msg("phase")
	if err == nil {
		return reply, nil
	}
	var r *refusal
	if errors.As(err, &r) {
		return reply, err
	}
	return reply, &refusal{
		status: http.StatusUnprocessableEntity, reason: err.Error(), lost: reply.LostRanks,
		retry: errors.Is(err, errRetry),
	}
}

// aside runs an op that has no place in the order of rounds.
func (p *phases) aside(ctx context.Context, q podapi.PhaseRequest) (podapi.PhaseReply, error) {
	select {
	case <-p.turn:
	case <-ctx.Done():
		return podapi.PhaseReply{}, ctx.Err()
	}
	defer func() { p.turn <- struct{}{} }()
	p.mu.Lock()
	v := p.state.admit(q)
	st := p.state.Stage
	p.mu.Unlock()
	if !v.run {
		return podapi.PhaseReply{}, &refusal{status: v.status, reason: v.reason}
	}
	if st != stRunning && st != stPending && st != stWritten {
		return podapi.PhaseReply{}, &refusal{status: http.StatusConflict, retry: true, reason: "the pod is " + st.String()}
	}
	reply, err := p.work.do(ctx, q)
	if err != nil {
		return reply, &refusal{status: http.StatusUnprocessableEntity, reason: err.Error(), retry: errors.Is(err, errRetry)}
	}
	return reply, nil
}

// giveUp voids the open checkpoint, durably, before the ranks go on.
// Precondition: the caller has the turn.
func (p *phases) giveUp(ctx context.Context, open job.Epoch) error {
	p.mu.Lock()
	p.state = p.state.voided()
	void := p.state.Void
	p.mu.Unlock()
	if err := writeAtomically(p.void, void); err != nil {
		// In memory the attempt is void all the same; the record matters only
		// if this supervisor dies, and then its ranks are lost with it.
		p.log.Error().Err(err).Msg("void record not written")
	}
	if err := p.work.giveUp(context.WithoutCancel(ctx), open); err != nil {
		return fmt.Errorf("give up epoch %d: %w", open, err)
	}
	return nil
}

// alarm makes watch look at the deadline again.
func (p *phases) alarm() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// watch lets a pod go on by itself whose deadline passed between freeze and
// resume; it returns when ctx ends.
func (p *phases) watch(ctx context.Context) error {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		p.mu.Lock()
		stalled, wait := p.state.Stage.stalled(), p.state.Deadline-p.now()
		p.mu.Unlock()
		if !stalled {
			wait = time.Hour
		}
		t.Reset(max(wait, 0))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.wake:
		case <-t.C:
			p.expire(ctx)
		}
	}
}

// expire gives the open round up if its deadline has passed. An op under way
// has the same deadline and ends first.
func (p *phases) expire(ctx context.Context) {
	select {
	case <-p.turn:
	case <-ctx.Done():
		return
	}
	defer func() { p.turn <- struct{}{} }()
	p.mu.Lock()
	due, open := p.state.expired(p.now()), p.state.Epoch
	p.mu.Unlock()
	if !due {
		return
	}
	p.log.Warn().Uint64("epoch", uint64(open)).Msg("no word from the coordinator within the deadline; the ranks go on")
	if err := p.giveUp(ctx, open); err != nil {
		p.log.Error().Err(err).Msg("pod did not go on")
	}
}

// look returns a copy of the state.
func (p *phases) look() phaseState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// idle runs f while no op is under way and none can start.
func (p *phases) idle(ctx context.Context, f func(phaseState) error) error {
	select {
	case <-p.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { p.turn <- struct{}{} }()
	return f(p.look())
}
