package tree

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lampause/lampause/job"
)

// names makes n0, n1, ...
func names(n int) []job.NodeID {
	out := make([]job.NodeID, n)
	for i := range out {
		out[i] = job.NodeID(fmt.Sprintf("n%d", i))
	}
	return out
}

func TestChildren(t *testing.T) {
	for _, c := range []struct {
		name  string
		n     int
		arity int
		root  job.NodeID
		dead  []job.NodeID
		want  map[job.NodeID][]job.NodeID
		depth int
	}{
		{"alone", 1, 2, "n0", nil, map[job.NodeID][]job.NodeID{"n0": nil}, 0},
		{"flat", 4, 16, "n0", nil, map[job.NodeID][]job.NodeID{"n0": {"n1", "n2", "n3"}, "n1": nil}, 1},
		{"flat from the middle", 4, 16, "n2", nil, map[job.NodeID][]job.NodeID{"n2": {"n3", "n0", "n1"}}, 1},
		{"17 are flat", 17, 16, "n0", nil, map[job.NodeID][]job.NodeID{"n0": names(17)[1:]}, 1},
		{"18 are not", 18, 16, "n0", nil, map[job.NodeID][]job.NodeID{"n0": {"n1", "n17"}, "n1": names(17)[2:]}, 2},
		{
			"binary", 8, 2, "n0", nil,
			map[job.NodeID][]job.NodeID{"n0": {"n1", "n5"}, "n1": {"n2", "n4"}, "n2": {"n3"}, "n5": {"n6", "n7"}, "n3": nil},
			3,
		},
		{
			"dead head", 8, 2, "n0",
			[]job.NodeID{"n1"},
			map[job.NodeID][]job.NodeID{"n0": {"n2", "n5"}, "n2": {"n3", "n4"}, "n1": nil},
			2,
		},
		{
			"dead interval", 8, 2, "n0",
			[]job.NodeID{"n5", "n6", "n7"},
			map[job.NodeID][]job.NodeID{"n0": {"n1"}, "n1": {"n2", "n4"}},
			3,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr, ok := New(View{Nodes: names(c.n), Dead: c.dead, Arity: c.arity}, c.root)
			if !ok {
				t.Fatal("no tree")
			}
			for n, want := range c.want {
				if d := cmp.Diff(want, tr.Children(n)); d != "" {
					t.Errorf("children of %s (-want +got):\n%s", n, d)
				}
			}
			if d := tr.Depth(); d != c.depth {
				t.Errorf("depth %d, want %d", d, c.depth)
			}
		})
	}
}

func TestNoTree(t *testing.T) {
	v := View{Nodes: names(4), Dead: []job.NodeID{"n2"}}
	for _, root := range []job.NodeID{"n2", "n9", ""} {
		if _, ok := New(v, root); ok {
			t.Errorf("a tree with root %q", root)
		}
	}
	tr, _ := New(v, "n0")
	for _, n := range []job.NodeID{"n2", "n9"} {
		if tr.Route(n) != nil || tr.Children(n) != nil {
			t.Errorf("%s is in the tree", n)
		}
		if _, ok := tr.Parent(n); ok {
			t.Errorf("%s has a parent", n)
		}
	}
	if _, ok := tr.Parent("n0"); ok {
		t.Error("the root has a parent")
	}
}

// TestShape: whatever the view, the tree spans the living, is narrow and flat,
// and agrees with itself.
func TestShape(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "n")
		arity := rapid.IntRange(2, 20).Draw(t, "arity")
		nodes := names(n)
		root := nodes[rapid.IntRange(0, n-1).Draw(t, "root")]
		var dead []job.NodeID
		for _, x := range nodes {
			if x != root && rapid.IntRange(0, 4).Draw(t, "die") == 0 {
				dead = append(dead, x)
			}
		}
		tr, ok := New(View{Nodes: nodes, Dead: dead, Arity: arity}, root)
		if !ok {
			t.Fatal("no tree")
		}
		reached := map[job.NodeID]int{root: 0}
		queue := []job.NodeID{root}
		deepest := 0
		for len(queue) > 0 {
			at := queue[0]
			queue = queue[1:]
			kids := tr.Children(at)
			if len(kids) > arity {
				t.Fatalf("%s has %d children", at, len(kids))
			}
			for _, k := range kids {
				if _, twice := reached[k]; twice {
					t.Fatalf("%s is reached twice", k)
				}
				reached[k] = reached[at] + 1
				deepest = max(deepest, reached[k])
				if p, ok := tr.Parent(k); !ok || p != at {
					t.Fatalf("parent of %s is %s, not %s", k, p, at)
				}
				if r := tr.Route(k); len(r) != reached[k]+1 || r[0] != root || r[len(r)-1] != k || r[len(r)-2] != at {
					t.Fatalf("route to %s is %v", k, r)
				}
				queue = append(queue, k)
			}
		}
		if len(reached) != n-len(dead) {
			t.Fatalf("%d of %d living reached", len(reached), n-len(dead))
		}
		if deepest != tr.Depth() {
			t.Fatalf("depth %d, Depth says %d", deepest, tr.Depth())
		}
		// One level more than the logarithm: the head of an interval takes a
		// number without filling a level.
		if bound := int(math.Ceil(math.Log(float64(n))/math.Log(float64(arity)))) + 1; deepest > bound {
			t.Fatalf("depth %d of %d nodes with arity %d", deepest, n, arity)
		}
		for _, d := range dead {
			if slices.Contains(queue, d) {
				t.Fatalf("dead %s is in the tree", d)
			}
		}
	})
}
