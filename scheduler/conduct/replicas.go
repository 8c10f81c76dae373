package conduct

import (
	"fmt"
	"slices"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// imageCopies is the image of a pod in a round, on its way to K nodes.
type imageCopies struct {
	pod     job.PodIndex
	written podapi.Written
	bytes   int64
	holders []job.NodeID // the first is the pod's own node
	tried   []job.NodeID
	wait    int // copies on their way
	reason  string
	done    bool
}

// healKey names a copy that is made again.
type healKey struct {
	epoch job.Epoch
	pod   job.PodIndex
	node  scheduler.NodeRef
}

// targets returns where copies of a pod's image may go, the best first: the
// spare meant for the pod, then the nodes after the pod's own in the order of
// names, so that load and risk are spread.
func (c *conductor) targets(p job.PodIndex) []job.NodeID {
	own := c.j.Pods[p].Node
	var out []job.NodeID
	if in := c.j.Pods[p].Intended; in != "" && in != own && c.l.st.Nodes[in].State == scheduler.Alive {
		out = append(out, in)
	}
	alive := c.l.st.AliveNodes()
	at := slices.IndexFunc(alive, func(n scheduler.Node) bool { return n.ID == own })
	for i := range alive {
		n := alive[(at+1+i)%len(alive)].ID
		if n != own && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// replicate sends an image to as many more nodes as are wanted and there. A
// failed copy is tried on another node; with none left the round is given up.
func (c *conductor) replicate(r *round, im *imageCopies) {
	if im.done || c.round != r {
		return
	}
	want := min(c.j.Spec.Replicas, len(c.l.st.AliveNodes()))
	if len(im.holders) >= want {
		im.done = true
		c.imageDone(r)
		return
	}
	for _, to := range c.targets(im.pod) {
		if len(im.holders)+im.wait >= want {
			break
		}
		if slices.Contains(im.tried, to) {
			continue
		}
		im.tried = append(im.tried, to)
		im.wait++
		c.copyTo(r.scope, r.epoch, im.pod, im.holders[:1], to, im.written, false, func(d Done) {
			im.wait--
			if d.Failure == nil {
				im.holders = append(im.holders, to)
			} else {
				im.reason = fmt.Sprintf("copy to %s: %s", to, d.Failure.Text)
			}
			c.replicate(r, im)
		})
	}
	if im.wait == 0 && !im.done {
		c.failRound(r, fmt.Sprintf("image of %s on %d of %d nodes: %s", c.podText(im.pod), len(im.holders), want, im.reason), true)
	}
}

func (c *conductor) copyTo(s *scope, epoch job.Epoch, p job.PodIndex, from []job.NodeID, to job.NodeID, w podapi.Written, urgent bool, done func(Done)) {
	limit := c.l.cfg.CopyMax
	if urgent {
		limit = c.l.cfg.RestoreMax
	}
	from = slices.Clone(from)
	digests := urgent && c.j.Recovery != nil && len(c.j.Recovery.Lost) == len(c.j.Pods)
	place := scheduler.NodeRef{Node: to, Boot: c.l.st.Nodes[to].Boot}
	cl := c.l.request(s, limit, limit, func(ref Ref, timeout time.Duration) Action {
		return Copy{Ref: ref, Job: c.id, Epoch: epoch, Pod: p, From: from, To: to, Written: w, Urgent: urgent, Digests: digests, Timeout: timeout}
	}, done)
	cl.gone = func() bool { return !c.l.st.IsAlive(place) }
	if !urgent { // there are others to copy to
		cl.tries = c.l.now + c.l.cfg.CopyTries
	}
}

// publish tells every holder of a committed epoch, and with pods set every pod,
// about the commit; when all know, older epochs are collected. Pods that came
// back to that epoch know already.
func (c *conductor) publish(e *scheduler.Epoch, pods bool) {
	if e == nil {
		return
	}
	left, failed := 1, false
	count := func(d Done) {
		failed = failed || d.Failure != nil
		if left--; left == 0 && !failed {
			c.collect(e.Epoch)
		}
	}
	// A pod takes a commit only in the round that took the epoch. In another
	// incarnation none waits for it: it went back to an epoch.
	if pods && e.Incarnation == c.inc {
		left++
		ph := phase{op: podapi.OpCommit, attempt: e.Attempt, epoch: e.Epoch}
		ph.fill = func(_ job.PodIndex, q *podapi.PhaseRequest) { q.SetDigest, q.RaftIndex = e.SetDigest, e.Index }
		c.tell(ph, func(all bool) {
			if !all {
				count(Done{Failure: &Failure{Kind: Refused}})
				return
			}
			count(Done{})
		})
	}
	c.sealAll(*e, func() { left++ }, count)
	count(Done{})
}

// sealAll has every living holder of an epoch write its COMMITTED record; each
// is called before every request, done after its answer.
func (c *conductor) sealAll(e scheduler.Epoch, each func(), done func(Done)) {
	for _, n := range c.l.st.AliveNodes() {
		var held []job.PodIndex
		for _, im := range e.Images {
			if slices.Contains(im.Holders, n.ID) {
				held = append(held, im.Pod)
			}
		}
		if len(held) > 0 {
			each()
			c.seal(n.ID, e, held, done)
		}
	}
}

func (c *conductor) seal(node job.NodeID, e scheduler.Epoch, pods []job.PodIndex, done func(Done)) {
	j := c.j
	c.l.request(c.scope, c.l.cfg.SealMax, c.l.cfg.SealMax, func(ref Ref, timeout time.Duration) Action {
		return Seal{Ref: ref, Node: node, Job: j, Epoch: e, Pods: pods, Timeout: timeout}
	}, done)
}

// collect takes the epochs that epoch e, which every holder has sealed, makes
// superfluous: all but the one before it. That one is what a recovery returns
// to should all copies of an image of e turn out damaged.
func (c *conductor) collect(e job.Epoch) {
	before := e
	for _, o := range c.j.Epochs {
		if o.Epoch < e {
			before = o.Epoch // ascending
		}
	}
	c.collectBefore(before)
}

// collectBefore takes the epochs before e out of the log, and then their files
// from the nodes.
func (c *conductor) collectBefore(e job.Epoch) {
	old := slices.DeleteFunc(slices.Clone(c.j.Epochs), func(o scheduler.Epoch) bool { return o.Epoch >= e })
	if len(old) == 0 {
		return
	}
	c.l.propose(c.scope, scheduler.Command{Collect: &scheduler.Collect{Job: c.id, Before: e}}, func(d Done) {
		if d.Failure != nil {
			return
		}
		for _, o := range old {
			for _, n := range c.l.st.AliveNodes() {
				if c.mayHold(o, n.ID) {
					c.l.emit(Drop{Node: n.ID, Job: c.id, Epoch: o.Epoch})
				}
			}
		}
	})
}

func (c *conductor) mayHold(e scheduler.Epoch, n job.NodeID) bool {
	return slices.ContainsFunc(e.Images, func(im scheduler.PodImage) bool { return slices.Contains(im.Holders, n) }) ||
		slices.ContainsFunc(c.j.Pods, func(p scheduler.Pod) bool { return p.Node == n })
}

// heal makes lost replicas of the newest epoch again, one per image at a time.
func (c *conductor) heal() {
	e := c.j.Newest()
	if e == nil || c.round != nil {
		return
	}
	alive := len(c.l.st.AliveNodes())
	for _, im := range e.Images {
		if len(im.Holders) == 0 || len(im.Holders) >= min(c.j.Spec.Replicas, alive) {
			continue
		}
		for _, to := range c.targets(im.Pod) {
			ref := scheduler.NodeRef{Node: to, Boot: c.l.st.Nodes[to].Boot}
			key := healKey{epoch: e.Epoch, pod: im.Pod, node: ref}
			tried, known := c.healing[key]
			if tried { // on its way
				break
			}
			if known || slices.Contains(im.Holders, to) {
				continue
			}
			c.healing[key] = true
			c.healTo(*e, im, key)
			break
		}
	}
}

func (c *conductor) healTo(e scheduler.Epoch, im scheduler.PodImage, key healKey) {
	to := key.node
	c.copyTo(c.scope, e.Epoch, im.Pod, im.Holders, to.Node, im.Written, false, func(d Done) {
		c.healing[key] = false
		c.damaged(e.Epoch, im.Pod, d.Damaged)
		if d.Failure != nil {
			c.heal()
			return
		}
		c.seal(to.Node, e, []job.PodIndex{im.Pod}, func(Done) {})
		c.replicated(e.Epoch, im.Pod, to)
	})
}

// damaged tells the log of nodes that do not have an image intact any more.
func (c *conductor) damaged(e job.Epoch, p job.PodIndex, nodes []job.NodeID) {
	if len(nodes) == 0 {
		return
	}
	cmd := scheduler.Damaged{Job: c.id, Epoch: e, Pod: p, Nodes: nodes}
	c.l.propose(&scope{}, scheduler.Command{Damaged: &cmd}, func(Done) {})
}

// replicated tells the log of a new holder.
func (c *conductor) replicated(e job.Epoch, p job.PodIndex, n scheduler.NodeRef) {
	cmd := scheduler.Replicated{Job: c.id, Epoch: e, Pod: p, Node: n}
	c.l.propose(c.scope, scheduler.Command{Replicated: &cmd}, func(Done) {})
}
