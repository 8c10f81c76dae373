package conduct

import (
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// suspension follows Job.Suspended, which only says what the user wants.
type suspension struct {
	known   bool // now says how the pods are; a new leader has to tell them
	now     bool
	ever    bool // some pod may have been suspended: that outlives a rollback
	sending bool
	waiting []Verb
}

// run begins to watch over a job whose ranks compute. adopted says that an
// earlier leader watched it before: what that left half done is undone, what
// it may not have finished is done again.
func (c *conductor) run(adopted bool, was mode) {
	c.suspend.known, c.suspend.sending = !adopted && !(was == recovering && c.suspend.ever), false
	if was == recovering || was == launching {
		c.suspend.now = false
	}
	c.rounds = schedule{}
	c.planRound(c.l.now)
	if o := c.j.Open; o != nil && adopted {
		c.abandon(o.Attempt, o.Epoch, "the leader was lost")
	}
	if adopted || was == recovering {
		c.publish(c.j.Newest(), adopted)
	}
	c.moreRounds()
	c.followRunning()
}

// followRunning does what the record calls for while the ranks compute.
func (c *conductor) followRunning() {
	if c.mode != running {
		return
	}
	c.heal()
	c.followSuspend()
}

// followSuspend makes the pods stand still or go on as the record says, but
// not in the middle of a checkpoint's stall. No round begins meanwhile: its
// attempt would be newer, and a repetition of this op be refused.
func (c *conductor) followSuspend() {
	s := &c.suspend
	if s.sending || c.round != nil && c.round.frozen {
		return
	}
	if s.known && s.now == c.j.Suspended {
		for _, v := range s.waiting {
			c.answer(v, Answer{})
		}
		s.waiting = nil
		return
	}
	want, op := c.j.Suspended, podapi.OpContinue
	if want {
		op = podapi.OpSuspend
	}
	s.sending, s.ever = true, s.ever || want
	c.l.attempt++
	ph := phase{op: op, scope: c.scope, attempt: c.l.attempt, limit: c.l.cfg.SealMax, again: true, forever: true}
	left := len(c.pods())
	end := func(f *Failure) {
		if f != nil {
			for _, v := range s.waiting {
				c.answer(v, Answer{Failure: f})
			}
			s.waiting = nil
		}
		if left--; left > 0 {
			return
		}
		s.sending, s.known, s.now = false, true, want
		c.followSuspend()
	}
	for _, p := range c.pods() {
		c.call(ph, p, func(d Done) { end(d.Failure) })
	}
}

// verb takes a user's wish.
func (l *Leader) verb(v Verb) {
	c := l.jobs[v.Job]
	if c == nil || c.j.State.Final() {
		l.emit(Answer{Ticket: v.Ticket, Failure: &Failure{Kind: Refused, Text: "job " + v.Job.String() + " is not running"}})
		return
	}
	c.verb(v)
}

func (c *conductor) answer(v Verb, a Answer) {
	a.Ticket = v.Ticket
	c.l.emit(a)
}

func (c *conductor) verb(v Verb) {
	switch v.Kind {
	case VerbCheckpoint, VerbVacate:
		if c.j.Suspended {
			c.answer(v, Answer{Failure: &Failure{Kind: Refused, Text: "the job is suspended: resume it first"}})
			return
		}
		v.since = c.l.now
		c.wanted = append(c.wanted, v)
		if c.mode == running && c.round == nil {
			c.rounds.at = c.l.now
		}
	case VerbSuspend, VerbResume:
		cmd := scheduler.Suspend{Job: c.id, On: v.Kind == VerbSuspend}
		c.l.propose(&scope{}, scheduler.Command{Suspend: &cmd}, func(d Done) {
			if d.Failure != nil || c.mode == ending {
				c.answer(v, Answer{Failure: orEnded(d.Failure)})
				return
			}
			c.suspend.waiting = append(c.suspend.waiting, v)
			c.followRunning()
		})
	case VerbKill:
		end := scheduler.End{Job: c.id, Code: v.Code, Reason: v.Reason}
		c.l.propose(&scope{}, scheduler.Command{End: &end}, func(d Done) { c.answer(v, Answer{Failure: d.Failure}) })
	case VerbPreflight:
		c.preflight(v)
	default:
		c.answer(v, Answer{Failure: &Failure{Kind: Refused, Text: "unknown request " + string(v.Kind)}})
	}
}

func orEnded(f *Failure) *Failure {
	if f == nil {
		f = &Failure{Kind: Refused, Text: "the job has ended"}
	}
	return f
}

// preflight asks all pods what stands in the way of a checkpoint.
func (c *conductor) preflight(v Verb) {
	if c.mode != running {
		c.answer(v, Answer{Failure: &Failure{Kind: RefusedNow, Text: "the job is " + string(c.j.Shown())}})
		return
	}
	c.l.attempt++
	var found []string
	failed := false
	ph := phase{op: podapi.OpPreflight, scope: &scope{}, attempt: c.l.attempt, limit: c.l.cfg.SealMax, again: true}
	c.all(ph, c.pods(), func(_ job.PodIndex, r *podapi.PhaseReply) {
		found = append(found, r.Obstacles...)
	}, func(_ job.PodIndex, f *Failure) {
		if !failed {
			failed = true
			c.answer(v, Answer{Failure: f})
		}
	}, func() { c.answer(v, Answer{Obstacles: found}) })
}
