package conduct

import (
	"fmt"
	"slices"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// mode is what a conductor is busy with.
type mode int

const (
	idle       mode = iota
	launching       // pods are being built
	running         // ranks compute; a round may be under way
	recovering      // going back to an epoch
	waiting         // recovering, without a node for some pod
	ending          // the job ended, its pods are taken away
)

// conductor leads one job. It follows the replicated record (j) and does what
// the record's state calls for; its own fields may be lost at any time.
type conductor struct {
	l       *Leader
	id      job.ID
	j       *scheduler.Job
	mode    mode
	inc     job.Incarnation // of the mode
	adopted bool            // the job was there when this leader's term began
	scope   *scope          // requests that belong to mode and incarnation
	attempt uint64          // of the recovery or launch; rounds have their own

	// Ends of ranks in this incarnation.
	seen    map[podKey]uint64 // newest event of each supervisor
	exits   map[job.Rank]job.Exit
	bad     []job.Rank     // ended badly, in order of arrival
	gone    []job.PodIndex // vanished on living nodes
	goneWhy string
	why     string                         // what an abort said
	absent  map[job.PodIndex]time.Duration // missing in roll calls since
	hold    time.Duration                  // when bad or gone is judged; 0 = nothing to judge
	since   time.Duration                  // when that began
	busy    bool                           // an End or Recover is proposed
	pause   time.Duration                  // no End or Recover before this: the last one was refused

	round    *round
	telling  int // pods that still have to hear of a commit or an abandoned round
	rounds   schedule
	suspend  suspension
	wanted   []Verb // checkpoint and vacate verbs that wait for a round
	healing  map[healKey]bool
	rec      *recovery
	places   []scheduler.OldPod // where pods of ended recoveries were
	holders  []job.NodeID       // nodes that held images
	broker   broker
	closing  closing
	freezeAt map[job.Epoch]time.Duration // when the ranks stood still for it
}

// podKey names a build of a pod; its supervisor numbers its events from 1.
type podKey struct {
	pod   job.PodIndex
	built job.Incarnation
}

func newConductor(l *Leader, id job.ID, adopted bool) *conductor {
	c := &conductor{
		l: l, id: id, adopted: adopted, scope: &scope{}, seen: map[podKey]uint64{}, exits: map[job.Rank]job.Exit{},
		healing: map[healKey]bool{}, freezeAt: map[job.Epoch]time.Duration{},
	}
	c.broker.c = c
	c.suspend.ever = adopted // nobody knows
	return c
}

// committed follows the replicated record.
func (c *conductor) committed(j *scheduler.Job) {
	first := c.j == nil
	c.j = j
	c.remember()
	if j.Incarnation != c.inc {
		c.broker.reset()
	}
	want := c.wantMode()
	if first || j.Incarnation != c.inc || want != c.mode {
		c.enter(want, first && c.adopted)
		return
	}
	if c.mode == running {
		c.followRunning()
	}
}

// remember keeps what a later record may have dropped.
func (c *conductor) remember() {
	if r := c.j.Recovery; r != nil {
		for _, o := range r.Old {
			if !slices.Contains(c.places, o) {
				c.places = append(c.places, o)
			}
		}
	}
	note := func(n job.NodeID) {
		if n != "" && !slices.Contains(c.holders, n) {
			c.holders = append(c.holders, n)
		}
	}
	for _, p := range c.j.Pods {
		note(p.Node)
	}
	for _, e := range c.j.Epochs {
		for _, im := range e.Images {
			for _, n := range im.Holders {
				note(n)
			}
		}
	}
}

func (c *conductor) wantMode() mode {
	switch {
	case c.j.State.Final():
		return ending
	case c.j.State == job.Starting:
		return launching
	case c.j.State == job.Recovering && c.j.Recovery.Waiting:
		return waiting
	case c.j.State == job.Recovering:
		return recovering
	}
	return running
}

// enter begins a mode. adopted says that an earlier leader had begun it.
func (c *conductor) enter(m mode, adopted bool) {
	was := c.mode
	c.scope.over = true
	c.scope = &scope{}
	c.dropRound("the job is no longer running")
	fresh := c.j.Incarnation != c.inc
	c.mode, c.inc, c.busy, c.pause = m, c.j.Incarnation, false, 0
	c.telling, c.absent = 0, map[job.PodIndex]time.Duration{}
	c.healing, c.rec = map[healKey]bool{}, nil
	c.broker.pulling = map[job.PodIndex]bool{}
	if fresh {
		c.forgetEnds()
	}
	switch m {
	case launching:
		c.launch()
	case running:
		c.run(adopted, was)
	case recovering, waiting:
		c.recover(adopted)
	case ending:
		c.end()
	}
}

// dismiss ends a conductor whose job is gone.
func (c *conductor) dismiss() {
	c.scope.over = true
	c.dropRound("the job has ended")
	c.refuseWanted("the job has ended")
	c.broker.reset()
}

func (c *conductor) tick() {
	c.judge()
	switch c.mode {
	case running:
		c.maybeRound()
	case recovering:
		c.recoverOn()
	case ending:
		c.endOn()
	}
	c.broker.tick()
}

func (c *conductor) next(d *deadline) {
	if c.mode == launching && !c.busy && len(c.gone) > 0 {
		d.by(max(c.hold, c.pause))
	}
	if c.mode == running && !c.busy && (c.hold > 0 || len(c.exits) == c.j.Spec.Ranks) {
		d.by(max(c.hold, c.pause))
	}
	if c.mayBegin() {
		c.rounds.next(d)
	}
	if c.mode == ending {
		c.closing.next(d)
	}
	c.broker.next(d)
}

// header identifies this leader's right to command.
func (c *conductor) header(attempt uint64) podapi.Header {
	return podapi.Header{Term: c.l.term, Job: c.id, Incarnation: c.inc, Attempt: attempt}
}

// spec is what a pod's supervisor is started with.
func (c *conductor) podSpec(p job.PodIndex, restore bool) podapi.PodSpec {
	return podapi.PodSpec{
		Header: c.header(c.attempt), Spec: c.j.Spec, Node: c.j.Pods[p].Node, Boot: c.j.Pods[p].Boot,
		Placement: c.j.Placement()[p], Book: c.j.Book(), Layout: c.j.Placement(),
		Restore: restore, LeaseMS: c.l.cfg.Lease.Milliseconds(),
	}
}

// phase is how an op is sent to pods.
type phase struct {
	op      podapi.Op
	scope   *scope
	attempt uint64
	epoch   job.Epoch
	limit   time.Duration
	again   bool // RefusedNow is repeated
	forever bool // limit is for one try only
	fill    func(job.PodIndex, *podapi.PhaseRequest)
}

// call sends an op to one pod.
func (c *conductor) call(p phase, pod job.PodIndex, done func(Done)) {
	req := podapi.PhaseRequest{Header: c.header(p.attempt), Op: p.op, Epoch: p.epoch, DeadlineMS: (p.limit + slack).Milliseconds()}
	if p.fill != nil {
		p.fill(pod, &req)
	}
	node := c.j.Pods[pod].Node
	limit := p.limit
	if p.forever {
		limit = 0
	}
	cl := c.l.request(p.scope, limit, p.limit, func(ref Ref, timeout time.Duration) Action {
		return Call{Ref: ref, Job: c.id, Pod: pod, Node: node, Request: req, Timeout: timeout}
	}, done)
	cl.again = p.again
}

// all sends an op to pods in parallel. each is called for every answer, then,
// after the last success, done; fail is called for every failure, and done
// never after one.
func (c *conductor) all(p phase, pods []job.PodIndex, each func(job.PodIndex, *podapi.PhaseReply), fail func(job.PodIndex, *Failure), done func()) {
	left := len(pods)
	if left == 0 {
		done()
		return
	}
	for _, pod := range pods {
		c.call(p, pod, func(d Done) {
			if d.Failure != nil {
				fail(pod, d.Failure)
				return
			}
			if each != nil {
				each(pod, reply(d))
			}
			if left--; left == 0 {
				done()
			}
		})
	}
}

// reply returns the reply of d, an empty one when there is none.
func reply(d Done) *podapi.PhaseReply {
	if d.Reply == nil {
		return &podapi.PhaseReply{}
	}
	return d.Reply
}

// pods returns the indices of all pods that have a node.
func (c *conductor) pods() []job.PodIndex {
	var out []job.PodIndex
	for _, p := range c.j.Pods {
		if p.Node != "" {
			out = append(out, p.Index)
		}
	}
	return out
}

// where returns the life of the node that a pod is on.
func (c *conductor) where(p job.PodIndex) scheduler.NodeRef {
	return scheduler.NodeRef{Node: c.j.Pods[p].Node, Boot: c.j.Pods[p].Boot}
}

// podText names a pod for people.
func (c *conductor) podText(p job.PodIndex) string {
	ranks := c.j.Pods[p].Ranks
	if len(ranks) == 1 {
		return fmt.Sprintf("rank %d on %s", ranks[0], c.j.Pods[p].Node)
	}
	return fmt.Sprintf("ranks %v on %s", ranks, c.j.Pods[p].Node)
}

// finish proposes the end of the job.
func (c *conductor) finish(e scheduler.End) {
	if c.busy {
		return
	}
	c.busy = true
	e.Job, e.Incarnation = c.id, c.inc
	for _, r := range sortedRanks(c.exits) {
		e.Exits = append(e.Exits, c.exits[r])
	}
	c.l.propose(c.scope, scheduler.Command{End: &e}, func(Done) { c.refused() })
}

// redo proposes a recovery for pods that are lost without their node.
func (c *conductor) redo(r scheduler.Recover) {
	if c.busy {
		return
	}
	c.busy = true
	r.Job, r.Incarnation = c.id, c.inc
	c.l.propose(c.scope, scheduler.Command{Recover: &r}, func(d Done) {
		c.refused()
		if d.Failure != nil && c.mode != running {
			c.finish(scheduler.End{Code: job.ExitInternal, Reason: r.Cause + "; " + d.Failure.Text})
		}
	})
}

// refused opens the way for another End or Recover after the last one had no
// effect: had it had one, the mode would have changed before its answer came.
func (c *conductor) refused() {
	c.busy, c.pause = false, c.l.now+c.l.cfg.Retry
}

func sortedRanks(m map[job.Rank]job.Exit) []job.Rank {
	out := make([]job.Rank, 0, len(m))
	for r := range m {
		out = append(out, r)
	}
	slices.Sort(out)
	return out
}
