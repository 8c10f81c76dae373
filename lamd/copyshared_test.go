package lamd

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// writeSeries stores epochs 3 and 4 of pod 0 of job 7; 4 shares most with 3.
func writeSeries(t *testing.T, s *image.Store) (out []podapi.Written) {
	t.Helper()
	dir, err := s.CreateJob(7, -1, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	page := func(e job.Epoch) []byte { return []byte(strings.Repeat(fmt.Sprintf("epoch %2d", e), image.PageSize/8)) }
	for e := job.Epoch(3); e <= 4; e++ {
		w, err := dir.Create(image.Identity{Job: 7, Epoch: e, Incarnation: 1}, image.Options{})
		if err != nil {
			t.Fatal(err)
		}
		pages := 8
		if e == 4 {
			base, err := dir.Open(3, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = base.Close() }()
			if err := w.Base(base); err != nil {
				t.Fatal(err)
			}
			pages = 1
		}
		p, err := w.Process(1000)
		if err != nil {
			t.Fatal(err)
		}
		if e == 4 && len(p.Keep([]image.Span{{Start: image.PageSize, End: 8 * image.PageSize}})) > 0 {
			t.Fatal("nothing is shared")
		}
		for i := range pages {
			err = errors.Join(err, p.Write(uint64(i*image.PageSize), page(e))) //nolint:gosec // small
		}
		if err := errors.Join(err, p.Close()); err != nil {
			t.Fatal(err)
		}
		written, err := w.Commit(t.Context(), &image.Manifest{
			Ranks: map[job.Rank]int{0: 1000}, Processes: []image.Process{{PID: 1000, Threads: []image.Thread{{TID: 1000}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, written)
	}
	return out
}

// TestCopyShared: a holder of the epoch before is sent only what is new; one
// that has nothing, all of it. Dropping the older epoch harms neither.
func TestCopyShared(t *testing.T) {
	n1, mux := testNode(t, "n1")
	series := writeSeries(t, n1.store)
	var mu sync.Mutex
	var asked []string
	counting := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, filepath.Base(r.URL.Path))
		mu.Unlock()
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, r)
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	})
	for name, c := range map[string]struct {
		before bool
		want   int // page files that are sent of epoch 4
	}{"holder of the epoch before": {true, 1}, "new holder": {false, 2}} {
		t.Run(name, func(t *testing.T) {
			n2, _ := testNode(t, "n2")
			n2.peers = peersOf(t, nodes{"n1": counting})
			if c.before {
				if err := tryCopy(t, n2, copyRequest{Job: 7, Epoch: 3, Written: series[0], From: []job.NodeID{"n1"}}); err != nil {
					t.Fatal(err)
				}
			}
			asked = nil
			if err := tryCopy(t, n2, copyRequest{Job: 7, Epoch: 4, Written: series[1], From: []job.NodeID{"n1"}}); err != nil {
				t.Fatal(err)
			}
			if len(asked) != c.want+1 {
				t.Errorf("asked for %v", asked)
			}
			if err := n2.drop(testContext(t), dropRequest{Job: 7, Epoch: 3}); err != nil {
				t.Fatal(err)
			}
			dir, err := n2.store.Job(7)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = dir.Close() }()
			for _, digests := range []bool{false, true} {
				r := checkRequest{Job: 7, Epoch: 4, Written: series[1], Digests: digests}
				if err := checkImage(testContext(t), dir, r); err != nil {
					t.Error(err)
				}
			}
			if _, err := os.Stat(filepath.Join(dir.Path(), "3")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("epoch 3: %v", err)
			}
		})
	}
}
