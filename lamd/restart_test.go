package lamd

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// heldOf makes what a store holds of an epoch of job 7 with two pods: have lists
// the pods whose images are there; make tells one make of an epoch from another.
func heldOf(t *testing.T, epoch job.Epoch, mark string, have ...job.PodIndex) heldEpoch {
	t.Helper()
	digests := map[job.PodIndex]string{0: mark + "0", 1: mark + "1"}
	j := scheduler.Job{ID: 7, Spec: job.Spec{UID: 1000, Name: mark}, Epochs: []scheduler.Epoch{{Epoch: epoch, Images: []scheduler.PodImage{
		{Pod: 0, Written: podapi.Written{Digest: digests[0], Ranks: []job.Rank{0}}, Holders: []job.NodeID{"gone"}},
		{Pod: 1, Written: podapi.Written{Digest: digests[1], Ranks: []job.Rank{1}}},
	}}}}
	h := heldEpoch{
		Commit: image.Commit{Job: 7, Epoch: epoch, SetDigest: image.SetDigest(digests), Pods: digests, Record: mustJSON(t, j)},
		Pods:   map[job.PodIndex]string{},
	}
	for _, p := range have {
		h.Pods[p] = digests[p]
	}
	return h
}

func TestAssemble(t *testing.T) {
	damaged := heldOf(t, 3, "a", 0, 1)
	damaged.Pods[1] = "another digest"
	foreign := heldOf(t, 3, "b") // the same number, given by another cluster
	foreign.Commit.RaftIndex = 99
	other := heldOf(t, 3, "a", 0, 1)
	other.Commit.Record = json.RawMessage(`{"id": 8}`)
	broken := heldOf(t, 3, "a", 0, 1)
	broken.Commit.Record = json.RawMessage(`{`)
	for name, c := range map[string]struct {
		held  map[job.NodeID][]heldEpoch
		want  job.Epoch // asked for
		epoch job.Epoch // got; 0 when refused
		by    [][]job.NodeID
		say   string
	}{
		"nothing": {say: "no committed image of job 7"},
		"one node": {
			held: map[job.NodeID][]heldEpoch{"n1": {heldOf(t, 3, "a", 0, 1)}}, epoch: 3, by: [][]job.NodeID{{"n1"}, {"n1"}},
		},
		"spread": {
			held:  map[job.NodeID][]heldEpoch{"n2": {heldOf(t, 3, "a", 0, 1)}, "n1": {heldOf(t, 3, "a", 1)}},
			epoch: 3, by: [][]job.NodeID{{"n2"}, {"n1", "n2"}},
		},
		"newest": {
			held:  map[job.NodeID][]heldEpoch{"n1": {heldOf(t, 3, "a", 0, 1), heldOf(t, 12, "c", 0, 1), heldOf(t, 5, "d", 0, 1)}},
			epoch: 12, by: [][]job.NodeID{{"n1"}, {"n1"}},
		},
		"newest incomplete": {
			held:  map[job.NodeID][]heldEpoch{"n1": {heldOf(t, 3, "a", 0, 1), heldOf(t, 4, "c", 0)}},
			epoch: 3, by: [][]job.NodeID{{"n1"}, {"n1"}},
		},
		"asked": {
			held:  map[job.NodeID][]heldEpoch{"n1": {heldOf(t, 3, "a", 0, 1), heldOf(t, 4, "c", 0, 1)}},
			want:  3,
			epoch: 3, by: [][]job.NodeID{{"n1"}, {"n1"}},
		},
		"asked, not there": {held: map[job.NodeID][]heldEpoch{"n1": {heldOf(t, 3, "a", 0, 1)}}, want: 2, say: "no committed image"},
		"asked, incomplete": {
			held: map[job.NodeID][]heldEpoch{"n1": {heldOf(t, 3, "a", 0, 1), heldOf(t, 4, "c", 0)}}, want: 4, say: "no intact image for ranks [1]",
		},
		"missing": {held: map[job.NodeID][]heldEpoch{"n1": {heldOf(t, 3, "a", 1)}}, say: "epoch 3: no intact image for ranks [0]"},
		"the newest one's reason": {
			held: map[job.NodeID][]heldEpoch{"n1": {heldOf(t, 3, "a", 1), heldOf(t, 4, "c", 0)}}, say: "epoch 4: no intact image for ranks [1]",
		},
		"digest differs": {held: map[job.NodeID][]heldEpoch{"n1": {damaged}}, say: "no intact image for ranks [1]"},
		"digest differs here only": {
			held:  map[job.NodeID][]heldEpoch{"n1": {damaged}, "n2": {heldOf(t, 3, "a", 1)}},
			epoch: 3, by: [][]job.NodeID{{"n1"}, {"n2"}},
		},
		"two makes": {
			held:  map[job.NodeID][]heldEpoch{"n1": {foreign}, "n2": {heldOf(t, 3, "a", 0, 1)}},
			epoch: 3, by: [][]job.NodeID{{"n2"}, {"n2"}},
		},
		"record of another job": {held: map[job.NodeID][]heldEpoch{"n1": {other}}, say: "another job"},
		"record damaged":        {held: map[job.NodeID][]heldEpoch{"n1": {broken}}, say: "record"},
	} {
		t.Run(name, func(t *testing.T) {
			j, err := assemble(c.held, 7, c.want)
			if c.epoch == 0 {
				var e *control.Error
				if !errors.As(err, &e) || e.Status != http.StatusNotFound || !strings.Contains(e.Message, c.say) {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil || len(j.Epochs) != 1 || j.Epochs[0].Epoch != c.epoch {
				t.Fatalf("%+v, %v", j.Epochs, err)
			}
			for i, by := range c.by {
				if diff := cmp.Diff(by, j.Epochs[0].Images[i].Holders); diff != "" {
					t.Errorf("holders of pod %d: %s", i, diff)
				}
			}
		})
	}
}

// A number that was given in an earlier cluster, to an epoch that is not gone
// back to or to a round that came to nothing, is not given again: stores refuse it.
func TestRestartKeepsNumbers(t *testing.T) {
	n, _ := testNode(t, "n1")
	writeImage(t, n.store) // epoch 3 of job 7
	dir, err := n.store.Job(7)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	c := heldOf(t, 3, "a").Commit
	if err := errors.Join(dir.MarkCommitted(c), dir.Remove(6)); err != nil { // a round that was abandoned
		t.Fatal(err)
	}
	here, err := heldEpochs(n.store, 7)
	if err != nil || len(here) != 1 || here[0].Last != 6 {
		t.Fatalf("%+v, %v", here, err)
	}
	there := heldOf(t, 3, "a", 0, 1)
	there.Last = 4
	j, err := assemble(map[job.NodeID][]heldEpoch{"n1": here, "n2": {there}}, 7, 0)
	if err != nil || j.LastEpoch != 6 {
		t.Errorf("the newest number is %d, want 6: %v", j.LastEpoch, err)
	}
}
