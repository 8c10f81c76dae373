package tree

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/lampause/lampause/job"
)

// Message travels from the root to every live member of a view. Its fields but
// Kind and Payload belong to this package.
type Message struct {
	ID      uint64          `json:"id"` // given by the root; repetitions have the same
	View    View            `json:"view"`
	Root    job.NodeID      `json:"root"`
	Lo      int             `json:"lo"`             // numbers of the interval that the receiver heads,
	Hi      int             `json:"hi"`             // seen from Root: [Lo, Hi)
	Skip    []job.NodeID    `json:"skip,omitempty"` // found missing on the way
	Kind    string          `json:"kind"`           // what the handlers switch on
	Payload json.RawMessage `json:"payload,omitempty"`
}

// Answer is what one member's handler returned, or why it could not.
type Answer struct {
	Payload json.RawMessage `json:"payload,omitempty"`
	Error   string          `json:"error,omitempty"`
}

// Reply gathers a subtree: an answer of every member that the message reached,
// and those whom it did not.
type Reply struct {
	Answers map[job.NodeID]Answer `json:"answers"`
	Missing []job.NodeID          `json:"missing,omitempty"`
}

// Complete reports whether every member was reached and none refused.
func (r Reply) Complete() bool {
	for _, a := range r.Answers {
		if a.Error != "" {
			return false
		}
	}
	return len(r.Missing) == 0
}

// Sender carries messages between members; lamd's node API implements it.
type Sender interface {
	// Send delivers m to a member, waits until that member has handled it and
	// passed it on, and returns what it gathered. An error means that the member
	// could not be reached or broke off; it may have handled the message. ctx
	// has a deadline.
	Send(ctx context.Context, to job.NodeID, m Message) (Reply, error)
}

// Handler does the work of a message at one member. It must be idempotent and
// end with ctx.
type Handler func(ctx context.Context, m Message) (json.RawMessage, error)

// Broadcast sends kind and payload from self, which becomes the root, to all
// live members of v, self included, and gathers their answers: with handlers that
// return when their part is done, that is a barrier. It returns when the last
// member has answered or was given up; ctx bounds it.
//
// Expected errors: one that says that self is no live member of v. A Reply that is
// not Complete is no error.
func Broadcast(ctx context.Context, s Sender, h Handler, v View, self job.NodeID, id uint64, kind string, payload json.RawMessage) (Reply, error) {
	if _, ok := New(v, self); !ok {
		return Reply{}, fmt.Errorf("tree: broadcast %s: %s is no live member of view %d", kind, self, v.ID)
	}
	m := Message{ID: id, View: v, Root: self, Lo: 0, Hi: len(v.Nodes), Kind: kind, Payload: payload}
	return Relay(ctx, s, h, self, m)
}

// Relay handles m at self and passes it on to the interval that self heads. It is
// what a member does with a message that it receives.
//
// Expected errors: one that says that m does not fit its own view; nothing was
// done then.
func Relay(ctx context.Context, s Sender, h Handler, self job.NodeID, m Message) (Reply, error) {
	t, ok := New(m.View, m.Root, m.Skip...)
	if !ok || m.Lo < 0 || m.Hi > len(m.View.Nodes) || m.Lo >= m.Hi || t.nodes[m.Lo] != self {
		return Reply{}, fmt.Errorf("tree: message %d of view %d for [%d,%d) is not for %s", m.ID, m.View.ID, m.Lo, m.Hi, self)
	}
	r := gathering{reply: Reply{Answers: make(map[job.NodeID]Answer)}}
	var wg sync.WaitGroup
	for _, iv := range t.split(interval{m.Lo, m.Hi}) {
		wg.Go(func() { r.pass(ctx, s, t, m, iv) })
	}
	wg.Go(func() {
		var a Answer
		payload, err := h(ctx, m)
		if err != nil {
			a.Error = err.Error()
		}
		a.Payload = payload
		r.answer(self, a)
	})
	wg.Wait()
	slices.Sort(r.reply.Missing)
	return r.reply, nil
}

// gathering collects the replies of subtrees.
type gathering struct {
	mu    sync.Mutex
	reply Reply
}

func (g *gathering) answer(n job.NodeID, a Answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reply.Answers[n] = a
}

// pass sends m to the head of iv, or to the next live member when it does not
// answer, until somebody took the rest of the interval.
func (g *gathering) pass(ctx context.Context, s Sender, t *Tree, m Message, iv interval) {
	for h := t.head(iv); h >= 0; h = t.head(iv) {
		to := t.nodes[h]
		m.Lo, m.Hi = h, iv.hi
		r, err := s.Send(ctx, to, m)
		if err == nil {
			g.merge(r)
			return
		}
		g.mu.Lock()
		g.reply.Missing = append(g.reply.Missing, to)
		g.mu.Unlock()
		m.Skip = append(slices.Clone(m.Skip), to)
		iv.lo = h + 1
	}
}

func (g *gathering) merge(r Reply) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for n, a := range r.Answers {
		g.reply.Answers[n] = a
	}
	g.reply.Missing = append(g.reply.Missing, r.Missing...)
}
