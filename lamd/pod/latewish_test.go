package pod

import (
	"net/http"
	"testing"

	"github.com/lampause/lampause/internal/podapi"
)

// A suspend that was under way for long must not hold ranks that were told to
// go on meanwhile, and the other way round.
func TestLateWishIsRefused(t *testing.T) {
	ask := func(op podapi.Op, attempt uint64) podapi.PhaseRequest {
		return podapi.PhaseRequest{Header: podapi.Header{Term: 1, Job: 7, Incarnation: 1, Attempt: attempt}, Op: op}
	}
	p := phaseState{Job: 7, Term: 1, Round: round{Incarnation: 1}, Void: round{Incarnation: 1}}
	for _, step := range []struct {
		op      podapi.Op
		attempt uint64
		late    bool
	}{
		{podapi.OpSuspend, 3, false},
		{podapi.OpSuspend, 3, false}, // repeated
		{podapi.OpContinue, 5, false},
		{podapi.OpSuspend, 3, true},
		{podapi.OpSuspend, 6, false},
		{podapi.OpContinue, 5, true},
		{podapi.OpPreflight, 1, false}, // asks only
	} {
		q := ask(step.op, step.attempt)
		v := p.admit(q)
		if late := v.status == http.StatusConflict; late != step.late || v.run == step.late {
			t.Errorf("%s of attempt %d: %+v", step.op, step.attempt, v)
		}
		if v.run {
			p = p.begin(q, 0)
		}
	}
}
