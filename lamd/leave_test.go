package lamd

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lampause/lampause/scheduler"
)

// Who may make a node leave, and what the log says to it.
func TestLeave(t *testing.T) {
	me := uint32(os.Getuid())
	for name, c := range map[string]struct {
		uid     uint32
		anon    bool
		refusal *scheduler.Refusal
		want    int
	}{
		"another user": {uid: me + 1, want: http.StatusForbidden},
		"unknown user": {anon: true, want: http.StatusForbidden},
		"with pods":    {uid: me, refusal: &scheduler.Refusal{Code: scheduler.Busy, Text: "holds ranks", Exit: 64}, want: http.StatusConflict},
	} {
		t.Run(name, func(t *testing.T) {
			mux := http.NewServeMux()
			api := &leaderAPI{state: viewState, apply: func(_ context.Context, cmd scheduler.Command) error {
				if cmd.Leave == nil || cmd.Leave.Node != "n2" {
					t.Errorf("%+v", cmd)
				}
				return c.refusal
			}}
			api.routes(mux)
			d := &Daemon{cfg: Config{Node: "n2", Boot: 2}, left: func() { t.Error("the daemon ends") }}
			d.agent = &agent{node: "n2", log: testLog(t), leader: leading("n1").get, peers: peersOf(t, nodes{"n1": mux})}
			r := httptest.NewRequest(http.MethodPost, "/v1/leave", nil)
			if !c.anon {
				r = r.WithContext(withCaller(r.Context(), caller{uid: c.uid}))
			}
			w := httptest.NewRecorder()
			d.leaveNode(w, r)
			if w.Code != c.want || d.leaving.Load() {
				t.Errorf("%d %s, leaving %v", w.Code, w.Body, d.leaving.Load())
			}
			if c.refusal != nil && !strings.Contains(w.Body.String(), c.refusal.Text) {
				t.Errorf("%s", w.Body)
			}
		})
	}
}

// A server that ends waits for its handlers, whose contexts end with it; one
// that ignores that is not waited for for ever.
func TestServersWaitForTheirHandlers(t *testing.T) {
	for name, stubborn := range map[string]bool{"handler that ends": false, "handler that does not": true} {
		t.Run(name, func(t *testing.T) {
			ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			in, release, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
			h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				defer close(ended)
				close(in)
				<-r.Context().Done()
				if stubborn {
					<-release
				}
			})
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error, 1)
			go func() { served <- serveHTTP(ctx, &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}, ln) }()
			go func() {
				resp, err := http.Get("http://" + ln.Addr().String()) //nolint:noctx // ends with the server
				if err == nil {
					_ = resp.Body.Close()
				}
			}()
			<-in
			cancel()
			err = <-served
			select {
			case <-ended:
				if stubborn {
					t.Error("ended?")
				}
			default:
				if !stubborn {
					t.Error("the handler still works")
				}
			}
			if stubborn != strings.Contains(err.Error(), "did not end") {
				t.Error(err)
			}
			close(release)
			<-ended
		})
	}
}

func TestHandlersAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h handlers
		release := make(chan struct{})
		served := h.count(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
		ask := func() { served.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)) }
		go ask()
		synctest.Wait()
		time.AfterFunc(time.Second, func() { close(release) })
		if n := h.wait(time.Minute); n != 0 {
			t.Errorf("%d left", n)
		}
		func() { // is not let in: would otherwise find the channel closed, and be counted
			defer func() {
				if e := recover(); e != http.ErrAbortHandler { //nolint:errorlint // as net/http compares it
					t.Errorf("an answer of a server that has ended: %v", e)
				}
			}()
			ask()
		}()
		if h.n != 0 {
			t.Errorf("%d counted", h.n)
		}
	})
}
