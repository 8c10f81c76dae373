package lamd

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// leaderIs is a leader that a test names.
type leaderIs struct{ id atomic.Value }

func leading(id job.NodeID) *leaderIs {
	l := &leaderIs{}
	l.id.Store(id)
	return l
}

func (l *leaderIs) get() (job.NodeID, bool) {
	id, ok := l.id.Load().(job.NodeID)
	return id, ok && id != ""
}

// whoAsks answers with its name, the path and who asks.
func whoAsks(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := callerOf(r.Context())
		fmt.Fprintf(w, "%s %s?%s %d:%d %v", name, r.URL.Path, r.URL.RawQuery, c.uid, c.gid, ok)
	})
}

func ask(t *testing.T, h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r.WithContext(mergeDone(testContext(t), r.Context())))
	return w
}

// mergeDone is values with the end of ctx.
func mergeDone(ctx, values context.Context) context.Context {
	if c, ok := callerOf(values); ok {
		return withCaller(ctx, c)
	}
	return ctx
}

func proxyAt(t *testing.T, l *leaderIs, all nodes) *leaderProxy {
	t.Helper()
	return &leaderProxy{self: "n1", leader: l.get, peers: peersOf(t, all), local: whoAsks("here")}
}

func TestLeaderProxyServesHere(t *testing.T) {
	p := proxyAt(t, leading("n1"), nodes{})
	r := httptest.NewRequest(http.MethodGet, "/v1/jobs?x=1", nil)
	r.Header.Set(headerUID, "0") // a client may say what it likes
	if got := ask(t, as(1000, p), r).Body.String(); got != "here /v1/jobs?x=1 1000:1000 true" {
		t.Error(got)
	}
}

func TestLeaderProxyPassesOnWithTheCaller(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("/v1/control/", fromPeer(whoAsks("there")))
	p := proxyAt(t, leading("n2"), nodes{"n2": mux})
	r := httptest.NewRequest(http.MethodPost, "/v1/jobs/7/kill?code=3", strings.NewReader("{}"))
	r.Header.Set(headerUID, "0")
	r.Header.Set(headerGID, "0")
	r.Header.Set("Connection", headerUID) // must not strip what the proxy says
	if got := ask(t, as(1000, p), r).Body.String(); got != "there /v1/jobs/7/kill?code=3 1000:1000 true" {
		t.Error(got)
	}
}

func TestLeaderProxyWithoutCaller(t *testing.T) {
	p := proxyAt(t, leading("n2"), nodes{"n2": whoAsks("there")})
	r := httptest.NewRequest(http.MethodGet, "/v1/jobs", nil)
	r.Header.Set(headerUID, "0")
	r.Header.Set(headerGID, "0")
	if w := ask(t, p, r); w.Code != http.StatusForbidden {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestLeaderProxyWaitsForAnElection(t *testing.T) {
	l := leading("")
	p := proxyAt(t, l, nodes{})
	asked := make(chan struct{})
	p.leader = func() (job.NodeID, bool) {
		select {
		case <-asked:
			l.id.Store(job.NodeID("n1"))
		default:
			close(asked)
		}
		return l.get()
	}
	if got := ask(t, as(1, p), httptest.NewRequest(http.MethodGet, "/v1/jobs", nil)).Body.String(); !strings.HasPrefix(got, "here") {
		t.Error(got)
	}
}

func TestLeaderProxyWithoutLeader(t *testing.T) {
	p := proxyAt(t, leading(""), nodes{})
	ctx, cancel := context.WithCancel(withCaller(context.Background(), caller{}))
	cancel() // as when leaderWait is over
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/jobs", nil).WithContext(ctx))
	var e control.Error
	if err := json.NewDecoder(w.Body).Decode(&e); err != nil || w.Code != http.StatusServiceUnavailable || e.Exit != job.ExitNoNodes {
		t.Errorf("%d %+v %v", w.Code, e, err)
	}
}

func TestLeaderProxyToALeaderThatIsGoneOrNotKnown(t *testing.T) {
	for _, id := range []job.NodeID{"n2", "n3"} {
		p := proxyAt(t, leading(id), nodes{"n2": nil})
		w := ask(t, as(1, p), httptest.NewRequest(http.MethodGet, "/v1/jobs", nil))
		if w.Code != http.StatusServiceUnavailable {
			t.Errorf("%s: %d %s", id, w.Code, w.Body)
		}
	}
}

// A leader without power never answers; the request ends with its leadership,
// and the client asks again.
func TestLeaderProxyWhoseLeaderChanges(t *testing.T) {
	l := leading("n2")
	hung := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		l.id.Store(job.NodeID("n3"))
		<-r.Context().Done()
	})
	p := proxyAt(t, l, nodes{"n2": hung})
	w := ask(t, as(1, p), httptest.NewRequest(http.MethodGet, "/v1/jobs/7/wait", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestFromPeerWantsACaller(t *testing.T) {
	for _, h := range []map[string]string{
		{}, {headerUID: "1"}, {headerGID: "1"}, {headerUID: "-1", headerGID: "1"}, {headerUID: "4294967296", headerGID: "1"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/v1/control/v1/jobs", nil)
		for k, v := range h {
			r.Header.Set(k, v)
		}
		if w := ask(t, fromPeer(whoAsks("there")), r); w.Code != http.StatusForbidden {
			t.Errorf("%v: %d", h, w.Code)
		}
	}
}

// On the unix socket the kernel says who calls, whatever the headers are.
func TestServeUnixKnowsItsCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(testContext(t))
	path := filepath.Join(shortDir(t), control.Socket)
	if err := os.WriteFile(path, nil, 0o600); err != nil { // a dead daemon's
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- serveUnix(ctx, path, whoAsks("here")) }()
	c := unixClient(path)
	defer c.CloseIdleConnections()
	want := fmt.Sprintf("here /v1/jobs? %d:%d true", os.Getuid(), os.Getgid())
	eventually(t, "an answer", func() bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lamd/v1/jobs", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(headerUID, "4242")
		resp, err := c.Do(req)
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		b := make([]byte, 200)
		n, _ := resp.Body.Read(b)
		if got := string(b[:n]); got != want {
			t.Errorf("%q", got)
		}
		return true
	})
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", st, err)
	}
	cancel()
	if err := <-served; err == nil || ctx.Err() == nil {
		t.Errorf("ended with %v", err)
	}
}

func TestPeerCredOfNoUnixSocket(t *testing.T) {
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	if _, err := peerCaller(a); err == nil {
		t.Error("a pipe has no peer credentials")
	}
}
