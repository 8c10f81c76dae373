package lamd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/membership"
	"github.com/lampause/lampause/scheduler"
)

func TestWhatAFailedRequestSays(t *testing.T) {
	op := func(errno syscall.Errno) error {
		return fmt.Errorf("call: %w", &net.OpError{Op: "read", Err: os.NewSyscallError("read", errno)})
	}
	for name, c := range map[string]struct {
		err  error
		want membership.Source
	}{
		"success":      {nil, ""},
		"reset":        {op(syscall.ECONNRESET), membership.SourceReset},
		"refused":      {op(syscall.ECONNREFUSED), membership.SourceReset},
		"cut":          {fmt.Errorf("read: %w", io.ErrUnexpectedEOF), membership.SourceReset},
		"no route":     {op(syscall.EHOSTUNREACH), membership.SourceTimeout},
		"timed out":    {op(syscall.ETIMEDOUT), membership.SourceTimeout},
		"dial timeout": {&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, membership.SourceTimeout},
		"no answer":    {dialTimedOut(t), membership.SourceTimeout},
		"given up":     {fmt.Errorf("call: %w", context.Canceled), ""},
		"slow op":      {fmt.Errorf("call: %w", context.DeadlineExceeded), ""},
		"refusal":      {&control.Error{Status: http.StatusConflict}, ""},
		"unknown node": {errUnknownNode, ""},
		"bad answer":   {errors.New("decode"), ""},
	} {
		if got, ok := sourceOf(c.err); got != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// dialTimedOut is what net says of a host that does not answer in time.
func dialTimedOut(t *testing.T) error {
	t.Helper()
	d := net.Dialer{Deadline: time.Unix(1, 0)} // is over
	_, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:1")
	return fmt.Errorf("call: %w", err)
}

// A node that cannot be reached is accused, whatever the request was.
func TestFailedRequestsAreEvidence(t *testing.T) {
	p := peersOf(t, nodes{"n1": http.NotFoundHandler(), "n2": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.Close()
	})})
	var got []job.NodeID
	p.onFailure = func(e membership.Evidence) { got = append(got, e.Node) }
	ctx := testContext(t)
	for _, n := range []job.NodeID{"n1", "n2", "n9"} {
		_ = p.call(ctx, n, http.MethodGet, "/v1/leader", nil, nil)
		_, _ = p.open(ctx, n, "/x")
	}
	if !slices.Equal(got, []job.NodeID{"n2", "n2"}) {
		t.Errorf("accused %v", got)
	}
}

func TestSilentNodes(t *testing.T) {
	st := viewState()
	var r roll
	start := time.Unix(1000, 0)
	n2, n10 := scheduler.NodeRef{Node: "n2", Boot: 2}, scheduler.NodeRef{Node: "n10", Boot: 1}
	old := scheduler.NodeRef{Node: "n2", Boot: 1}
	for _, ref := range []scheduler.NodeRef{n2, n10, old} {
		r.hear(ref, start)
	}
	if got := r.silent(st, start.Add(silenceMax)); got != nil {
		t.Errorf("too soon: %v", got)
	}
	if got := r.silent(st, start.Add(silenceMax+1)); !slices.Equal(got, []scheduler.NodeRef{n2}) {
		t.Errorf("silent %v, want n2 alone: n10 has no pods, the first life of n2 is over", got)
	}
	r.hear(n2, start.Add(silenceMax))
	if got := r.silent(st, start.Add(silenceMax+1)); got != nil {
		t.Errorf("heard again: %v", got)
	}
}
