// Package tree reaches all members of a view: broadcasts and barriers along a
// radix tree over the numbers of the nodes, as in the membership service of
// Varma, Wang, Mueller, Engelmann and Scott (ICS 2006), instead of one sender
// that talks to everybody.
//
// # Shape
//
// A View numbers its members once and for all; dead ones keep their number. Seen
// from a root, the numbers are rotated so that the root has number 0. An interval
// of numbers has a head, its lowest live member; the rest of the interval is cut
// into at most Arity intervals of equal, power-of-Arity size, whose heads are the
// children of the head. So nobody has more than Arity children, the depth is
// ceil(log_Arity n), everybody computes the same shape from the same view without
// a message, and a death changes only the intervals that the dead member headed.
// A view of at most Arity+1 members is flat: the root's children are all.
//
// # Failures
//
// A sender that cannot reach the head of an interval counts it as missing and
// takes the next live member as head, for this one message; the message carries
// what was found missing, so that nobody tries it twice. If a head dies after it
// has passed the message on, its successor passes it on again: handlers must be
// idempotent (Message.ID tells repetitions). The reply names all whom the message
// did not reach. A missing member is evidence for the membership table, not a
// verdict.
//
// The package is pure but for Relay, which sends through the caller's Sender. It
// keeps no state and starts goroutines only for the duration of a call.
package tree

import (
	"slices"

	"github.com/lampause/lampause/job"
)

// Arity is the default number of children.
const Arity = 16

// View is an agreed, numbered list of members. A View is not changed after it was
// made; it may be shared.
type View struct {
	ID    job.ViewID
	Nodes []job.NodeID // position = number; dead members keep theirs
	Dead  []job.NodeID // members that are not sent to
	Arity int          // 0 = Arity; the same everywhere
}

// Tree is a view seen from one root.
type Tree struct {
	arity int
	nodes []job.NodeID // rotated: nodes[0] is the root
	live  []bool       // by rotated number
}

// interval is a range of rotated numbers, lo included, hi not.
type interval struct {
	lo, hi int
}

// New builds the tree of v with the given root and without the members of skip.
// It reports false when root is no live member of v.
func New(v View, root job.NodeID, skip ...job.NodeID) (*Tree, bool) {
	at := slices.Index(v.Nodes, root)
	if at < 0 {
		return nil, false
	}
	t := &Tree{arity: v.Arity}
	if t.arity < 2 {
		t.arity = Arity
	}
	t.nodes = append(append(make([]job.NodeID, 0, len(v.Nodes)), v.Nodes[at:]...), v.Nodes[:at]...)
	out := make(map[job.NodeID]bool, len(v.Dead)+len(skip))
	for _, n := range v.Dead {
		out[n] = true
	}
	for _, n := range skip {
		out[n] = true
	}
	t.live = make([]bool, len(t.nodes))
	for i, n := range t.nodes {
		t.live[i] = !out[n]
	}
	return t, t.live[0]
}

// Root is the root.
func (t *Tree) Root() job.NodeID { return t.nodes[0] }

// Children lists the children of n, in the order of their numbers; nil for a
// leaf, for a dead member and for a stranger.
func (t *Tree) Children(n job.NodeID) []job.NodeID {
	path, iv := t.descend(n)
	if path == nil {
		return nil
	}
	var out []job.NodeID
	for _, sub := range t.split(iv) {
		if h := t.head(sub); h >= 0 {
			out = append(out, t.nodes[h])
		}
	}
	return out
}

// Parent returns the parent of n; false for the root, dead members and
// strangers.
func (t *Tree) Parent(n job.NodeID) (job.NodeID, bool) {
	path, _ := t.descend(n)
	if len(path) < 2 {
		return "", false
	}
	return path[len(path)-2], true
}

// Route lists the members that a message from the root to n passes, both
// included; nil for dead members and strangers.
func (t *Tree) Route(n job.NodeID) []job.NodeID {
	path, _ := t.descend(n)
	return path
}

// Depth is the number of hops to the farthest member.
func (t *Tree) Depth() int {
	return t.depth(interval{0, len(t.nodes)})
}

func (t *Tree) depth(iv interval) int {
	deepest := -1
	h := t.head(iv)
	if h < 0 {
		return deepest
	}
	for _, sub := range t.split(interval{h, iv.hi}) {
		deepest = max(deepest, t.depth(sub))
	}
	return deepest + 1
}

// descend walks from the root to n and returns the heads on the way and the
// interval that n heads, beginning with n itself.
func (t *Tree) descend(n job.NodeID) ([]job.NodeID, interval) {
	want := slices.Index(t.nodes, n)
	if want < 0 || !t.live[want] {
		return nil, interval{}
	}
	iv := interval{0, len(t.nodes)}
	var path []job.NodeID
	for {
		h := t.head(iv)
		iv.lo = h
		path = append(path, t.nodes[h])
		if h == want {
			return path, iv
		}
		for _, sub := range t.split(iv) {
			if sub.lo <= want && want < sub.hi {
				iv = sub
				break
			}
		}
	}
}

// head is the lowest live number of iv, -1 when there is none.
func (t *Tree) head(iv interval) int {
	for i := iv.lo; i < iv.hi; i++ {
		if t.live[i] {
			return i
		}
	}
	return -1
}

// split cuts what follows the head iv.lo into at most arity intervals. Their
// size is the smallest power of arity that suffices.
func (t *Tree) split(iv interval) []interval {
	lo := iv.lo + 1
	if lo >= iv.hi {
		return nil
	}
	size := 1
	for size*t.arity < iv.hi-lo {
		size *= t.arity
	}
	var out []interval
	for ; lo < iv.hi; lo += size {
		out = append(out, interval{lo, min(lo+size, iv.hi)})
	}
	return out
}
