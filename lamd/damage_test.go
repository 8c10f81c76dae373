package lamd

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler/conduct"
)

// damage changes the stored image of pod 0 of job 7 at epoch 3.
func damage(t *testing.T, n *nodeAPI, how string) {
	t.Helper()
	dir := filepath.Join(n.stateOf(7), "3", "pod0")
	files, err := filepath.Glob(dir + "/*")
	if err != nil || len(files) < 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		isManifest := filepath.Base(f) == image.ManifestName
		if (how == "manifest") != isManifest && how != "gone" {
			continue
		}
		if how == "gone" {
			err = os.Remove(f)
		} else {
			var b []byte
			if b, err = os.ReadFile(f); err == nil {
				b[len(b)/2] ^= 1
				err = os.WriteFile(f, b, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if how == "gone" {
		err = os.Remove(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A recovery reads around damaged copies, brings its own anew, and tells who
// has none; when nobody has one it says so, and only then.
func TestDamagedImages(t *testing.T) {
	for name, c := range map[string]struct {
		own, other string // damage here and at n1; "" = intact, "dead" = n1 does not answer
		kind       conduct.FailureKind
		damaged    []job.NodeID
		digests    bool // as in a restart of all ranks
	}{
		"intact":                      {},
		"own pages":                   {own: "pages", damaged: []job.NodeID{"n2"}},
		"own pages, by SHA-256":       {own: "pages", damaged: []job.NodeID{"n2"}, digests: true},
		"both, by SHA-256":            {own: "pages", other: "pages", kind: conduct.NoIntactCopy, damaged: []job.NodeID{"n2", "n1"}, digests: true},
		"own manifest":                {own: "manifest", damaged: []job.NodeID{"n2"}},
		"own is gone":                 {own: "gone", damaged: []job.NodeID{"n2"}},
		"both, pages":                 {own: "pages", other: "pages", kind: conduct.NoIntactCopy, damaged: []job.NodeID{"n2", "n1"}},
		"both, manifest and gone":     {own: "manifest", other: "gone", kind: conduct.NoIntactCopy, damaged: []job.NodeID{"n2", "n1"}},
		"own, the other one is dead":  {own: "pages", other: "dead", kind: conduct.FailedForGood, damaged: []job.NodeID{"n2"}},
		"the other one is not needed": {other: "pages"},
	} {
		t.Run(name, func(t *testing.T) {
			n1, mux1 := testNode(t, "n1")
			n2, _ := testNode(t, "n2")
			n2.peers = peersOf(t, nodes{"n1": mux1})
			r := copyRequest{Job: 7, Epoch: 3, From: []job.NodeID{"n1"}, Written: writeImage(t, n1.store)}
			if err := tryCopy(t, n2, r); err != nil {
				t.Fatal(err)
			}
			if c.own != "" {
				damage(t, n2, c.own)
			}
			switch c.other {
			case "":
			case "dead":
				n2.peers = peersOf(t, nodes{"n1": nil})
			default:
				damage(t, n1, c.other)
			}
			r.From, r.Urgent, r.Digests = []job.NodeID{"n1", "n2"}, true, c.digests
			out, err := n2.copy(testContext(t), r)
			if err != nil {
				t.Fatal(err)
			}
			d := copyDone(conduct.Done{Ref: 5}, r, out)
			if !slices.Equal(d.Damaged, c.damaged) {
				t.Errorf("damaged %v, want %v", d.Damaged, c.damaged)
			}
			switch {
			case c.kind == 0 && d.Failure != nil:
				t.Error(d.Failure)
			case c.kind != 0 && (d.Failure == nil || d.Failure.Kind != c.kind):
				t.Errorf("failure %+v, want kind %d", d.Failure, c.kind)
			case c.kind == 0:
				if err := verify(t, n2.store); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
