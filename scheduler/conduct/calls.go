package conduct

import (
	"slices"
	"time"

	"github.com/lampause/lampause/scheduler"
)

// scope groups the requests of a phase, so that they can be forgotten
// together: answers that come later are ignored.
type scope struct{ over bool }

// call is a request on its way, or waiting to be repeated.
type call struct {
	ref     Ref
	scope   *scope
	make    func(ref Ref, timeout time.Duration) Action
	done    func(Done)
	until   time.Duration // no repetition that would begin later than this; 0 = repeat for ever
	each    time.Duration // time-out of one try
	late    time.Duration // in flight: taken as unreachable when no answer came by then
	retryAt time.Duration // not in flight: when to try again; 0 = in flight
	tries   time.Duration // no repetition later than this, however long one try may take; 0 = see until
	gone    func() bool   // nil, or whether nobody is left who could answer
	again   bool          // repeat also after RefusedNow
	always  bool          // repeat after every failure
}

// slack is how much later than its time-out an answer may come.
const slack = time.Second

// request sends an action within a scope and calls done exactly once with its
// outcome, unless the scope ends before. It is repeated while it cannot be
// delivered, until max is over (0 = for ever); one try takes each at most.
func (l *Leader) request(s *scope, limit, each time.Duration, mk func(Ref, time.Duration) Action, done func(Done)) *call {
	c := &call{scope: s, make: mk, done: done, each: each}
	if limit > 0 {
		c.until = l.now + limit
	}
	l.calls = append(l.calls, c)
	l.send(c)
	return c
}

func (l *Leader) send(c *call) {
	l.lastRef++
	timeout := c.each
	if c.until > 0 {
		timeout = min(timeout, max(c.until-l.now, time.Millisecond))
	}
	c.ref, c.retryAt, c.late = l.lastRef, 0, l.now+timeout+slack
	l.emit(c.make(c.ref, timeout))
}

// complete passes an answer to the one who asked, or plans a repetition.
func (l *Leader) complete(d Done) {
	i := slices.IndexFunc(l.calls, func(c *call) bool { return c.ref == d.Ref && c.retryAt == 0 })
	if i < 0 {
		return
	}
	c := l.calls[i]
	if c.scope.over {
		l.calls = slices.Delete(l.calls, i, i+1)
		return
	}
	if f := d.Failure; f != nil && (f.Kind == Unreachable || f.Kind == RefusedNow && c.again || c.always) {
		at := l.now + l.cfg.Retry
		if (c.until == 0 || at < c.until) && (c.tries == 0 || at < c.tries) && (c.gone == nil || !c.gone()) {
			c.retryAt = at
			return
		}
	}
	l.calls = slices.Delete(l.calls, i, i+1)
	c.done(d)
}

// dropGone ends the requests that the death of a node made void.
func (l *Leader) dropGone() {
	for _, c := range slices.Clone(l.calls) {
		if c.gone != nil && !c.scope.over && c.gone() {
			c.retryAt, c.until = 0, l.now
			l.complete(Done{Ref: c.ref, Failure: &Failure{Kind: Unreachable, Text: "the node was declared dead"}})
		}
	}
}

func (l *Leader) tickCalls() {
	for _, c := range slices.Clone(l.calls) {
		switch {
		case c.scope.over:
		case c.retryAt > 0 && c.retryAt <= l.now:
			l.send(c)
		case c.retryAt == 0 && c.late <= l.now:
			l.complete(Done{Ref: c.ref, Failure: &Failure{Kind: Unreachable, Text: "no answer in time"}})
		}
	}
	l.calls = slices.DeleteFunc(l.calls, func(c *call) bool { return c.scope.over })
}

func (l *Leader) nextCall(d *deadline) {
	for _, c := range l.calls {
		switch {
		case c.scope.over:
		case c.retryAt > 0:
			d.by(c.retryAt)
		default:
			d.by(c.late)
		}
	}
}

// propose puts a command into the log and calls done with its outcome. It is
// repeated until raft gives an answer: only the end of the term ends that.
func (l *Leader) propose(s *scope, c scheduler.Command, done func(Done)) {
	if c.DeclareDead != nil || c.Recover != nil {
		l.decided = l.now
	}
	l.request(s, 0, l.cfg.ProposeMax, func(ref Ref, timeout time.Duration) Action {
		return Propose{Ref: ref, Command: c, Timeout: timeout}
	}, done)
}
