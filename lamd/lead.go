package lamd

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
	"github.com/lampause/lampause/scheduler/conduct"
)

// errNotLeading answers requests that only a leader can serve.
var errNotLeading = unavailable("this daemon does not lead (any more); try again")

// lead drives one conduct.Leader for one term: one goroutine owns the core;
// everybody else posts functions to it. Actions run in goroutines of their own
// and post their answers.
type lead struct {
	term  uint64
	actor *actor
	log   zerolog.Logger
	drop  func(conduct.Drop)

	roll  roll
	clock atomic.Int64 // newest reading, ns

	wake chan struct{} // capacity 1: the queue is not empty
	over chan struct{} // closed once nobody works on the queue any more

	mu      sync.Mutex // guards all below
	queue   []func(*conduct.Leader) []conduct.Action
	ended   bool
	tickets map[conduct.Ticket]chan<- any // conduct.Answer or conduct.FenceAnswer; capacity 1
	last    conduct.Ticket
}

func newLead(term uint64, a *actor, drop func(conduct.Drop), log zerolog.Logger) *lead {
	return &lead{
		term: term, actor: a, drop: drop, log: log,
		wake: make(chan struct{}, 1), over: make(chan struct{}), tickets: map[conduct.Ticket]chan<- any{},
	}
}

// post queues work for the core; false when the lead has ended.
func (l *lead) post(f func(*conduct.Leader) []conduct.Action) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.queue = append(l.queue, f)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return true
}

// event queues an event for the core.
func (l *lead) event(ev conduct.Event) bool {
	return l.post(func(c *conduct.Leader) []conduct.Action { return c.Step(l.now(), ev) })
}

// now is the core's clock: time since boot, sleep included. A clock that cannot
// be read (Linux has it since 2.6.39) stands still: nothing expires early.
func (l *lead) now() time.Duration {
	ns, err := bootTime()
	if err != nil {
		l.log.Error().Err(err).Msg("no clock")
		return time.Duration(l.clock.Load())
	}
	l.clock.Store(ns)
	return time.Duration(ns)
}

// run drives the core until ctx ends. state is the replicated state, and
// after(i) is closed once it is newer than index i.
func (l *lead) run(ctx context.Context, cfg conduct.Config, state func() *scheduler.State, after func(uint64) <-chan struct{}) {
	core := conduct.NewLeader(cfg, l.term, l.now())
	var jobs sync.WaitGroup
	defer func() {
		l.end()
		jobs.Wait()
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st := state()
	l.carryOut(ctx, &jobs, core.Step(l.now(), conduct.Committed{State: st}))
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		l.arm(timer, core)
		select {
		case <-ctx.Done():
			return
		case <-after(st.Index):
			st = state()
			l.carryOut(ctx, &jobs, core.Step(l.now(), conduct.Committed{State: st}))
		case <-timer.C:
			l.carryOut(ctx, &jobs, core.Step(l.now(), conduct.Tick{}))
		case <-l.wake:
			for _, f := range l.take() {
				l.carryOut(ctx, &jobs, f(core))
			}
		}
	}
}

// arm sets the timer to the core's next deadline.
func (l *lead) arm(t *time.Timer, core *conduct.Leader) {
	wait := time.Hour
	if at, ok := core.Next(); ok {
		wait = max(at-l.now(), 0)
	}
	t.Reset(wait)
}

func (l *lead) take() []func(*conduct.Leader) []conduct.Action {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue
	l.queue = nil
	return q
}

// end refuses everything from now on, and tells those who wait.
func (l *lead) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	close(l.over)
	for t, ch := range l.tickets {
		close(ch)
		delete(l.tickets, t)
	}
}

// carryOut starts every action; what goes to many nodes goes through the tree.
func (l *lead) carryOut(ctx context.Context, jobs *sync.WaitGroup, acts []conduct.Action) {
	acts, batches := l.actor.batch(acts)
	for _, batch := range batches {
		jobs.Go(func() {
			for _, d := range l.actor.fan.call(ctx, batch) {
				l.event(d)
			}
		})
	}
	for _, act := range acts {
		switch act := act.(type) {
		case conduct.Answer:
			l.settle(act.Ticket, act)
		case conduct.FenceAnswer:
			for _, t := range act.Tickets {
				l.settle(t, act)
			}
		case conduct.Drop:
			jobs.Go(func() { l.drop(act) })
		default:
			jobs.Go(func() { l.perform(ctx, act) })
		}
	}
}

// perform carries out one action and posts its answer. The state that a
// proposal led to is posted before the answer, as conduct demands: the
// proposer's own state is read back by the actor.
func (l *lead) perform(ctx context.Context, act conduct.Action) {
	start := time.Now()
	d := l.actor.do(ctx, act)
	ev := l.log.Trace()
	if d.Failure != nil {
		ev = l.log.Debug().Str("failure", d.Failure.Text).Int("kind", int(d.Failure.Kind))
	}
	ev.Type("action", act).Dur("dur_ms", time.Since(start)).Msg("action done")
	if _, ok := act.(conduct.Propose); ok {
		st := l.actor.state()
		l.event(conduct.Committed{State: st})
	}
	l.event(d)
}

// settle gives an answer to the one who waits for it.
func (l *lead) settle(t conduct.Ticket, answer any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ch, ok := l.tickets[t]; ok {
		ch <- answer // capacity 1, and each ticket is settled once
		delete(l.tickets, t)
	}
}

// ask posts an event that carries a ticket, and waits for the answer.
//
// Expected errors: errNotLeading, the context's.
func (l *lead) ask(ctx context.Context, make func(conduct.Ticket) conduct.Event) (any, error) {
	ch := newTicket()
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return nil, errNotLeading
	}
	l.last++
	t := l.last
	l.tickets[t] = ch
	l.mu.Unlock()
	defer l.settleNobody(t)
	if !l.event(make(t)) {
		return nil, errNotLeading
	}
	select {
	case a, ok := <-ch:
		if !ok {
			return nil, errNotLeading
		}
		return a, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newTicket() chan any { return make(chan any, 1) }

// settleNobody forgets a ticket whose asker went away.
func (l *lead) settleNobody(t conduct.Ticket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.tickets, t)
}

// verb carries out a user's verb.
func (l *lead) verb(ctx context.Context, v conduct.Verb) (conduct.Answer, error) {
	a, err := l.ask(ctx, func(t conduct.Ticket) conduct.Event {
		v.Ticket = t
		return v
	})
	if err != nil {
		return conduct.Answer{}, err
	}
	ans, ok := a.(conduct.Answer)
	if !ok {
		return ans, fmt.Errorf("answer of type %T to a verb", a)
	}
	if ans.Failure != nil {
		return ans, ans.Failure
	}
	return ans, nil
}

// fence waits until every pod of the job has arrived.
func (l *lead) fence(ctx context.Context, f podapi.Fence) (podapi.FenceReply, error) {
	a, err := l.ask(ctx, func(t conduct.Ticket) conduct.Event { return conduct.Fence{Ticket: t, Fence: f} })
	if err != nil {
		return podapi.FenceReply{}, err
	}
	ans, ok := a.(conduct.FenceAnswer)
	if !ok {
		return podapi.FenceReply{}, fmt.Errorf("answer of type %T to a fence", a)
	}
	if ans.Stale {
		return podapi.FenceReply{}, conflict("fence of an older incarnation")
	}
	return ans.Reply, nil
}

// renew asks the core whether a node's leases may be renewed.
func (l *lead) renew(ctx context.Context, node scheduler.NodeRef) (bool, error) {
	ch := make(chan bool, 1)
	if !l.post(func(c *conduct.Leader) []conduct.Action {
		ch <- c.Renew(l.now(), node)
		return nil
	}) {
		return false, errNotLeading
	}
	select {
	case ok := <-ch:
		return ok, nil
	case <-l.over:
		return false, errNotLeading
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// suspects lists the nodes under suspicion.
func (l *lead) suspects(ctx context.Context) map[job.NodeID]bool {
	ch := make(chan []job.NodeID, 1)
	out := map[job.NodeID]bool{}
	if !l.post(func(c *conduct.Leader) []conduct.Action {
		ch <- c.Suspects()
		return nil
	}) {
		return out
	}
	select {
	case ids := <-ch:
		for _, id := range ids {
			out[id] = true
		}
	case <-l.over:
	case <-ctx.Done():
	}
	return out
}
