package lamd

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// Only the supervisor of a pod of this node may say that the pod arrived.
func TestWhoMayPostAFence(t *testing.T) {
	me := uint32(os.Getuid())
	owner, other := me+1, me+2
	var passed int
	mux := http.NewServeMux()
	answer(mux, "POST /v1/fence", func(_ context.Context, f podapi.Fence) (podapi.FenceReply, error) {
		passed++
		return podapi.FenceReply{Seq: f.Seq}, nil
	})
	m := newPods(t.TempDir(), nil, nil, zerolog.Nop())
	spec := podapi.PodSpec{Header: podapi.Header{Job: 7}, Spec: job.Spec{UID: owner}, Placement: job.PodPlacement{Pod: 2}}
	if err := writePodDir(m.podDir(7), spec); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(m.podDir(9), 0o700); err != nil {
		t.Fatal(err)
	}
	a := &agent{
		node: "n1", pods: m, log: zerolog.Nop(), peers: peersOf(t, nodes{"n1": mux}),
		leader: func() (job.NodeID, bool) { return "n1", true },
	}
	fence := podapi.Fence{Header: podapi.Header{Job: 7}, Pod: 2, Seq: 3}
	for name, c := range map[string]struct {
		uid  uint32
		anon bool
		body []byte
		edit func(*podapi.Fence)
		want int
	}{
		"owner":                {uid: owner, want: http.StatusOK},
		"daemon's own user":    {uid: me, want: http.StatusOK},
		"another user":         {uid: other, want: http.StatusForbidden},
		"nobody known":         {anon: true, want: http.StatusForbidden},
		"another pod":          {uid: owner, edit: func(f *podapi.Fence) { f.Pod = 1 }, want: http.StatusNotFound},
		"job without pod here": {uid: owner, edit: func(f *podapi.Fence) { f.Job = 8 }, want: http.StatusNotFound},
		"pod without spec":     {uid: owner, edit: func(f *podapi.Fence) { f.Job = 9 }, want: http.StatusNotFound},
		"no fence":             {uid: owner, body: []byte("{"), want: http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			f := fence
			if c.edit != nil {
				c.edit(&f)
			}
			body := c.body
			if body == nil {
				body = mustJSON(t, f)
			}
			r := httptest.NewRequest(http.MethodPost, podapi.PathFence, bytes.NewReader(body))
			if !c.anon {
				r = r.WithContext(withCaller(r.Context(), caller{uid: c.uid}))
			}
			before := passed
			w := httptest.NewRecorder()
			a.relayFence(w, r)
			if w.Code != c.want || (passed > before) != (c.want == http.StatusOK) {
				t.Errorf("status %d, want %d; %d fences passed on: %s", w.Code, c.want, passed-before, w.Body)
			}
		})
	}
}
