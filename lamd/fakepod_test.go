package lamd

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// fakePod is a supervisor: it serves podapi on its socket, and a process of its
// own stands for the pod.
type fakePod struct {
	t       *testing.T
	dir     string
	spec    podapi.PodSpec
	proc    *exec.Cmd
	ended   chan struct{} // closed when proc was reaped
	srv     *http.Server
	output  func(http.ResponseWriter, *http.Request)
	onLease func(http.ResponseWriter, *http.Request)

	mu      sync.Mutex
	version int
	deaf    bool // POST /v1/kill is not answered
	links   []string
	signals []podapi.Signal
	leases  []podapi.Lease
	kills   int
}

// fakeStarter starts fakePods, and remembers them.
type fakeStarter struct {
	t    *testing.T
	hook func(*fakePod)        // before it serves
	hold func(context.Context) // before anything

	mu     sync.Mutex
	starts []*fakePod
}

func (s *fakeStarter) Start(ctx context.Context, dir string) error {
	if s.hold != nil {
		s.hold(ctx)
	}
	b, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return err
	}
	f := &fakePod{t: s.t, dir: dir, version: podapi.Version, ended: make(chan struct{})}
	if err := json.Unmarshal(b, &f.spec); err != nil {
		return err
	}
	if s.hook != nil {
		s.hook(f)
	}
	s.mu.Lock()
	s.starts = append(s.starts, f)
	s.mu.Unlock()
	return f.serve()
}

func (s *fakeStarter) pods() []*fakePod {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*fakePod(nil), s.starts...)
}

func (f *fakePod) serve() error {
	f.proc = exec.CommandContext(context.Background(), "sleep", "600")
	if err := f.proc.Start(); err != nil {
		return err
	}
	go func() {
		_ = f.proc.Wait()
		close(f.ended)
	}()
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", filepath.Join(f.dir, podapi.Socket))
	if err != nil {
		return err
	}
	f.srv = &http.Server{Handler: f.routes()}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = f.srv.Serve(ln)
	}()
	f.t.Cleanup(func() {
		_ = f.srv.Close()
		<-served
		f.crash()
	})
	return nil
}

// crash ends the pod's process; the socket stays.
func (f *fakePod) crash() {
	_ = f.proc.Process.Kill()
	<-f.ended
}

// die ends supervisor and pod, as the kernel would: the socket file stays.
func (f *fakePod) die() {
	_ = f.srv.Close()
	f.crash()
}

func (f *fakePod) alive() bool {
	select {
	case <-f.ended:
		return false
	default:
		return true
	}
}

func (f *fakePod) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+podapi.PathStatus, func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		writeJSON(w, podapi.Status{Version: f.version, Header: f.spec.Header, SupervisorPID: f.proc.Process.Pid})
	})
	mux.HandleFunc("POST "+podapi.PathLink, take(f, func(l podapi.Link) { f.links = append(f.links, l.Name) }))
	mux.HandleFunc("POST "+podapi.PathSignal, take(f, func(s podapi.Signal) { f.signals = append(f.signals, s) }))
	mux.HandleFunc("POST "+podapi.PathLease, func(w http.ResponseWriter, r *http.Request) {
		if f.onLease != nil {
			f.onLease(w, r)
			return
		}
		take(f, func(l podapi.Lease) { f.leases = append(f.leases, l) })(w, r)
	})
	mux.HandleFunc("POST "+podapi.PathKill, f.kill)
	mux.HandleFunc("GET "+podapi.PathOutput, func(w http.ResponseWriter, r *http.Request) {
		if f.output == nil {
			writeError(w, errors.New("no output"))
			return
		}
		f.output(w, r)
	})
	mux.HandleFunc("GET "+podapi.PathEvents, func(w http.ResponseWriter, r *http.Request) {
		_, flush := jsonLines(w)
		flush()
		<-r.Context().Done()
	})
	return mux
}

func (f *fakePod) kill(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // lets the server see the caller go
	f.mu.Lock()
	f.kills++
	deaf := f.deaf
	f.mu.Unlock()
	if deaf {
		<-r.Context().Done()
		return
	}
	f.crash()
	writeJSON(w, struct{}{})
}

// take handles a request by remembering it.
func take[T any](f *fakePod, keep func(T)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in T
		if err := readJSON(r, &in); err != nil {
			writeError(w, err)
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		keep(in)
		writeJSON(w, struct{}{})
	}
}

// fakeLinker gives every pod the same name of a link.
type fakeLinker struct{ err error }

func (l fakeLinker) Attach(context.Context, int, job.ID, job.PodAddress) (string, error) {
	return "link0", l.err
}

// specOf returns a specification of pod 0 of a job, which has one rank.
func specOf(id job.ID, built job.Incarnation) podapi.PodSpec {
	return podapi.PodSpec{
		Header:    podapi.Header{Job: id, Incarnation: built},
		Placement: job.PodPlacement{Pod: 0, Ranks: []job.Rank{0}},
		Book:      []job.PodAddress{{Pod: 0, MAC: "02:00:00:00:00:01"}},
	}
}

// testPods returns a manager whose supervisors are fakes.
func testPods(t *testing.T) (*pods, *fakeStarter) {
	t.Helper()
	s := &fakeStarter{t: t}
	m := newPods(shortDir(t), s, fakeLinker{}, testLog(t))
	t.Cleanup(func() {
		for _, p := range m.list() {
			m.forget(p)
		}
	})
	return m, s
}

func everyPod(*localPod) bool { return true }

// startOne starts a pod and returns its supervisor.
func startOne(t *testing.T, m *pods, s *fakeStarter, spec podapi.PodSpec) *fakePod {
	t.Helper()
	if err := m.start(testContext(t), spec); err != nil {
		t.Fatalf("start: %v", err)
	}
	all := s.pods()
	return all[len(all)-1]
}
