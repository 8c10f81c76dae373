package conduct

import (
	"time"

	"github.com/lampause/lampause/scheduler"
)

// closing is the taking down of an ended job.
type closing struct {
	left  int           // pods whose end is not known yet
	at    time.Duration // not retired before
	asked bool
}

func (k *closing) next(d *deadline) {
	if !k.asked && k.left == 0 {
		d.by(k.at)
	}
}

// end takes the pods of an ended job away. Those on dead nodes are waited for
// until they are fenced, so that a restart can never meet them.
func (c *conductor) end() {
	c.refuseWanted("the job has ended")
	for _, v := range c.suspend.waiting {
		c.answer(v, Answer{Failure: orEnded(nil)})
	}
	c.suspend.waiting = nil
	c.broker.reset()
	c.l.attempt++
	c.closing = closing{at: c.l.now}
	if c.adopted { // former builds are not known
		c.closing.at = max(c.l.now, c.l.start+c.l.cfg.Lease+c.l.cfg.LeaseMargin)
	}
	for _, p := range c.j.Pods {
		if p.Node != "" {
			c.places = append(c.places, scheduler.OldPod{Pod: p.Index, Place: c.where(p.Index)})
		}
	}
	done := map[scheduler.OldPod]bool{}
	for _, o := range c.places {
		if done[o] || !c.l.st.IsAlive(o.Place) {
			continue
		}
		done[o] = true
		c.closing.left++
		c.killLast(o)
	}
	if e := c.j.Newest(); e != nil { // kept: a fresh cluster must be able to read it
		c.sealAll(*e, func() { c.closing.left++ }, func(Done) { c.closing.left-- })
	}
}

// killLast kills a pod of an ended job, again and again while its node lives.
func (c *conductor) killLast(o scheduler.OldPod) {
	drain := o.Place == c.where(o.Pod)
	c.l.request(c.scope, c.l.cfg.KillMax, c.l.cfg.KillMax, func(ref Ref, timeout time.Duration) Action {
		return KillPod{Ref: ref, Job: c.id, Pod: o.Pod, Node: o.Place.Node, UpTo: c.inc, Drain: drain, Timeout: timeout}
	}, func(d Done) {
		if d.Failure != nil && c.l.st.IsAlive(o.Place) {
			c.killLast(o)
			return
		}
		c.closing.left--
	})
}

// endOn retires the job once nothing of it is left.
func (c *conductor) endOn() {
	k := &c.closing
	if k.asked || k.left > 0 || c.l.now < k.at {
		return
	}
	for _, o := range c.places {
		if !c.l.st.IsAlive(o.Place) && !c.l.guard.fenced(o.Place) {
			k.at = c.l.now + c.l.cfg.Retry
			return
		}
	}
	k.asked = true
	if !c.j.KeepImages {
		for _, n := range c.holders {
			if c.l.st.Nodes[n].State == scheduler.Alive {
				c.l.emit(Drop{Node: n, Job: c.id})
			}
		}
	}
	c.l.propose(c.scope, scheduler.Command{Retire: &scheduler.Retire{Job: c.id}}, func(Done) {})
}
