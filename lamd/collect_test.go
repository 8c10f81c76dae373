package lamd

import (
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// All nodes are asked at the same time what they hold: each answers only when
// all were asked. One does not answer at all.
func TestCollectAsksAllAtOnce(t *testing.T) {
	const n = 20
	var mu sync.Mutex
	asked := 0
	all := make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		if asked++; asked == n-1 {
			close(all)
		}
		mu.Unlock()
		select {
		case <-all:
		case <-r.Context().Done():
			return
		}
		writeJSON(w, []heldEpoch{heldOf(t, 3, "a", 0, 1)})
	})
	at, st := nodes{}, &scheduler.State{Nodes: map[job.NodeID]scheduler.Node{}}
	for i := range n {
		id := nodeName(i)
		at[id] = handler
		st.Nodes[id] = scheduler.Node{ID: id, Boot: 1, State: scheduler.Alive}
	}
	at["n07"] = nil
	a := &jobsAPI{peers: peersOf(t, at), log: testLog(t)}
	j, err := a.collect(testContext(t), st, 7, 0)
	if err != nil {
		t.Fatal(err)
	}
	if h := j.Epochs[0].Images[1].Holders; len(h) != n-1 || slices.Contains(h, "n07") {
		t.Errorf("holders %v", h)
	}
}

// The epoch before comes along when the record of the newest names it and it is
// whole: a second way back.
func TestRestartKeepsTheEpochBefore(t *testing.T) {
	two := func(mark string) heldEpoch {
		older, newest := heldOf(t, 2, mark), heldOf(t, 3, "a", 0, 1)
		var o, j scheduler.Job
		mustParse(t, older.Commit.Record, &o)
		mustParse(t, newest.Commit.Record, &j)
		o.Epochs[0].SetDigest = older.Commit.SetDigest
		j.Epochs = []scheduler.Epoch{o.Epochs[0], j.Epochs[0]}
		newest.Commit.Record = mustJSON(t, j)
		return newest
	}
	for name, c := range map[string]struct {
		held []heldEpoch
		want []job.Epoch
	}{
		"whole":                   {[]heldEpoch{two("a"), heldOf(t, 2, "a", 0, 1)}, []job.Epoch{2, 3}},
		"not whole":               {[]heldEpoch{two("a"), heldOf(t, 2, "a", 1)}, []job.Epoch{3}},
		"of another make":         {[]heldEpoch{two("a"), heldOf(t, 2, "b", 0, 1)}, []job.Epoch{3}},
		"not in the record":       {[]heldEpoch{heldOf(t, 3, "a", 0, 1), heldOf(t, 2, "a", 0, 1)}, []job.Epoch{3}},
		"the newest is not whole": {[]heldEpoch{heldOf(t, 3, "a", 0), heldOf(t, 2, "a", 0, 1)}, []job.Epoch{2}},
	} {
		t.Run(name, func(t *testing.T) {
			j, err := assemble(map[job.NodeID][]heldEpoch{"n1": c.held}, 7, 0)
			if err != nil {
				t.Fatal(err)
			}
			var got []job.Epoch
			for _, e := range j.Epochs {
				got = append(got, e.Epoch)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("epochs %v, want %v", got, c.want)
			}
		})
	}
}
