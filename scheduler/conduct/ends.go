package conduct

import (
	"fmt"
	"slices"
	"syscall"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// forgetEnds drops what was known of ends of ranks: a rollback undoes them.
func (c *conductor) forgetEnds() {
	c.exits, c.bad, c.gone, c.why, c.goneWhy, c.hold = map[job.Rank]job.Exit{}, nil, nil, "", "", 0
}

// report takes an event of a pod's stream.
func (c *conductor) report(ev PodReport) {
	if int(ev.Pod) >= len(c.j.Pods) || ev.Pod < 0 || c.j.Pods[ev.Pod].Node != ev.Node {
		return
	}
	key := podKey{ev.Pod, c.j.Pods[ev.Pod].Built}
	if ev.Event.Seq <= c.seen[key] || ev.Event.Incarnation < key.built {
		return // read before, or of an earlier build of the pod
	}
	c.seen[key] = ev.Event.Seq
	if ev.Event.Incarnation != c.j.Incarnation || c.mode == ending {
		return
	}
	switch ev.Event.Kind {
	case "exit":
		if ev.Event.Exit != nil {
			c.exited(*ev.Event.Exit)
		}
	case "abort":
		x := job.Exit{Rank: ev.Event.Rank, Code: 1}
		if ev.Event.Exit != nil {
			x = *ev.Event.Exit
		}
		if x.Status() == 0 {
			x.Code = 1
		}
		if c.why == "" {
			c.why = fmt.Sprintf("rank %d called MPI_Abort: %s", x.Rank, ev.Event.Text)
		}
		c.exited(x)
	}
}

func (c *conductor) exited(x job.Exit) {
	if _, ok := c.exits[x.Rank]; ok {
		return
	}
	c.exits[x.Rank] = x
	if x.Status() != 0 {
		c.bad = append(c.bad, x.Rank)
		c.holdOn()
	}
}

// podGone takes the news that a pod vanished on a living node.
func (c *conductor) podGone(ev PodGone) {
	if int(ev.Pod) >= len(c.j.Pods) || ev.Pod < 0 {
		return
	}
	p := c.j.Pods[ev.Pod]
	if p.Node != ev.Node || ev.Incarnation != 0 && ev.Incarnation != p.Built || c.mode == ending || slices.Contains(c.gone, ev.Pod) {
		return
	}
	c.gone = append(c.gone, ev.Pod)
	c.goneWhy = ev.Text
	c.holdOn()
	switch c.mode {
	case recovering:
		if c.rec.began(ev.Pod) {
			c.redo(scheduler.Recover{Pods: []job.PodIndex{ev.Pod}, Why: scheduler.WhyRedo, Cause: fmt.Sprintf("the pod of %s ended: %s", c.podText(ev.Pod), ev.Text)})
		}
	}
}

// rollCall looks for pods that their node does not have.
func (c *conductor) rollCall(ev RollCall) {
	if c.mode != running {
		return
	}
	for _, p := range c.pods() {
		if c.where(p) != ev.Node {
			continue
		}
		built := c.j.Pods[p].Built
		switch since, missing := c.absent[p]; {
		case slices.Contains(ev.Pods, PodAt{Job: c.id, Pod: p, Built: built}):
			delete(c.absent, p)
		case !missing:
			c.absent[p] = c.l.now
		case c.l.now >= since+c.l.cfg.Absence:
			c.podGone(PodGone{Job: c.id, Pod: p, Node: ev.Node.Node, Incarnation: built, Text: "its supervisor is gone"})
		}
	}
}

func (c *conductor) holdOn() {
	if c.hold == 0 {
		c.since = c.l.now
		c.hold = c.l.now + c.l.cfg.CrashHold
	}
}

// judge decides what the ends of ranks mean, once they have been held for a
// moment: a node's death makes its peers' programs fail too, and is another
// matter.
func (c *conductor) judge() {
	if c.busy || c.l.now < c.pause {
		return
	}
	if c.mode == launching && len(c.gone) > 0 && c.hold <= c.l.now {
		// The answer to its start had the time to say it better.
		c.finish(scheduler.End{Code: job.ExitNoNodes, Reason: c.lossText()})
	}
	if c.mode != running {
		return
	}
	if len(c.bad) == 0 && len(c.gone) == 0 {
		if len(c.exits) == c.j.Spec.Ranks {
			c.finish(scheduler.End{Code: 0})
		}
		return
	}
	if c.hold > c.l.now {
		return
	}
	if c.l.now < c.since+c.l.cfg.CrashMax {
		for _, p := range c.pods() {
			// A daemon that is just being restarted may yet tell of a rank that
			// was killed.
			if c.l.guard.suspected(c.where(p)) || !c.l.guard.heardSince(c.where(p), c.since) {
				c.hold = c.l.now + c.l.cfg.CrashHold
				return
			}
		}
	}
	c.verdict()
}

// verdict ends the job, or proposes a recovery. Where a rank was killed or a pod
// vanished, the other ends are taken for its echo, whichever was heard of first:
// the programs of its peers find a connection broken, and abort. The pod itself
// kills no rank because another one failed.
func (c *conductor) verdict() {
	lost := slices.Clone(c.gone)
	killed := len(c.gone) > 0
	for _, r := range c.bad {
		killed = killed || c.exits[r].Signal == int(syscall.SIGKILL)
		if p := c.podOf(r); !slices.Contains(lost, p) {
			lost = append(lost, p)
		}
	}
	slices.Sort(lost)
	safe := c.j.Newest() != nil && c.j.Spec.OnFailure != job.OnFailureAbort
	text := c.lossText()
	switch {
	case killed && safe:
		c.redo(scheduler.Recover{Pods: lost, Why: scheduler.WhyKilled, Cause: text})
	case !killed && safe && c.j.Crashes < c.j.Spec.CrashRetries:
		c.redo(scheduler.Recover{Pods: lost, Why: scheduler.WhyCrash, Cause: text})
	case len(c.bad) > 0:
		c.finish(scheduler.End{Code: c.exits[c.bad[0]].Status(), Reason: text})
	default:
		c.finish(scheduler.End{Code: job.ExitNoNodes, Reason: text})
	}
}

func (c *conductor) podOf(r job.Rank) job.PodIndex {
	for _, p := range c.j.Pods {
		if slices.Contains(p.Ranks, r) {
			return p.Index
		}
	}
	return 0
}

// lossText says what ended, for people.
func (c *conductor) lossText() string {
	if len(c.bad) == 0 {
		return fmt.Sprintf("the pod of %s ended: %s", c.podText(c.gone[0]), c.goneWhy)
	}
	if c.why != "" {
		return c.why
	}
	r := c.bad[0]
	x := c.exits[r]
	on := c.j.Pods[c.podOf(r)].Node
	more := ""
	if n := len(c.bad) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more ranks)", n)
	}
	if x.Signal != 0 {
		return fmt.Sprintf("rank %d on %s was ended by signal %d (%s)%s", r, on, x.Signal, syscall.Signal(x.Signal), more)
	}
	return fmt.Sprintf("rank %d on %s exited with status %d%s", r, on, x.Code, more)
}
