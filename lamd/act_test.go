package lamd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
	"github.com/lampause/lampause/scheduler/conduct"
)

func TestFailure(t *testing.T) {
	if f := failure(nil); f != nil {
		t.Errorf("%+v", f)
	}
	answered := func(status, exit int) error {
		return fmt.Errorf("n1: %w", &control.Error{Message: "no", Status: status, Exit: exit})
	}
	for _, c := range []struct {
		err  error
		kind conduct.FailureKind
		exit int
	}{
		{errUnknownNode, conduct.Unreachable, 0},
		{context.DeadlineExceeded, conduct.Unreachable, 0},
		{errors.New("connection reset by peer"), conduct.Unreachable, 0},
		{&scheduler.Refusal{Exit: job.ExitNoNodes, Text: "no slots"}, conduct.Refused, job.ExitNoNodes},
		{answered(http.StatusBadRequest, job.ExitUsage), conduct.Refused, job.ExitUsage},
		{answered(http.StatusForbidden, job.ExitPermission), conduct.Refused, job.ExitPermission},
		{answered(http.StatusConflict, job.ExitInternal), conduct.Refused, 0},
		{answered(http.StatusUnprocessableEntity, 0), conduct.Refused, 0},
		{answered(http.StatusBadGateway, job.ExitInternal), conduct.Unreachable, 0},
		{answered(http.StatusServiceUnavailable, job.ExitNoNodes), conduct.Unreachable, job.ExitNoNodes},
		{answered(http.StatusNotFound, job.ExitUsage), conduct.FailedForGood, job.ExitUsage},
		{answered(http.StatusGone, job.ExitNoNodes), conduct.FailedForGood, job.ExitNoNodes},
		{answered(http.StatusInternalServerError, job.ExitInternal), conduct.FailedForGood, 0},
		{errNotLeading, conduct.Unreachable, job.ExitNoNodes},
	} {
		if f := failure(c.err); f.Kind != c.kind || f.Exit != c.exit || f.Text != c.err.Error() {
			t.Errorf("%v: %+v", c.err, f)
		}
	}
}

func TestPhaseReplies(t *testing.T) {
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		kind conduct.FailureKind
	}{
		"done": {func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, podapi.PhaseReply{Bytes: 5}) }, 0},
		"refused": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusConflict)
			writeJSON(w, podapi.PhaseReply{Error: "stale"})
		}, conduct.Refused},
		"refused now": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusUnprocessableEntity)
			writeJSON(w, podapi.PhaseReply{Error: "connecting", Retry: true})
		}, conduct.RefusedNow},
		"no pod":   {func(w http.ResponseWriter, _ *http.Request) { writeError(w, notFound("no pod")) }, conduct.FailedForGood},
		"busy":     {func(w http.ResponseWriter, _ *http.Request) { writeError(w, unavailable("busy")) }, conduct.Unreachable},
		"cut":      {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"bytes":`)) }, conduct.Unreachable},
		"not JSON": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }, conduct.Unreachable},
		"hangs":    {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, conduct.Unreachable},
	} {
		t.Run(name, func(t *testing.T) {
			timeout := patience
			if name == "hangs" {
				timeout = time.Millisecond
			}
			mux := http.NewServeMux()
			mux.HandleFunc("POST /v1/pods/7/v1/phase", func(w http.ResponseWriter, r *http.Request) {
				var in podapi.PhaseRequest
				if err := readJSON(r, &in); err != nil || in.Op != podapi.OpFreeze {
					t.Errorf("%+v, %v", in, err)
				}
				c.h(w, r)
			})
			a := &actor{peers: peersOf(t, nodes{"n1": mux})}
			d := a.do(testContext(t), conduct.Call{Ref: 3, Job: 7, Node: "n1", Request: podapi.PhaseRequest{Op: podapi.OpFreeze}, Timeout: timeout})
			switch {
			case d.Ref != 3:
				t.Errorf("ref %d", d.Ref)
			case c.kind == 0 && (d.Failure != nil || d.Reply == nil || d.Reply.Bytes != 5):
				t.Errorf("%+v", d)
			case c.kind != 0 && (d.Failure == nil || d.Failure.Kind != c.kind):
				t.Errorf("%+v", d.Failure)
			}
		})
	}
}

func TestActionNobodyKnows(t *testing.T) {
	d := (&actor{}).do(testContext(t), conduct.Answer{})
	if d.Failure == nil || d.Failure.Kind != conduct.FailedForGood {
		t.Errorf("%+v", d)
	}
}
