package lamd

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

func cursorAt(offset int64) control.Cursor {
	return control.Cursor{{Rank: 0, FD: 1}: offset}
}

// world is a replicated state that a test changes.
type world struct {
	news *news

	mu sync.Mutex // guards below
	st *scheduler.State
}

// newWorld has nodes n1 and n2, and job 7 of user 1000 with one rank on n1.
func newWorld() *world {
	alive := func(id job.NodeID) scheduler.Node {
		return scheduler.Node{ID: id, Boot: 1, State: scheduler.Alive, Addr: "10.77.0.1"}
	}
	w := &world{news: newNews(), st: &scheduler.State{
		Index: 1,
		Nodes: map[job.NodeID]scheduler.Node{"n1": alive("n1"), "n2": alive("n2")},
		Jobs: map[job.ID]*scheduler.Job{7: {
			ID: 7, State: job.Running, Incarnation: 1, Spec: job.Spec{UID: 1000, Ranks: 1, Name: "prog"},
			Pods: []scheduler.Pod{{Index: 0, Node: "n1", Boot: 1, Ranks: []job.Rank{0}, Built: 1}},
		}},
		Keys: map[string]job.ID{},
	}}
	w.news.reach(1)
	return w
}

func (w *world) state() *scheduler.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.st
}

// change makes a new state, with a job 7 of its own.
func (w *world) change(f func(*scheduler.State, *scheduler.Job)) {
	w.mu.Lock()
	next, j := *w.st, *w.st.Jobs[7]
	next.Index++
	j.Pods = append([]scheduler.Pod(nil), j.Pods...)
	next.Jobs = map[job.ID]*scheduler.Job{7: &j}
	f(&next, &j)
	w.st = &next
	w.mu.Unlock()
	w.news.reach(next.Index)
}

func (w *world) end() {
	w.change(func(_ *scheduler.State, j *scheduler.Job) { j.State = job.Done; j.ExitCode = new(int) })
}

func (w *world) api(t *testing.T, all nodes) *jobsAPI {
	t.Helper()
	return &jobsAPI{
		lead: func() *lead { return nil }, state: w.state, changed: w.news.after, peers: peersOf(t, all), log: testLog(t),
		raft:  func() map[job.NodeID]string { return nil },
		apply: func(context.Context, scheduler.Command) error { return errNotLeading },
	}
}

// readOutput is a client of GET output; it returns all frames.
func readOutput(t *testing.T, a *jobsAPI, from string) []podapi.Output {
	t.Helper()
	srv := httptest.NewServer(as(1000, a.routes()))
	defer srv.Close()
	req, err := http.NewRequestWithContext(testContext(t), http.MethodGet, srv.URL+"/v1/jobs/7/output?from="+from, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d", resp.StatusCode)
	}
	return framesOf(t, resp.Body)
}

// as serves h for requests of a user.
func as(uid uint32, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(withCaller(r.Context(), caller{uid: uid, gid: uid})))
	})
}

// script answers the n-th request of a pod's output with its n-th step, and
// later ones with the last.
type script struct {
	mu    sync.Mutex
	asked []string // the cursors
	steps []http.HandlerFunc
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	n := min(len(s.asked), len(s.steps)-1)
	s.asked = append(s.asked, r.URL.Query().Get("at"))
	s.mu.Unlock()
	s.steps[n](w, r)
}

func text(frames []podapi.Output) string {
	var out []byte
	for _, f := range frames {
		if f.FD == 1 {
			out = append(out[:f.Offset], f.Data...)
		}
	}
	return string(out)
}

func TestOutputOfAnEndedJob(t *testing.T) {
	w := newWorld()
	w.end()
	got := readOutput(t, w.api(t, nodes{"n1": &script{steps: []http.HandlerFunc{sending(wholeOutput...)}}}), "")
	if diff := cmp.Diff(wholeOutput, got); diff != "" {
		t.Error(diff)
	}
}

func TestOutputGoesOnWhereAStreamWasCut(t *testing.T) {
	w := newWorld()
	w.end()
	s := &script{steps: []http.HandlerFunc{
		sending(wholeOutput[:2]...),
		func(w http.ResponseWriter, _ *http.Request) { writeError(w, unavailable("busy")) },
		sending(wholeOutput[2:]...),
	}}
	if got := text(readOutput(t, w.api(t, nodes{"n1": s}), "")); got != "hello world" {
		t.Errorf("%q", got)
	}
	if diff := cmp.Diff([]string{"", "0.1:6", "0.1:6"}, s.asked); diff != "" {
		t.Error(diff)
	}
}

func TestOutputFollowsAPodThatMoves(t *testing.T) {
	w := newWorld()
	old := &script{steps: []http.HandlerFunc{func(rw http.ResponseWriter, r *http.Request) {
		sending(frame(1, 0, "hello ", false))(rw, r)
		<-r.Context().Done() // a dead node's connection says nothing
	}}}
	now := &script{steps: []http.HandlerFunc{func(rw http.ResponseWriter, r *http.Request) {
		w.end()
		// A rollback took the last byte back.
		sending(frame(1, 5, "", false), frame(1, 5, ", world", true), frame(2, 0, "", true))(rw, r)
	}}}
	rd := &podReader{
		api: w.api(t, nodes{"n1": old, "n2": now}), job: 7, eof: map[control.Stream]bool{},
		pos: control.Cursor{{Rank: 0, FD: 1}: 0, {Rank: 0, FD: 2}: 0},
	}
	frames := make(chan podapi.Output)
	go func() {
		defer close(frames)
		rd.run(testContext(t), frames)
	}()
	got := []podapi.Output{<-frames}
	w.change(func(_ *scheduler.State, j *scheduler.Job) { j.Pods[0].Node, j.Pods[0].Built = "n2", 2 })
	for f := range frames {
		got = append(got, f)
	}
	if text(got) != "hello, world" {
		t.Errorf("%q", text(got))
	}
	if len(now.asked) == 0 || now.asked[0] != "0.1:6" {
		t.Errorf("asked %q", now.asked)
	}
}

func TestOutputFromACursor(t *testing.T) {
	w := newWorld()
	w.end()
	s := &script{steps: []http.HandlerFunc{sending(frame(1, 3, "lo", true), frame(2, 0, "", true))}}
	readOutput(t, w.api(t, nodes{"n1": s}), "0.1:3,5.2:9")
	if s.asked[0] != "0.1:3" {
		t.Errorf("asked %q: also of streams that the pod has not", s.asked[0])
	}
}

func TestOutputThatNobodyHasEndsWithTheJob(t *testing.T) {
	w := newWorld()
	w.end()
	missing := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeError(w, notFound("no pod")) })
	if got := readOutput(t, w.api(t, nodes{"n1": missing}), ""); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// The number of pods may change when a job is restarted.
func TestOutputOfAJobWithFewerPods(t *testing.T) {
	w := newWorld()
	s := &script{steps: []http.HandlerFunc{func(_ http.ResponseWriter, r *http.Request) {
		w.change(func(_ *scheduler.State, j *scheduler.Job) { j.Pods = nil })
		<-r.Context().Done()
	}}}
	readOutput(t, w.api(t, nodes{"n1": s}), "")
}

func TestOutputEndsWhenItsReaderGoes(t *testing.T) {
	w := newWorld()
	reading := make(chan struct{})
	var once sync.Once
	quiet := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, flush := jsonLines(w)
		flush()
		once.Do(func() { close(reading) })
		<-r.Context().Done()
	})
	a := w.api(t, nodes{"n1": quiet})
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := httptest.NewRequest(http.MethodGet, "/v1/jobs/7/output", nil).WithContext(ctx)
		as(1000, a.routes()).ServeHTTP(httptest.NewRecorder(), r)
	}()
	<-reading
	cancel()
	<-done // and goleak looks for its readers
}
