package conduct

import (
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// turn orders the rounds of a pod: by incarnation, then attempt.
type turn struct {
	inc     job.Incarnation
	attempt uint64
}

func (t turn) before(o turn) bool {
	return t.inc < o.inc || t.inc == o.inc && t.attempt < o.attempt
}

func conflict(text string) Done { return Done{Failure: &Failure{Kind: Refused, Text: text}} }

func fine() Done { return Done{Reply: &podapi.PhaseReply{Marks: []podapi.Mark{}}} }

// phase is what a supervisor does with an op: the contract of podapi as the
// real one keeps it.
//
//	running -> frozen -> sent -> captured -> pending (running again) -> written -> running
//	stopped -> rebuilt -> running; empty -> rebuilt
func (w *world) phase(p *wpod, q podapi.PhaseRequest) Done {
	r := turn{q.Incarnation, q.Attempt}
	switch {
	case q.Term < p.head.Term:
		return conflict("of an older term")
	case r.before(p.turn):
		return conflict("of an older round")
	case q.Incarnation > p.turn.inc && q.Op != podapi.OpStop && q.Op != podapi.OpRestore:
		return conflict("this incarnation has not begun here")
	case !p.void.before(r) && q.Op == podapi.OpAbandon:
		return fine()
	case !p.void.before(r):
		return conflict("the attempt is void")
	case r == p.turn && p.done[q.Op] && q.Op != podapi.OpPreflight && q.Op != podapi.OpSuspend && q.Op != podapi.OpContinue:
		return p.answer(q)
	}
	if w.chance(w.lazy / 4) {
		return Done{Failure: &Failure{Kind: RefusedNow, Text: "not now"}}
	}
	recovery := q.Op == podapi.OpStop || q.Op == podapi.OpRollback || q.Op == podapi.OpRestore || q.Op == podapi.OpRelease
	if recovery && w.chance(w.lazy/8) {
		return Done{Failure: &Failure{Kind: FailedForGood, Text: "something is broken"}}
	}
	p.settle(w.now)
	w.before(p, q, r)
	d := w.op(p, q, r)
	if d.Failure == nil {
		p.done[q.Op] = true
		w.law.did(r, q.Op, p.spec.Placement.Pod)
	}
	return d
}

// answer repeats what a finished op answered.
func (p *wpod) answer(q podapi.PhaseRequest) Done {
	d := fine()
	if q.Op == podapi.OpWrite {
		d.Reply.Written = &podapi.Written{Digest: "d", Files: map[string]podapi.File{"m": {Size: 10}}}
	}
	return d
}

// begin makes r the round of the pod.
func (p *wpod) begin(q podapi.PhaseRequest, r turn) {
	p.head = q.Header
	if r != p.turn {
		p.turn, p.done = r, map[podapi.Op]bool{}
	}
	p.epoch = q.Epoch
}

func (w *world) op(p *wpod, q podapi.PhaseRequest, r turn) Done {
	stalled := p.state == "frozen" || p.state == "sent" || p.state == "captured"
	recovering := p.state == "stopped" || p.state == "rebuilt" || p.state == "empty"
	switch q.Op {
	case podapi.OpSuspend, podapi.OpContinue:
		if r.before(p.toggle) {
			return conflict("of an older wish")
		}
		p.toggle, p.suspend, p.since = r, q.Op == podapi.OpSuspend, w.now
		return fine()
	case podapi.OpPreflight:
		return fine()
	case podapi.OpFreeze:
		if recovering || p.state == "written" || q.Epoch <= p.seen {
			return conflict("no freeze while " + p.state)
		}
		p.begin(q, r)
		p.state = "frozen"
		w.after(time.Duration(q.DeadlineMS)*time.Millisecond, func() { w.thaw(p, r) })
		return fine()
	case podapi.OpAbandon:
		if recovering {
			return conflict("no round to abandon")
		}
		p.begin(q, r)
		if stalled {
			p.since = w.now
		}
		p.state, p.void = "running", r
		delete(p.taken, q.Epoch)
		return fine()
	case podapi.OpStop, podapi.OpRestore:
		return w.backOp(p, q, r)
	}
	return w.followOp(p, q, r)
}

// followOp carries out the ops that have their place after another one.
func (w *world) followOp(p *wpod, q podapi.PhaseRequest, r turn) Done {
	need := map[podapi.Op]string{
		podapi.OpCaptureSend: "frozen", podapi.OpCaptureRecv: "sent", podapi.OpResume: "captured",
		podapi.OpWrite: "pending", podapi.OpCommit: "written", podapi.OpRollback: "stopped", podapi.OpRelease: "rebuilt",
	}[q.Op]
	if r != p.turn || p.state != need || q.Epoch != p.epoch {
		return conflict(string(q.Op) + " out of order: " + p.state)
	}
	switch q.Op {
	case podapi.OpCaptureSend:
		p.state = "sent"
	case podapi.OpCaptureRecv:
		p.taken[q.Epoch] = wimage{term: q.Term, attempt: q.Attempt, progress: p.progress, passed: p.passed, waits: p.waits}
		p.state = "captured"
	case podapi.OpResume:
		p.state, p.since = "pending", w.now
	case podapi.OpWrite:
		p.node.images[imageKey{q.Epoch, p.spec.Placement.Pod}] = p.taken[q.Epoch]
		p.state = "written"
	case podapi.OpCommit:
		p.state, p.seen = "running", q.Epoch
		p.taken = map[job.Epoch]wimage{q.Epoch: p.taken[q.Epoch]}
	case podapi.OpRollback:
		return w.goBack(p, q)
	case podapi.OpRelease:
		w.releasePod(p, q)
	}
	return p.answer(q)
}

// thaw is what a pod does by itself when its deadline passed in a stall.
func (w *world) thaw(p *wpod, r turn) {
	stalled := p.state == "frozen" || p.state == "sent" || p.state == "captured"
	if !p.dead && stalled && p.turn == r {
		p.state, p.since, p.void = "running", w.now, r
	}
}

func (w *world) backOp(p *wpod, q podapi.PhaseRequest, r turn) Done {
	if q.Op == podapi.OpStop {
		if p.state == "empty" {
			return conflict("a pod that is being built")
		}
		p.begin(q, r)
		p.state = "stopped"
		return fine()
	}
	if p.state != "empty" && p.state != "rebuilt" {
		return conflict("cannot restore: " + p.state)
	}
	p.begin(q, r)
	return w.goBack(p, q)
}

// goBack puts the ranks back to an epoch.
func (w *world) goBack(p *wpod, q podapi.PhaseRequest) Done {
	if !w.law.committed[q.Epoch] {
		w.fail("pod %d returns to epoch %d, which is not committed", p.spec.Placement.Pod, q.Epoch)
	}
	im, have := p.taken[q.Epoch] // a survivor's own backing
	if q.Op == podapi.OpRestore {
		im, have = p.node.images[imageKey{q.Epoch, p.spec.Placement.Pod}]
	}
	if !have || im.bad {
		return conflict("no image to go back to")
	}
	p.taken = map[job.Epoch]wimage{q.Epoch: im}
	if r := w.law.rounds[q.Epoch]; im.attempt != r.attempt {
		w.fail("pod %d returns to an image of epoch %d of another round", p.spec.Placement.Pod, q.Epoch)
	}
	p.state, p.whole, p.progress = "rebuilt", q.Epoch, im.progress // a suspension outlives it
	p.passed, p.waits, p.asked = im.passed, im.waits, 0
	p.cut, p.ended = im, false
	return fine()
}
