package conduct

import (
	"testing"
	"time"

	"github.com/lampause/lampause/scheduler"
)

// asker is a Leader with nothing to do but the requests of a test.
type asker struct {
	*Leader
	t    *testing.T
	sent []KillPod
	done []Done
}

func newAsker(t *testing.T) *asker {
	a := &asker{Leader: NewLeader(Config{Retry: 100 * time.Millisecond}, 1, 0), t: t}
	a.st = &scheduler.State{}
	return a
}

// ask sends a request.
func (a *asker) ask(s *scope, limit, each time.Duration) *call {
	c := a.request(s, limit, each, func(ref Ref, timeout time.Duration) Action {
		return KillPod{Ref: ref, Timeout: timeout}
	}, func(d Done) { a.done = append(a.done, d) })
	a.take(a.out)
	a.out = nil
	return c
}

func (a *asker) take(acts []Action) {
	for _, x := range acts {
		a.sent = append(a.sent, x.(KillPod)) //nolint:errcheck,forcetypeassert // nothing else is asked
	}
}

// at lets time pass, with every tick that Next asks for.
func (a *asker) at(now time.Duration, ev Event) {
	for {
		next, ok := a.Next()
		if !ok || next > now {
			break
		}
		a.take(a.Step(next, Tick{}))
	}
	if ev != nil {
		a.take(a.Step(now, ev))
	}
}

func (a *asker) last() KillPod { return a.sent[len(a.sent)-1] }

func (a *asker) want(what string, sent, done int) {
	a.t.Helper()
	if len(a.sent) != sent || len(a.done) != done {
		a.t.Errorf("%s: %d requests and %d outcomes, not %d and %d", what, len(a.sent), len(a.done), sent, done)
	}
	if done > 0 && len(a.calls) > 0 {
		a.t.Errorf("%s: the request is still there", what)
	}
}

func failed(ref Ref, k FailureKind) Done {
	return Done{Ref: ref, Failure: &Failure{Kind: k, Text: "x"}}
}

func TestRequestWithoutAnswer(t *testing.T) {
	a := newAsker(t)
	a.ask(&scope{}, 8*time.Second, 4*time.Second)
	a.at(4999*time.Millisecond, Tick{})
	a.want("while an answer may come", 1, 0)
	a.at(5099*time.Millisecond, Tick{})
	a.want("before the repetition", 1, 0)
	a.at(5100*time.Millisecond, Tick{})
	a.want("repeated", 2, 0)
	if got := []time.Duration{a.sent[0].Timeout, a.sent[1].Timeout}; got[0] != 4*time.Second || got[1] != 2900*time.Millisecond {
		t.Errorf("time-outs %v", got)
	}
	a.at(8999*time.Millisecond, Tick{})
	a.want("while the second answer may come", 2, 0)
	a.at(9*time.Second, Tick{})
	a.want("given up", 2, 1)
	if f := a.done[0].Failure; f == nil || f.Kind != Unreachable {
		t.Errorf("outcome %+v", a.done[0])
	}
}

func TestRequestThatIsNotDelivered(t *testing.T) {
	a := newAsker(t)
	a.ask(&scope{}, 0, time.Second) // for ever
	for i := range 50 {
		now := time.Duration(i) * time.Minute
		ref := a.last().Ref
		a.at(now, failed(ref, Unreachable))
		a.at(now, Done{Ref: ref}) // a second answer to one request does not count
		a.want("not delivered", i+1, 0)
		a.at(now+100*time.Millisecond, Tick{})
		a.want("repeated", i+2, 0)
		if a.last().Timeout != time.Second {
			t.Fatalf("time-out %v", a.last().Timeout)
		}
		if i == 0 {
			a.at(now+200*time.Millisecond, Done{Ref: ref}) // nor does one to a former try
			a.want("late", 2, 0)
		}
		a.sent, a.done = a.sent[:i+2], nil
		a.calls[0].late = now + time.Hour // this one answers in time
	}
	a.at(time.Hour, Done{Ref: a.last().Ref})
	a.want("done", 51, 1)
}

// TestWhatIsRepeated: which failures are tried again, and how long.
func TestWhatIsRepeated(t *testing.T) {
	for name, c := range map[string]struct {
		kind     FailureKind
		at       time.Duration
		change   func(*call)
		repeated bool
	}{
		"unreachable":              {Unreachable, time.Second, nil, true},
		"refused":                  {Refused, time.Second, nil, false},
		"refused, again":           {Refused, time.Second, func(c *call) { c.again = true }, false},
		"refused, always":          {Refused, time.Second, func(c *call) { c.always = true }, true},
		"refused now":              {RefusedNow, time.Second, nil, false},
		"refused now, again":       {RefusedNow, time.Second, func(c *call) { c.again = true }, true},
		"for good, always":         {FailedForGood, time.Second, func(c *call) { c.always = true }, true},
		"for good":                 {FailedForGood, time.Second, func(c *call) { c.again = true }, false},
		"just before the end":      {Unreachable, 59899 * time.Millisecond, nil, true},
		"at the end":               {Unreachable, 59900 * time.Millisecond, nil, false},
		"one try may take longer":  {Unreachable, 2900 * time.Millisecond, func(c *call) { c.tries = 3 * time.Second }, false},
		"before that":              {Unreachable, 2899 * time.Millisecond, func(c *call) { c.tries = 3 * time.Second }, true},
		"nobody could answer":      {Unreachable, time.Second, func(c *call) { c.gone = func() bool { return true } }, false},
		"somebody could":           {Unreachable, time.Second, func(c *call) { c.gone = func() bool { return false } }, true},
		"nobody could, always":     {Refused, time.Second, func(c *call) { c.always, c.gone = true, func() bool { return true } }, false},
		"its success is an answer": {0, time.Second, func(c *call) { c.always, c.gone = true, func() bool { return true } }, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAsker(t)
			cl := a.ask(&scope{}, time.Minute, 2*time.Minute)
			if c.change != nil {
				c.change(cl)
			}
			d := failed(a.last().Ref, c.kind)
			if c.kind == 0 {
				d.Failure = nil
			}
			a.at(c.at, d)
			a.at(c.at+150*time.Millisecond, Tick{})
			if c.repeated {
				a.want(name, 2, 0)
			} else {
				a.want(name, 1, 1)
			}
		})
	}
}

// TestRequestsOfAPhaseThatIsOver are forgotten, whatever becomes of them.
func TestRequestsOfAPhaseThatIsOver(t *testing.T) {
	for name, play := range map[string]func(*asker, *scope){
		"answered after": func(a *asker, s *scope) { s.over = true; a.at(time.Second, Done{Ref: a.last().Ref}) },
		"failed after":   func(a *asker, s *scope) { s.over = true; a.at(time.Second, failed(a.last().Ref, Unreachable)) },
		"not answered":   func(a *asker, s *scope) { s.over = true; a.at(time.Hour, Tick{}) },
		"to be repeated": func(a *asker, s *scope) {
			a.at(time.Second, failed(a.last().Ref, Unreachable))
			s.over = true
			a.at(time.Hour, Tick{})
		},
		"to a dead node": func(a *asker, s *scope) {
			a.calls[0].gone = func() bool { return true }
			s.over = true
			a.dropGone()
			a.at(time.Second, Tick{})
		},
	} {
		a := newAsker(t)
		s := &scope{}
		a.ask(s, 0, time.Second)
		play(a, s)
		a.want(name, 1, 0)
		if len(a.calls) != 0 {
			t.Errorf("%s: the request is still there", name)
		}
		if at, ok := a.Next(); ok {
			t.Errorf("%s: a tick is due at %v", name, at)
		}
	}
}

// TestDeadNodeAnswersNobody: a request to a life of a node that was declared
// dead is over at once, on its way or waiting to be repeated.
func TestDeadNodeAnswersNobody(t *testing.T) {
	for _, waiting := range []bool{false, true} {
		a := newAsker(t)
		dead := false
		a.ask(&scope{}, time.Hour, time.Minute).gone = func() bool { return dead }
		if waiting {
			a.at(time.Second, failed(a.last().Ref, Unreachable))
		}
		a.dropGone()
		a.want("alive", 1, 0)
		dead = true
		a.dropGone()
		a.want("dead", 1, 1)
	}
}
