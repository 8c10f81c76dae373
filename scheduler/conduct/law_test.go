package conduct

import (
	"slices"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// law is what the world remembers in order to notice what may never happen.
type law struct {
	rounds    map[job.Epoch]turn                           // in which an epoch number was frozen
	ops       map[turn]map[podapi.Op]map[job.PodIndex]bool // done so far
	committed map[job.Epoch]bool                           // ever
	live      map[*scope]bool                              // scratch of audit
}

func newLaw() law {
	return law{rounds: map[job.Epoch]turn{}, ops: map[turn]map[podapi.Op]map[job.PodIndex]bool{}, committed: map[job.Epoch]bool{}, live: map[*scope]bool{}}
}

// did notes that a pod has done an op.
func (l *law) did(r turn, op podapi.Op, p job.PodIndex) {
	if l.ops[r] == nil {
		l.ops[r] = map[podapi.Op]map[job.PodIndex]bool{}
	}
	if l.ops[r][op] == nil {
		l.ops[r][op] = map[job.PodIndex]bool{}
	}
	l.ops[r][op][p] = true
}

// before judges an op that a pod is about to carry out: numbers of epochs are
// never used twice, and between two ops of a stall or a recovery lies a barrier
// of all pods that take part.
func (w *world) before(p *wpod, q podapi.PhaseRequest, r turn) {
	j := w.st.Jobs[p.spec.Job]
	if q.Op == podapi.OpFreeze {
		if was, used := w.law.rounds[q.Epoch]; used && was != r {
			w.fail("epoch %d is taken in round %v and again in %v", q.Epoch, was, r)
		}
		w.law.rounds[q.Epoch] = r
	}
	if q.Op == podapi.OpCommit && !w.law.committed[q.Epoch] {
		w.fail("pod %d told that epoch %d is committed", p.spec.Placement.Pod, q.Epoch)
	}
	earlier := map[podapi.Op]podapi.Op{
		podapi.OpCaptureSend: podapi.OpFreeze, podapi.OpCaptureRecv: podapi.OpCaptureSend,
		podapi.OpResume: podapi.OpCaptureRecv, podapi.OpRollback: podapi.OpStop,
	}[q.Op]
	if earlier == "" || w.law.ops[r] == nil {
		return
	}
	for _, o := range j.Pods {
		lost := q.Op == podapi.OpRollback && slices.Contains(q.Lost, o.Index)
		if !lost && !w.law.ops[r][earlier][o.Index] && j.Incarnation == q.Incarnation {
			w.fail("%s on pod %d before %s on pod %d", q.Op, p.spec.Placement.Pod, earlier, o.Index)
		}
	}
}

// followed judges what the log made of a command.
func (w *world) followed(was *scheduler.State, c scheduler.Command) {
	j := w.st.Jobs[1]
	if was == nil || j == nil || was.Jobs[1] == nil {
		return
	}
	o := was.Jobs[1]
	for _, e := range j.Epochs {
		if o.Find(e.Epoch) != nil {
			continue
		}
		if c.Commit == nil || o.State != job.Running || o.Open == nil || o.Open.Epoch != e.Epoch || w.law.committed[e.Epoch] {
			w.fail("epoch %d committed while %s", e.Epoch, o.State)
		}
		w.law.committed[e.Epoch] = true
		w.durable(j, e)
	}
	if c.End != nil && c.End.Code == 0 && j.State == job.Done && o.State != job.Done {
		w.completed(j)
	}
}

// durable judges an epoch that was just committed: every image is where the
// log says, of the same round, and on as many nodes as were wanted and there.
func (w *world) durable(j *scheduler.Job, e scheduler.Epoch) {
	for _, im := range e.Images {
		for _, h := range im.Holders {
			got, ok := w.nodes[h].images[imageKey{e.Epoch, im.Pod}]
			if !ok || got.attempt != e.Attempt {
				w.fail("epoch %d committed, and %s has no image of pod %d of that round", e.Epoch, h, im.Pod)
			}
		}
	}
}

// completed judges a job that ended well: every pod computed all of its work.
func (w *world) completed(j *scheduler.Job) {
	for _, p := range j.Pods {
		if n := w.nodes[p.Node]; n.pod != nil && n.pod.spec.Placement.Pod == p.Index && (!n.pod.ended || n.pod.progress < w.work || n.pod.passed < fences) {
			w.fail("the job ended well, and pod %d had done %v of %v", p.Index, n.pod.progress, w.work)
		}
	}
}

// check looks for what may never be, whatever happened.
func (w *world) check() {
	var computes [8]*wpod
	var first *wpod
	for _, n := range w.order {
		p := n.pod
		if p == nil || !n.up || !p.computing(w.now) {
			continue
		}
		i := p.spec.Placement.Pod
		if o := computes[i]; o != nil {
			w.fail("pod %d computes on %s and on %s", i, o.node.id, n.id)
		}
		computes[i] = p
		if first != nil && first.head.Incarnation != p.head.Incarnation {
			w.fail("pods of incarnations %d and %d compute", first.head.Incarnation, p.head.Incarnation)
		}
		first = p
	}
}

// releasePod lets the ranks go on, which may be only when those of all pods
// are back at the same cut and no former build of a lost pod can compute.
func (w *world) releasePod(p *wpod, q podapi.PhaseRequest) {
	p.state, p.since, p.seen = "running", w.now, max(p.seen, q.Epoch)
	w.released++
	j := w.st.Jobs[p.spec.Job]
	if j.Incarnation != q.Incarnation {
		return
	}
	for _, sp := range j.Pods {
		n := w.nodes[sp.Node]
		if n == nil || !n.up || n.pod == nil {
			continue
		}
		o := n.pod
		if o.whole != q.Epoch || o.turn.inc != q.Incarnation {
			w.fail("pod %d released while pod %d is %s", p.spec.Placement.Pod, sp.Index, o.state)
		}
		if o.cut.attempt != p.cut.attempt {
			w.fail("epoch %d: pods of different rounds", q.Epoch)
		}
	}
	if j.Recovery == nil {
		return
	}
	for _, old := range j.Recovery.Old {
		if o := w.nodes[old.Place.Node].pod; o != nil && o.spec.Incarnation < j.Pods[old.Pod].Built && o.spec.Placement.Pod == old.Pod && o.lease > w.now {
			w.fail("pod %d released, and a former build of pod %d on %s has a lease", p.spec.Placement.Pod, old.Pod, old.Place.Node)
		}
	}
}

// audit looks into a leader: whoever waits must wait for something that ends.
func (w *world) audit(l *Leader) {
	live := w.law.live
	clear(live)
	for _, c := range l.calls {
		if !c.scope.over {
			live[c.scope] = true
		}
		if c.retryAt == 0 && c.late == 0 {
			w.fail("request %d has no deadline", c.ref)
		}
	}
	for _, c := range l.jobs {
		if why := c.stuck(live); why != "" {
			w.fail("job %v: %s, and nothing would end that", c.id, why)
		}
	}
}

// stuck says what a conductor waits for in vain.
func (c *conductor) stuck(live map[*scope]bool) string {
	mine := live[c.scope]
	switch {
	case c.mode != c.wantMode() || c.inc != c.j.Incarnation:
		return "it does not follow the log"
	case c.busy && !mine:
		return "an end or a recovery is proposed"
	case c.mode == launching && !mine && len(c.gone) == 0:
		return "pods are started"
	case c.mode == recovering && c.rec == nil && !mine:
		return "a recovery was not begun"
	case c.mode == recovering && c.rec != nil && !mine && (c.rec.left > 0 || c.rec.released || len(c.l.guard.wake) == 0):
		return "a recovery is under way"
	case c.mode == running && c.round != nil && !live[c.round.scope]:
		return "a round is under way: " + string(c.round.phase)
	case c.mode == running && c.telling > 0 && !mine:
		return "pods are told of a round"
	case c.mode == running && c.suspend.sending && !mine:
		return "pods are told to stand still or to go on"
	case c.mode == running && c.telling < 0:
		return "more pods were told than there are"
	case c.mode == ending && (c.closing.left > 0 || c.closing.asked) && !mine:
		return "pods are taken away"
	}
	return ""
}
