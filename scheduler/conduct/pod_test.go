package conduct

import (
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// phase is what a supervisor does with an op: the contract of podapi, and the
// rules that a real one must keep as well.
func (w *world) phase(p *wpod, q podapi.PhaseRequest) Done {
	stale := func(text string) Done { return Done{Failure: &Failure{Kind: Refused, Text: text}} }
	older := q.Term < p.head.Term || q.Term == p.head.Term && q.Attempt < p.head.Attempt
	switch {
	case older:
		return stale("of an older term or attempt")
	case q.Incarnation < p.head.Incarnation:
		return stale("of an older incarnation")
	case q.Attempt <= p.void && q.Term == p.head.Term && q.Op != podapi.OpAbandon:
		return stale("the attempt is void")
	}
	p.settle(w.now)
	if q.Term > p.head.Term {
		p.void = 0
	}
	p.head.Term, p.head.Attempt = q.Term, q.Attempt
	if w.chance(w.lazy / 4) {
		return Done{Failure: &Failure{Kind: RefusedNow, Text: "not now"}}
	}
	switch q.Op {
	case podapi.OpStop, podapi.OpRollback, podapi.OpRestore, podapi.OpRelease:
		if w.chance(w.lazy / 8) {
			return Done{Failure: &Failure{Kind: FailedForGood, Text: "something is broken"}}
		}
		return w.recoveryOp(p, q)
	}
	return w.checkpointOp(p, q)
}

func (w *world) checkpointOp(p *wpod, q podapi.PhaseRequest) Done {
	ok := Done{Reply: &podapi.PhaseReply{Marks: []podapi.Mark{}}}
	no := func(text string) Done { return Done{Failure: &Failure{Kind: Refused, Text: text}} }
	if q.Incarnation != p.head.Incarnation {
		return no("of another incarnation")
	}
	switch q.Op {
	case podapi.OpFreeze:
		if p.state == "frozen" && p.frozenBy == q.Attempt {
			return ok
		}
		if p.state != "running" {
			return no("not running but " + p.state)
		}
		p.state, p.frozenBy = "frozen", q.Attempt
		w.after(time.Duration(q.DeadlineMS)*time.Millisecond, func() { w.thaw(p, q.Attempt) })
	case podapi.OpCaptureSend, podapi.OpCaptureRecv:
		if p.state != "frozen" || p.frozenBy != q.Attempt {
			return no("not frozen by this attempt")
		}
		p.taken[q.Epoch] = wimage{term: q.Term, attempt: q.Attempt, progress: p.progress, passed: p.passed, waits: p.waits}
	case podapi.OpResume:
		if p.state == "frozen" && p.frozenBy == q.Attempt {
			p.state, p.since, p.frozenBy = "running", w.now, 0
		}
	case podapi.OpWrite:
		im, taken := p.taken[q.Epoch]
		if !taken {
			return no("nothing taken")
		}
		p.node.images[imageKey{p.spec.Job, q.Epoch, p.spec.Placement.Pod}] = im
		ok.Reply.Written = &podapi.Written{Digest: "d", Files: map[string]podapi.File{"m": {Size: 10}}}
	case podapi.OpCommit:
		if j := w.st.Jobs[p.spec.Job]; !j.State.Final() && j.Find(q.Epoch) == nil {
			w.fail("pod %d told that epoch %d is committed", p.spec.Placement.Pod, q.Epoch)
		}
		p.seen = max(p.seen, q.Epoch)
	case podapi.OpAbandon:
		if p.state == "frozen" {
			p.state, p.since, p.frozenBy = "running", w.now, 0
		}
		p.void = max(p.void, q.Attempt)
		delete(p.taken, q.Epoch)
	case podapi.OpSuspend:
		p.suspend = true
	case podapi.OpContinue:
		p.suspend, p.since = false, w.now
	}
	return ok
}

// thaw is what a pod does by itself when its deadline passed in a stall.
func (w *world) thaw(p *wpod, attempt uint64) {
	if !p.dead && p.state == "frozen" && p.frozenBy == attempt {
		p.state, p.since, p.frozenBy = "running", w.now, 0
		p.void = max(p.void, attempt)
	}
}

func (w *world) recoveryOp(p *wpod, q podapi.PhaseRequest) Done {
	ok := Done{Reply: &podapi.PhaseReply{Marks: []podapi.Mark{}}}
	no := func(text string) Done { return Done{Failure: &Failure{Kind: Refused, Text: text}} }
	if q.Op == podapi.OpRollback || q.Op == podapi.OpRestore {
		if j := w.st.Jobs[p.spec.Job]; !j.State.Final() && j.Find(q.Epoch) == nil {
			w.fail("pod %d returns to epoch %d, which is not committed", p.spec.Placement.Pod, q.Epoch)
		}
	}
	im, have := p.node.images[imageKey{p.spec.Job, q.Epoch, p.spec.Placement.Pod}]
	switch q.Op {
	case podapi.OpStop:
		if p.state == "building" {
			return no("a pod that is being built")
		}
		p.state, p.whole = "stopped", 0
	case podapi.OpRollback:
		if p.state != "stopped" {
			return no("not stopped but " + p.state)
		}
		if !have {
			return no("no image to roll back to")
		}
		p.back(q.Epoch, im)
	case podapi.OpRestore:
		if p.state == "whole" && p.whole == q.Epoch {
			return ok
		}
		if p.state != "building" || !have {
			return no("cannot restore: " + p.state)
		}
		p.back(q.Epoch, im)
	case podapi.OpRelease:
		if p.state == "running" && p.head.Incarnation == q.Incarnation {
			return ok
		}
		if p.state != "whole" || p.whole != q.Epoch {
			return no("not whole but " + p.state)
		}
		w.releasePod(p, q)
	}
	return ok
}

// back puts the ranks back to an epoch.
func (p *wpod) back(e job.Epoch, im wimage) {
	p.state, p.whole, p.progress, p.suspend = "whole", e, im.progress, false
	p.passed, p.waits, p.asked = im.passed, im.waits, 0
	p.ended = false
}

// releasePod lets the ranks go on, which may be only when those of all pods
// are back at the same cut.
func (w *world) releasePod(p *wpod, q podapi.PhaseRequest) {
	p.head.Incarnation = q.Incarnation
	p.state, p.since, p.frozenBy = "running", w.now, 0
	w.released++
	for _, sp := range w.st.Jobs[p.spec.Job].Pods {
		n := w.nodes[sp.Node]
		if w.st.Jobs[p.spec.Job].Incarnation != q.Incarnation || n == nil || !n.up {
			continue
		}
		if o := n.pods[p.spec.Job]; o != nil && o.whole != q.Epoch {
			w.fail("pod %d released while pod %d is %s", p.spec.Placement.Pod, sp.Index, o.state)
		}
	}
	mine := p.node.images[imageKey{p.spec.Job, q.Epoch, p.spec.Placement.Pod}]
	for _, n := range w.sorted() {
		o := n.pods[p.spec.Job]
		if o == nil || o == p || !n.up || o.dead || o.whole != q.Epoch || o.head.Incarnation != q.Incarnation || o.state != "running" {
			continue
		}
		other := n.images[imageKey{p.spec.Job, q.Epoch, o.spec.Placement.Pod}]
		if other.term != mine.term || other.attempt != mine.attempt {
			w.fail("epoch %d: pods of different rounds", q.Epoch)
		}
	}
}
