package lamd

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// testNode is a node API over a store of its own. Its peers are set later.
func testNode(t *testing.T, id job.NodeID) (*nodeAPI, *http.ServeMux) {
	t.Helper()
	state := t.TempDir()
	store, err := image.OpenStore(state)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	m, _ := testPods(t)
	n := &nodeAPI{
		self: id, store: store, pods: m, log: testLog(t), archive: &archive{dir: filepath.Join(state, "ended")},
		stateOf: func(id job.ID) string { return filepath.Join(state, "jobs", id.String()) },
		tmpOf:   func(id job.ID) string { return filepath.Join(state, "tmp", id.String()) },
	}
	mux := http.NewServeMux()
	n.routes(mux)
	return n, mux
}

// writeImage stores an image of pod 0 of job 7 at epoch 3.
func writeImage(t *testing.T, s *image.Store) podapi.Written {
	t.Helper()
	dir, err := s.CreateJob(7, -1, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	w, err := dir.Create(image.Identity{Job: 7, Pod: 0, Epoch: 3, Incarnation: 1}, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Abort() }()
	p, err := w.Process(1000)
	if err != nil {
		t.Fatal(err)
	}
	memory := bytes.Repeat([]byte("lampause"), 3*image.PageSize/8)
	if err := errors.Join(p.Write(0x10000, memory), p.Close()); err != nil {
		t.Fatal(err)
	}
	host, err := image.LocalHost()
	if err != nil {
		t.Fatal(err)
	}
	written, err := w.Commit(context.Background(), &image.Manifest{
		Node: "n1", Ranks: map[job.Rank]int{0: 1000}, Host: host,
		Processes: []image.Process{{PID: 1000, Threads: []image.Thread{{TID: 1000}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return written
}

// verify opens the image as a recovery would.
func verify(t *testing.T, s *image.Store) error {
	t.Helper()
	dir, err := s.Job(7)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	r, err := dir.Open(3, 0)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return r.VerifyDigests(testContext(t))
}

// spoilt passes on what h answers with one bit changed in the second half of
// every body that is not the manifest.
func spoilt(h http.Handler, asked *atomic.Int32) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		b := rec.Body.Bytes()
		if strings.HasPrefix(r.URL.Path, "/v1/images/") && !strings.HasSuffix(r.URL.Path, image.ManifestName) {
			asked.Add(1)
			b[len(b)-len(b)/4-1] ^= 4
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(b)
	})
}

// short passes on half of every body.
func short(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		w.Header().Set("Content-Length", rec.Header().Get("Content-Length"))
		_, _ = w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
	})
}

// tryCopy is a copy whose failure is an error.
func tryCopy(t *testing.T, n *nodeAPI, r copyRequest) error {
	t.Helper()
	out, err := n.copy(testContext(t), r)
	if err == nil && out.Failed != "" {
		err = errors.New(out.Failed)
	}
	return err
}

func TestCopyTakesTheFirstWholeImage(t *testing.T) {
	good, goodMux := testNode(t, "n1")
	written := writeImage(t, good.store)
	empty, emptyMux := testNode(t, "n5")
	_ = empty
	var asked atomic.Int32
	n, _ := testNode(t, "n2")
	n.peers = peersOf(t, nodes{"n1": goodMux, "n3": spoilt(goodMux, &asked), "n4": short(goodMux), "n5": emptyMux, "n6": nil})
	r := copyRequest{Job: 7, Epoch: 3, Pod: 0, Written: written, From: []job.NodeID{"n2", "n9", "n6", "n5", "n4", "n3", "n1"}}
	if err := tryCopy(t, n, r); err != nil {
		t.Fatal(err)
	}
	if err := verify(t, n.store); err != nil {
		t.Fatal(err)
	}
	if asked.Load() == 0 {
		t.Error("the damaged holder was not even asked")
	}
	// A repeated copy finds it there, and asks nobody.
	n.peers = peersOf(t, nodes{})
	for _, r.Urgent = range []bool{false, true} {
		if err := tryCopy(t, n, r); err != nil {
			t.Errorf("again, urgent %v: %v", r.Urgent, err)
		}
	}
}

func TestCopyThatNobodyCanGive(t *testing.T) {
	good, goodMux := testNode(t, "n1")
	written := writeImage(t, good.store)
	var asked atomic.Int32
	n, _ := testNode(t, "n2")
	n.peers = peersOf(t, nodes{"n3": spoilt(goodMux, &asked), "n6": nil})
	r := copyRequest{Job: 7, Epoch: 3, Written: written, From: []job.NodeID{"n3", "n6"}}
	err := tryCopy(t, n, r)
	if err == nil || !strings.Contains(err.Error(), "from n3") || !strings.Contains(err.Error(), "from n6") {
		t.Fatalf("got %v", err)
	}
	if err := verify(t, n.store); err == nil {
		t.Error("an image is there")
	}
	// What arrived does not stand in the way of a better holder.
	n.peers = peersOf(t, nodes{"n1": goodMux})
	r.From = []job.NodeID{"n1"}
	if err := tryCopy(t, n, r); err != nil {
		t.Error(err)
	}
}

// A leader repeats a copy whose answer it did not get.
func TestCopiesOfOneImageDoNotDisturbEachOther(t *testing.T) {
	good, goodMux := testNode(t, "n1")
	written := writeImage(t, good.store)
	n, _ := testNode(t, "n2")
	n.peers = peersOf(t, nodes{"n1": goodMux})
	ctx := testContext(t)
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			if _, err := n.copy(ctx, copyRequest{Job: 7, Epoch: 3, Written: written, From: []job.NodeID{"n1"}}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := verify(t, n.store); err != nil {
		t.Error(err)
	}
}

func TestCopyWithAListThatIsNotWhatItSays(t *testing.T) {
	good, goodMux := testNode(t, "n1")
	written := writeImage(t, good.store)
	n, _ := testNode(t, "n2")
	n.peers = peersOf(t, nodes{"n1": goodMux})
	written.Files["../../x"] = podapi.File{}
	if _, err := n.copy(testContext(t), copyRequest{Job: 7, Epoch: 3, Written: written, From: []job.NodeID{"n1"}}); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestImagesThatAreNotServed(t *testing.T) {
	n, mux := testNode(t, "n1")
	writeImage(t, n.store)
	for path, want := range map[string]int{
		"/v1/images/7/3/0/manifest":           http.StatusOK,
		"/v1/images/7/3/0/..%2f..%2fUSED":     http.StatusNotFound,
		"/v1/images/7/3/0/p1.pages":           http.StatusNotFound,
		"/v1/images/7/3/1/manifest":           http.StatusNotFound,
		"/v1/images/7/4/0/manifest":           http.StatusNotFound,
		"/v1/images/8/3/0/manifest":           http.StatusNotFound,
		"/v1/images/x/3/0/manifest":           http.StatusBadRequest,
		"/v1/images/7/-3/0/manifest":          http.StatusBadRequest,
		"/v1/images/7/3/99999999999/manifest": http.StatusBadRequest,
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// What is sealed can be found by a cluster that never heard of the job, until
// it is dropped.
func TestSealHeldDrop(t *testing.T) {
	n, mux := testNode(t, "n1")
	written := writeImage(t, n.store)
	digests := map[job.PodIndex]string{0: written.Digest}
	commit := image.Commit{Job: 7, Epoch: 3, Pods: digests, SetDigest: image.SetDigest(digests), Record: []byte(`{}`)}
	held := func() []heldEpoch {
		var out []heldEpoch
		err := peersOf(t, nodes{"n1": mux}).call(testContext(t), "n1", http.MethodGet, "/v1/node/images/7", nil, &out)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := held(); len(got) != 0 {
		t.Errorf("not committed, but held: %+v", got)
	}
	for range 2 {
		if err := n.seal(testContext(t), sealRequest{Commit: commit}); err != nil {
			t.Fatal(err)
		}
	}
	if got := held(); len(got) != 1 || got[0].Pods[0] != written.Digest {
		t.Errorf("%+v", got)
	}
	for _, d := range []dropRequest{{Job: 7, Epoch: 3}, {Job: 7, Epoch: 3}, {Job: 7}, {Job: 7}} {
		if err := n.drop(testContext(t), d); err != nil {
			t.Errorf("%+v: %v", d, err)
		}
	}
	if got := held(); len(got) != 0 {
		t.Errorf("dropped, but held: %+v", got)
	}
}
