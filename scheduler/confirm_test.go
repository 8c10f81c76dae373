package scheduler

import (
	"context"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/lampause/lampause/job"
)

// TestMajority: what counts as an answer to a question.
func TestMajority(t *testing.T) {
	five := []Peer{{ID: "n1"}, {ID: "n2"}, {ID: "n3"}, {ID: "n4"}, {ID: "n5"}}
	for name, c := range map[string]struct {
		voters []Peer
		self   job.NodeID
		heard  map[raft.ServerID]testimony
		want   bool
	}{
		"alone":                {five[:1], "n1", nil, true},
		"nobody":               {five, "n1", nil, false},
		"two fresh of four":    {five, "n1", map[raft.ServerID]testimony{"n2": {7, 11}, "n3": {7, 12}}, true},
		"one fresh, one old":   {five, "n1", map[raft.ServerID]testimony{"n2": {7, 11}, "n3": {7, 9}}, false},
		"the question itself":  {five, "n1", map[raft.ServerID]testimony{"n2": {7, 11}, "n3": {7, 10}}, false},
		"of another term":      {five, "n1", map[raft.ServerID]testimony{"n2": {7, 11}, "n3": {6, 12}}, false},
		"of no voter":          {five[:3], "n1", map[raft.ServerID]testimony{"n4": {7, 11}, "n5": {7, 12}}, false},
		"self is not a voter":  {five[:3], "n5", map[raft.ServerID]testimony{"n1": {7, 11}}, false},
		"self is not, two are": {five[:3], "n5", map[raft.ServerID]testimony{"n1": {7, 11}, "n2": {7, 13}}, true},
		"half of four":         {five[:4], "n1", map[raft.ServerID]testimony{"n2": {7, 11}}, false},
	} {
		w := newWitness(nil)
		for id, h := range c.heard {
			w.note(id, h)
			w.note(id, testimony{h.term, h.sent - 1}) // an older answer comes late
		}
		if got := w.majority(c.voters, c.self, 7, 10); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// answering is a transport whose followers answer in a term.
type answering struct {
	transport
	term uint64
	err  error
}

func (a answering) AppendEntries(_ raft.ServerID, _ raft.ServerAddress, _ *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	resp.Term = a.term
	return a.err
}

// TestWitness: only answers of the leader's own term are remembered.
func TestWitness(t *testing.T) {
	for _, c := range []struct {
		term uint64
		err  error
		want bool
	}{{5, nil, true}, {6, nil, false}, {4, nil, false}, {5, context.Canceled, false}} {
		w := newWitness(answering{term: c.term, err: c.err})
		q := w.number()
		err := w.AppendEntries("n2", "", &raft.AppendEntriesRequest{Term: 5}, &raft.AppendEntriesResponse{})
		if (err != nil) != (c.err != nil) {
			t.Error(err)
		}
		if got := w.majority([]Peer{{ID: "n1"}, {ID: "n2"}}, "n1", 5, q); got != c.want {
			t.Errorf("answer of term %d, %v: %t", c.term, c.err, got)
		}
	}
}
