package conduct

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// recovery is a return to an epoch under way:
//
//	survivors:  stop all -> rollback                       \
//	lost pods:  kill old builds -> start pod, stage image   >  barrier, fence -> release all -> log
//	            -> restore                                 /
//
// Pods never resume by themselves in between. Whatever fails, the log is asked
// for a new recovery with what is lost by now, in a new incarnation; so it is
// when a new leader finds one under way.
type recovery struct {
	r        *scheduler.Recovery
	begun    time.Duration
	stopped  time.Duration
	marks    map[job.PodIndex][]podapi.Mark
	killed   map[scheduler.OldPod]bool // old builds on living nodes that are gone
	building map[job.PodIndex]bool     // supervisors asked for
	left     int                       // pods that are not whole yet
	whole    time.Duration             // when all were
	released bool                      // the release was sent
	ms       map[string]float64
	notes    []string // of the pods, at most maxNotes
}

// maxNotes bounds what of the pods' notes goes into the log.
const maxNotes = 20

// began reports whether the supervisor of p is wanted by this recovery: a
// survivor's, or one that was asked for.
func (r *recovery) began(p job.PodIndex) bool { return r != nil && (!r.r.IsLost(p) || r.building[p]) }

// recover begins to carry out the record's recovery. One that an earlier
// leader had begun is begun anew: nobody knows how far its pods came.
func (c *conductor) recover(adopted bool) {
	if adopted && c.mode == recovering {
		c.redo(scheduler.Recover{Why: scheduler.WhyRedo, Cause: c.j.Recovery.Cause + " (again: the leader was lost)"})
		return
	}
	c.l.attempt++
	c.attempt = c.l.attempt
	r := &recovery{
		r: c.j.Recovery, begun: c.l.now, marks: map[job.PodIndex][]podapi.Mark{}, killed: map[scheduler.OldPod]bool{},
		building: map[job.PodIndex]bool{}, left: len(c.j.Pods), ms: map[string]float64{},
	}
	c.rec = r
	r.ms["detect"] = r.r.DetectMS
	if c.l.decided > 0 && c.l.now-c.l.decided < c.l.cfg.ProposeMax {
		r.ms["agree"] = ms(c.l.now - c.l.decided)
	}
	c.stopSurvivors()
	if c.mode == waiting {
		return
	}
	c.killOld()
	for _, lp := range r.r.Lost {
		c.stage(lp)
	}
}

// lose asks for a recovery that counts pod p among the lost.
func (c *conductor) lose(p job.PodIndex, move bool, what string, f *Failure) {
	r := scheduler.Recover{Pods: []job.PodIndex{p}, Why: scheduler.WhyRedo, Cause: fmt.Sprintf("%s: %s: %s", what, c.podText(p), f.Text)}
	if move {
		r.Move = r.Pods
	}
	c.redo(r)
}

func (c *conductor) recoveryPhase(op podapi.Op, fill func(job.PodIndex, *podapi.PhaseRequest)) phase {
	return phase{op: op, scope: c.scope, attempt: c.attempt, epoch: c.rec.r.Epoch, limit: c.l.cfg.RestoreMax, again: true, fill: fill}
}

func (c *conductor) survivors() []job.PodIndex {
	return slices.DeleteFunc(c.pods(), c.rec.r.IsLost)
}

// stopSurvivors freezes the pods that live and asks for the marks of their
// connections; then, unless a pod still waits for a node, they roll back.
func (c *conductor) stopSurvivors() {
	r := c.rec
	fill := func(_ job.PodIndex, q *podapi.PhaseRequest) { q.Lost = r.r.LostPods() }
	c.all(c.recoveryPhase(podapi.OpStop, fill), c.survivors(), func(p job.PodIndex, rep *podapi.PhaseReply) {
		r.marks[p] = rep.Marks
		if len(rep.LostRanks) > 0 {
			c.lose(p, false, "stop", &Failure{Text: fmt.Sprintf("ranks %v are lost", rep.LostRanks)})
		}
	}, func(p job.PodIndex, f *Failure) {
		c.lose(p, false, "stop", f)
	}, func() {
		r.stopped = c.l.now
		r.ms["stop"] = ms(r.stopped - r.begun)
		if c.mode == recovering {
			c.rollback()
		}
	})
}

func (c *conductor) rollback() {
	r := c.rec
	peers := livePeers(r.marks)
	fill := func(p job.PodIndex, q *podapi.PhaseRequest) {
		q.Peers, q.Lost, q.Book, q.Placement = peers[p], r.r.LostPods(), c.j.Book(), c.j.Placement()
	}
	c.all(c.recoveryPhase(podapi.OpRollback, fill), c.survivors(), func(p job.PodIndex, rep *podapi.PhaseReply) {
		if len(rep.LostRanks) > 0 {
			c.lose(p, false, "rollback", &Failure{Text: fmt.Sprintf("ranks %v could not be put back", rep.LostRanks)})
			return
		}
		c.podWhole("rollback", r.stopped, rep)
	}, func(p job.PodIndex, f *Failure) {
		c.lose(p, false, "rollback", f)
	}, func() {})
}

// livePeers gives every pod the marks of the other ends that live. Ends that
// lead to lost pods have none.
func livePeers(marks map[job.PodIndex][]podapi.Mark) map[job.PodIndex][]podapi.Mark {
	type end struct {
		pod  job.PodIndex // of loopback connections: the address is the same in every pod
		flow podapi.Flow
	}
	where := func(p job.PodIndex, f podapi.Flow) end {
		if a, err := netip.ParseAddrPort(f.Local); err == nil && !a.Addr().Unmap().IsLoopback() {
			p = -1
		}
		return end{p, f}
	}
	ends := map[end]podapi.Mark{}
	for p, ms := range marks {
		for _, m := range ms {
			ends[where(p, m.Flow)] = m
		}
	}
	out := map[job.PodIndex][]podapi.Mark{}
	for p, ms := range marks {
		for _, m := range ms {
			if peer, ok := ends[where(p, podapi.Flow{Local: m.Remote, Remote: m.Local})]; ok {
				out[p] = append(out[p], peer)
			}
		}
	}
	return out
}

// killOld makes sure of former builds of lost pods on nodes that live.
func (c *conductor) killOld() {
	for _, o := range c.rec.r.Old {
		if !c.l.st.IsAlive(o.Place) || o.Place == c.where(o.Pod) {
			continue // fenced with its node; or killed by stage, in its turn
		}
		c.killPod(o, func(Done) { c.rec.killed[o] = true }).always = true
	}
}

// killPod kills the former builds of a lost pod on a living node.
func (c *conductor) killPod(o scheduler.OldPod, done func(Done)) *call {
	upTo := c.inc - 1
	return c.l.request(c.scope, 0, c.l.cfg.KillMax, func(ref Ref, timeout time.Duration) Action {
		return KillPod{Ref: ref, Job: c.id, Pod: o.Pod, Node: o.Place.Node, UpTo: upTo, Timeout: timeout}
	}, done)
}

// stage rebuilds a lost pod: its image is brought to its new node and checked,
// while a former build there is killed and an empty pod started; then the ranks
// are restored.
func (c *conductor) stage(lp scheduler.LostPod) {
	r := c.rec
	left := 2
	ready := func() {
		if left--; left == 0 {
			c.restore(lp.Pod)
		}
	}
	here := scheduler.OldPod{Pod: lp.Pod, Place: c.where(lp.Pod)}
	c.killPod(here, func(d Done) {
		if d.Failure != nil {
			c.lose(lp.Pod, true, "kill", d.Failure)
			return
		}
		r.killed[here] = true
		c.build(lp.Pod, ready)
	})
	im := c.j.Find(r.r.Epoch).Images[lp.Pod]
	c.copyTo(c.scope, r.r.Epoch, lp.Pod, im.Holders, lp.To, im.Written, true, func(d Done) {
		if d.Failure != nil && d.Failure.Kind == NoIntactCopy {
			c.noImage(lp.Pod, d)
			return
		}
		c.damaged(r.r.Epoch, lp.Pod, d.Damaged)
		if d.Failure != nil {
			c.lose(lp.Pod, true, "image", d.Failure)
			return
		}
		r.ms["stage"] = max(r.ms["stage"], ms(c.l.now-r.begun))
		if !slices.Contains(im.Holders, lp.To) {
			c.replicated(r.r.Epoch, lp.Pod, c.where(lp.Pod))
		}
		ready()
	})
}

// noImage asks for a recovery that does without the image of a pod: nobody has
// it intact any more. The log goes back to an older epoch if one is whole.
func (c *conductor) noImage(p job.PodIndex, d Done) {
	c.redo(scheduler.Recover{
		Pods: []job.PodIndex{p}, Why: scheduler.WhyRedo, Cause: fmt.Sprintf("image: %s: %s", c.podText(p), d.Failure.Text),
		Damaged: &scheduler.Damaged{Epoch: c.rec.r.Epoch, Pod: p, Nodes: d.Damaged},
	})
}

// build starts the supervisor of a lost pod.
func (c *conductor) build(p job.PodIndex, ready func()) {
	r, begun := c.rec, c.l.now
	r.building[p] = true
	c.startPod(p, true, c.l.cfg.RestoreMax, func(d Done) {
		if d.Failure != nil {
			c.lose(p, true, "start", d.Failure)
			return
		}
		r.ms["start"] = max(r.ms["start"], ms(c.l.now-begun))
		ready()
	})
}

// restore brings the ranks of a lost pod back.
func (c *conductor) restore(p job.PodIndex) {
	r, begun := c.rec, c.l.now
	fill := func(_ job.PodIndex, q *podapi.PhaseRequest) {
		q.Book, q.Placement, q.Lost = c.j.Book(), c.j.Placement(), r.r.LostPods()
	}
	c.call(c.recoveryPhase(podapi.OpRestore, fill), p, func(d Done) {
		if d.Failure != nil {
			c.lose(p, true, "restore", d.Failure)
			return
		}
		c.podWhole("restore", begun, reply(d))
	})
}

// podWhole counts a pod that is back at the epoch.
func (c *conductor) podWhole(what string, begun time.Duration, rep *podapi.PhaseReply) {
	r := c.rec
	r.ms[what] = max(r.ms[what], ms(c.l.now-begun))
	r.bill(rep)
	if r.left--; r.left == 0 {
		r.whole = c.l.now
	}
}

// bill adds what a pod says of its phases: the slowest pod counts.
func (r *recovery) bill(rep *podapi.PhaseReply) {
	for k, v := range rep.TimesMS {
		r.ms[k] = max(r.ms[k], v)
	}
	for _, n := range rep.Notes {
		if len(r.notes) < maxNotes && !slices.Contains(r.notes, n) {
			r.notes = append(r.notes, n)
		}
	}
}

// recoverOn releases the pods once all are whole and every former build of a
// lost pod is known dead.
func (c *conductor) recoverOn() {
	r := c.rec
	if r == nil || r.left > 0 || r.released || c.busy {
		return
	}
	fenced := true
	for _, o := range r.r.Old {
		if !r.killed[o] && !c.l.guard.fenced(o.Place) {
			fenced = false
		}
	}
	if !fenced {
		return
	}
	r.released = true
	r.ms["fence"] = ms(c.l.now - r.whole)
	sent := c.l.now
	fill := func(_ job.PodIndex, q *podapi.PhaseRequest) { q.Suspended = c.j.Suspended }
	c.all(c.recoveryPhase(podapi.OpRelease, fill), c.pods(), func(_ job.PodIndex, rep *podapi.PhaseReply) {
		r.bill(rep)
		for _, x := range rep.Exits {
			c.exited(x)
		}
	}, func(p job.PodIndex, f *Failure) {
		c.lose(p, false, "release", f)
	}, func() {
		r.ms["release"] = ms(c.l.now - sent)
		r.ms["total"] = ms(c.l.now-r.begun) + r.ms["agree"]
		if at, ok := c.freezeAt[r.r.Epoch]; ok {
			r.ms["lost_work"] = max(0, ms(r.begun-at)-r.ms["detect"])
		}
		c.l.propose(c.scope, scheduler.Command{Recovered: &scheduler.Recovered{Job: c.id, Incarnation: c.inc, MS: r.ms, Notes: r.notes}}, func(Done) {})
	})
}
