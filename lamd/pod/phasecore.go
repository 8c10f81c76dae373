package pod

import (
	"fmt"
	"net/http"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// stage is where a pod is in a round of the coordinator.
type stage int

// The stages. Freeze .. Resume is the stall of a checkpoint; Stop .. Release
// is a recovery, during which the ranks never go on by themselves.
const (
	stRunning  stage = iota // no round is open, or only its background part
	stFrozen                // OpFreeze done
	stSent                  // OpCaptureSend done
	stCaptured              // OpCaptureRecv done
	stPending               // OpResume done: the ranks run, the epoch is not written
	stWritten               // OpWrite done
	stStopped               // OpStop done
	stRebuilt               // OpRollback or OpRestore done
	stEmpty                 // a pod built for a restore, before it
	stBroken                // a rollback or restore failed half-way: only a new recovery or the end of the pod
)

// String names a stage as podapi.Status does.
func (s stage) String() string {
	switch s {
	case stFrozen, stSent, stCaptured:
		return "frozen"
	case stStopped:
		return "stopped"
	case stRebuilt:
		return "rebuilt"
	case stEmpty:
		return "building"
	case stBroken:
		return "broken"
	}
	return "running"
}

// stalled reports whether the ranks stand still for a checkpoint, with a
// deadline.
func (s stage) stalled() bool { return s == stFrozen || s == stSent || s == stCaptured }

// recovering reports whether the ranks stand still for a recovery.
func (s stage) recovering() bool {
	return s == stStopped || s == stRebuilt || s == stEmpty || s == stBroken
}

// round names an attempt. Rounds are ordered by incarnation, then attempt.
type round struct {
	Incarnation job.Incarnation `json:"incarnation"`
	Attempt     uint64          `json:"attempt"`
}

func (r round) before(o round) bool {
	return r.Incarnation < o.Incarnation || r.Incarnation == o.Incarnation && r.Attempt < o.Attempt
}

// phaseState is the pure core of the coordinator's ops: which op may run now,
// which is answered from memory, which is refused. It is a value; it knows no
// clock and no engine.
type phaseState struct {
	Job      job.ID
	Term     uint64
	Round    round
	Stage    stage
	Epoch    job.Epoch // of the open round
	Seen     job.Epoch // newest committed epoch that this pod knows
	Void     round     // this round and all before it are void
	Switch   round     // of the newest suspend or continue: an older one comes late
	Deadline time.Duration
	Replies  map[podapi.Op]podapi.PhaseReply // of the open round
	Ended    bool                            // no rank is left: nothing can be frozen
}

// verdict is what the core says to a request.
type verdict struct {
	run     bool               // carry it out
	cached  *podapi.PhaseReply // answer this instead
	status  int                // refusal: HTTP status
	reason  string
	preempt bool // first give up what the older round left open
	rename  bool // the request starts a new incarnation
}

func refuse(status int, format string, args ...any) verdict {
	return verdict{status: status, reason: fmt.Sprintf(format, args...)}
}

// admit judges a request against the state; it changes nothing.
func (p phaseState) admit(q podapi.PhaseRequest) verdict {
	r := round{q.Incarnation, q.Attempt}
	switch {
	case q.Job != p.Job:
		return refuse(http.StatusConflict, "this is a pod of job %d, not %d", p.Job, q.Job)
	case q.Term < p.Term:
		return refuse(http.StatusConflict, "stale: term %d, the pod has seen %d", q.Term, p.Term)
	case r.before(p.Round):
		return refuse(http.StatusConflict, "stale: incarnation %d attempt %d, the pod is at %d/%d",
			q.Incarnation, q.Attempt, p.Round.Incarnation, p.Round.Attempt)
	}
	if q.Op == podapi.OpPreflight {
		return verdict{run: true}
	}
	if q.Incarnation > p.Round.Incarnation && q.Op != podapi.OpStop && q.Op != podapi.OpRestore {
		return refuse(http.StatusConflict, "%s in incarnation %d: it has not been started here by a stop or restore", q.Op, q.Incarnation)
	}
	if q.Op == podapi.OpAbandon && !p.Void.before(r) {
		return verdict{cached: &podapi.PhaseReply{}} // given up by the pod itself
	}
	if !p.Void.before(r) {
		return refuse(http.StatusConflict, "attempt %d is void: its deadline passed on this pod", q.Attempt)
	}
	if r == p.Round {
		if reply, ok := p.Replies[q.Op]; ok {
			return verdict{cached: &reply}
		}
	}
	if (q.Op == podapi.OpSuspend || q.Op == podapi.OpContinue) && r.before(p.Switch) {
		return refuse(http.StatusConflict, "stale: %s of attempt %d, the pod has heard %d", q.Op, q.Attempt, p.Switch.Attempt)
	}
	v := p.order(q, r)
	v.rename = v.run && q.Incarnation > p.Round.Incarnation
	return v
}

// order judges whether the op may follow what was done.
func (p phaseState) order(q podapi.PhaseRequest, r round) verdict {
	same := r == p.Round && q.Epoch == p.Epoch
	bad := func() verdict {
		return refuse(http.StatusConflict, "%s out of order: the pod is %s (attempt %d, epoch %d)", q.Op, p.Stage, p.Round.Attempt, p.Epoch)
	}
	switch q.Op {
	case podapi.OpFreeze:
		if p.Stage.recovering() || p.Stage == stWritten || p.Ended {
			return bad() // a written epoch may be committed: only the log knows
		}
		if q.Epoch <= p.Seen {
			return refuse(http.StatusConflict, "epoch %d is not above the committed %d", q.Epoch, p.Seen)
		}
		return verdict{run: true, preempt: p.Stage != stRunning}
	case podapi.OpStop:
		if p.Stage == stEmpty {
			return bad()
		}
		return verdict{run: true, preempt: p.Stage.stalled() || p.Stage == stPending}
	case podapi.OpRestore:
		if p.Stage != stEmpty && p.Stage != stBroken && p.Stage != stRebuilt {
			return bad()
		}
		return verdict{run: true}
	case podapi.OpAbandon:
		if p.Stage.recovering() {
			return bad()
		}
		return verdict{run: true}
	case podapi.OpSuspend, podapi.OpContinue:
		return verdict{run: true}
	}
	after := map[podapi.Op]stage{
		podapi.OpCaptureSend: stFrozen, podapi.OpCaptureRecv: stSent, podapi.OpResume: stCaptured,
		podapi.OpWrite: stPending, podapi.OpCommit: stWritten,
		podapi.OpRollback: stStopped, podapi.OpRelease: stRebuilt,
	}
	need, known := after[q.Op]
	if !known {
		return refuse(http.StatusBadRequest, "unknown op %q", q.Op)
	}
	if q.Op == podapi.OpRollback && r == p.Round {
		same = true // the epoch to go back to is named here for the first time
	}
	if !same || p.Stage != need {
		return bad()
	}
	return verdict{run: true}
}

// begin records that an admitted op is being carried out.
func (p phaseState) begin(q podapi.PhaseRequest, now time.Duration) phaseState {
	p.Term = q.Term
	switch q.Op {
	case podapi.OpSuspend, podapi.OpContinue:
		p.Switch = round{q.Incarnation, q.Attempt}
		return p
	case podapi.OpPreflight:
		return p
	}
	if r := (round{q.Incarnation, q.Attempt}); r != p.Round {
		p.Round, p.Replies = r, nil
	}
	p.Epoch = q.Epoch
	p.Deadline = now + time.Duration(q.DeadlineMS)*time.Millisecond
	return p
}

// finish records the end of an op: its reply when it succeeded.
func (p phaseState) finish(op podapi.Op, reply podapi.PhaseReply, ok bool) phaseState {
	if !ok {
		return p.failed(op)
	}
	next := map[podapi.Op]stage{
		podapi.OpFreeze: stFrozen, podapi.OpCaptureSend: stSent, podapi.OpCaptureRecv: stCaptured,
		podapi.OpResume: stPending, podapi.OpWrite: stWritten, podapi.OpCommit: stRunning,
		podapi.OpAbandon: stRunning, podapi.OpStop: stStopped, podapi.OpRollback: stRebuilt,
		podapi.OpRestore: stRebuilt, podapi.OpRelease: stRunning,
	}
	s, moves := next[op]
	if !moves {
		return p
	}
	p.Stage = s
	if op == podapi.OpCommit {
		p.Seen = p.Epoch
	}
	if op == podapi.OpRelease {
		p.Seen = max(p.Seen, p.Epoch)
	}
	replies := make(map[podapi.Op]podapi.PhaseReply, len(p.Replies)+1)
	for k, v := range p.Replies {
		replies[k] = v
	}
	replies[op] = reply
	p.Replies = replies
	return p
}

// failed is where a pod is after an op that did not succeed. A failed freeze
// or stop left the ranks as they were. A failed capture stays frozen until the
// coordinator abandons the round or the deadline does.
func (p phaseState) failed(op podapi.Op) phaseState {
	switch op {
	case podapi.OpFreeze:
		p.Stage = stRunning
	case podapi.OpRollback, podapi.OpRestore:
		p.Stage = stBroken
	}
	return p
}

// expired reports whether a stalled pod has to go on by itself.
func (p phaseState) expired(now time.Duration) bool {
	return p.Stage.stalled() && now >= p.Deadline
}

// voided is the state after the pod gave up the open round.
func (p phaseState) voided() phaseState {
	p.Void, p.Stage, p.Replies = p.Round, stRunning, nil
	return p
}
