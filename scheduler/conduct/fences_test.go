package conduct

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// brokered is a job of two pods on n1 and n2 under a leader that launched it,
// or took it over.
type brokered struct {
	t   *testing.T
	l   *Leader
	now time.Duration
}

func newBrokered(t *testing.T, adopted bool) *brokered {
	t.Helper()
	var st *scheduler.State
	apply := func(c scheduler.Command) {
		next, _ := scheduler.Step(st, 1, c)
		st = next
	}
	for _, n := range []job.NodeID{"n1", "n2", "n3"} {
		apply(scheduler.Command{Join: &scheduler.Join{Node: n, Addr: "10.0.0.1", Boot: 1, Session: 1, Slots: 2}})
	}
	b := &brokered{t: t, l: NewLeader(Config{}, 1, 0)}
	if !adopted {
		b.l.Step(0, Committed{State: st})
	}
	spec := simSpec(2, 0)
	spec.PPN = 1
	apply(scheduler.Command{Submit: &scheduler.Submit{Spec: spec}})
	apply(scheduler.Command{Started: &scheduler.Started{Job: 1, Incarnation: 1}})
	b.l.Step(0, Committed{State: st})
	return b
}

// arrive passes on an arrival and returns what is answered.
func (b *brokered) arrive(ticket Ticket, f podapi.Fence) []FenceAnswer {
	if f.Job == 0 {
		f.Job = 1
	}
	if f.Incarnation == 0 {
		f.Incarnation = 1
	}
	if f.Puts == nil {
		f.Puts = map[string]string{string(rune('a' + f.Pod)): "x"}
	}
	return actionsOf[FenceAnswer](b.l.Step(b.now, Fence{Ticket: ticket, Fence: f}))
}

func (b *brokered) want(what string, got []FenceAnswer, seq int, tickets ...Ticket) {
	b.t.Helper()
	if len(tickets) == 0 {
		if len(got) != 0 {
			b.t.Errorf("%s: answered %+v", what, got)
		}
		return
	}
	if len(got) != 1 || got[0].Stale || got[0].Job != 1 || got[0].Reply.Seq != seq || !slices.Equal(got[0].Tickets, tickets) {
		b.t.Errorf("%s: answered %+v", what, got)
	}
}

func TestFencesOfOthersAreStale(t *testing.T) {
	for name, f := range map[string]podapi.Fence{
		"unknown job":     {Header: podapi.Header{Job: 9}, Pod: 1, Seq: 3},
		"old incarnation": {Header: podapi.Header{Incarnation: 2}, Pod: 1, Seq: 3},
		"no such pod":     {Pod: 2, Seq: 3},
		"negative pod":    {Pod: -1, Seq: 3},
	} {
		b := newBrokered(t, false)
		got := b.arrive(7, f)
		if len(got) != 1 || !got[0].Stale || got[0].Reply.Seq != 3 || !slices.Equal(got[0].Tickets, []Ticket{7}) {
			t.Errorf("%s: %+v", name, got)
		}
		b.want(name, b.arrive(8, podapi.Fence{Pod: 0, Seq: 3}), 3) // that one did not count
	}
	b := newBrokered(t, false)
	st := b.l.st
	next, _ := scheduler.Step(st, 2, scheduler.Command{End: &scheduler.End{Job: 1}})
	b.l.Step(0, Committed{State: next})
	if got := b.arrive(7, podapi.Fence{Pod: 0, Seq: 1}); len(got) != 1 || !got[0].Stale {
		t.Errorf("an ended job: %+v", got)
	}
}

func TestFenceIsCompleteWithAllPods(t *testing.T) {
	b := newBrokered(t, false)
	b.want("first", b.arrive(5, podapi.Fence{Pod: 0, Seq: 1}), 1)
	b.want("the same again", b.arrive(6, podapi.Fence{Pod: 0, Seq: 1}), 1)
	got := b.arrive(7, podapi.Fence{Pod: 1, Seq: 1})
	b.want("last", got, 1, 5, 6, 7)
	if want := map[string]string{"a": "x", "b": "x"}; len(got) == 1 && !maps.Equal(got[0].Reply.Puts, want) {
		t.Errorf("puts %v", got[0].Reply.Puts)
	}
	b.want("a late repetition", b.arrive(8, podapi.Fence{Pod: 1, Seq: 1}), 1, 8)
	b.want("a question", b.arrive(9, podapi.Fence{Pod: 0, Seq: 2, Ask: true}), 2)
	b.want("is no arrival", b.arrive(10, podapi.Fence{Pod: 1, Seq: 2}), 2)
	b.want("but waits", b.arrive(0, podapi.Fence{Pod: 0, Seq: 2}), 2, 9, 10)
	b.want("nobody waits", b.arrive(0, podapi.Fence{Pod: 0, Seq: 2}), 2)
	if _, ok := b.l.Next(); ok && len(actionsOf[PullFences](b.l.Step(time.Hour, Tick{}))) > 0 {
		t.Error("pods are asked for what the leader knows")
	}
}

func TestEarlyFences(t *testing.T) {
	b := newBrokered(t, false)
	b.want("early", b.arrive(5, podapi.Fence{Pod: 0, Seq: 1, Early: true}), 1, 5)
	b.want("then the other", b.arrive(6, podapi.Fence{Pod: 1, Seq: 1}), 1, 6)
	b.want("waits", b.arrive(7, podapi.Fence{Pod: 0, Seq: 2}), 2)
	b.want("until early", b.arrive(8, podapi.Fence{Pod: 0, Seq: 2, Early: true}), 2, 7, 8)
	b.want("a question at an early one", b.arrive(9, podapi.Fence{Pod: 1, Seq: 2, Ask: true}), 2, 9)
}

// TestPodsAreAskedForFences: a new leader knows of no arrivals.
func TestPodsAreAskedForFences(t *testing.T) {
	b := newBrokered(t, true)
	b.now = time.Second
	acts := b.l.Step(b.now, Fence{Ticket: 5, Fence: podapi.Fence{Header: podapi.Header{Job: 1, Incarnation: 1}, Pod: 0, Seq: 4}})
	if got := actionsOf[PullFences](acts); len(got) != 1 || got[0].Pod != 1 || got[0].Node != "n2" {
		t.Fatalf("asked %+v", acts)
	}
	b.want("early", b.arrive(6, podapi.Fence{Pod: 0, Seq: 5, Early: true}), 5, 6)
	tick := func(at time.Duration) []PullFences {
		t.Helper()
		if next, ok := b.l.Next(); !ok || next > at {
			t.Errorf("at %v: the next tick is at %v, %t", at, next, ok)
		}
		b.now = at
		return actionsOf[PullFences](b.l.Step(at, Tick{}))
	}
	if got := tick(b.now + pullEvery); len(got) != 0 {
		t.Errorf("asked again before the first question was answered: %+v", got)
	}
	pulls := tick(b.now + pullEvery) // it was not
	if len(pulls) != 1 || pulls[0].Pod != 1 || pulls[0].Node != "n2" {
		t.Fatalf("asked %+v", pulls)
	}
	fence := func(pod job.PodIndex, seq int) podapi.Fence {
		return podapi.Fence{Header: podapi.Header{Job: 1, Incarnation: 1}, Pod: pod, Seq: seq, Puts: map[string]string{"b": "y"}}
	}
	acts = b.l.Step(b.now, Done{Ref: pulls[0].Ref, Fences: []podapi.Fence{fence(0, 6), fence(1, 4)}})
	b.want("pulled", actionsOf[FenceAnswer](acts), 4, 5)
	b.want("what another pod's answer says of a pod", b.arrive(11, podapi.Fence{Pod: 1, Seq: 6}), 6)
	b.want("does not count", b.arrive(12, podapi.Fence{Pod: 0, Seq: 6}), 6, 11, 12)
}

func TestOldFencesAreForgotten(t *testing.T) {
	b := newBrokered(t, false)
	b.want("waits", b.arrive(1, podapi.Fence{Pod: 0, Seq: 1}), 1)
	for seq := 2; seq < 5*keepFences; seq++ {
		b.arrive(0, podapi.Fence{Pod: 0, Seq: seq})
		b.arrive(0, podapi.Fence{Pod: 1, Seq: seq})
		if n := len(b.l.jobs[1].broker.seqs); n > seq {
			t.Fatalf("%d fences kept", n)
		}
	}
	b.want("one with somebody waiting is not", b.arrive(0, podapi.Fence{Pod: 1, Seq: 1}), 1, 1)
	for seq := 5 * keepFences; seq < 10*keepFences; seq++ {
		b.arrive(0, podapi.Fence{Pod: 0, Seq: seq})
		b.arrive(0, podapi.Fence{Pod: 1, Seq: seq})
	}
	if n := len(b.l.jobs[1].broker.seqs); n > 5*keepFences {
		t.Errorf("%d fences kept", n)
	}
	c := newBrokered(t, false)
	for seq := range keepFences {
		c.arrive(0, podapi.Fence{Pod: 0, Seq: seq})
	}
	if n := len(c.l.jobs[1].broker.seqs); n != keepFences {
		t.Errorf("%d fences kept of %d", n, keepFences)
	}
	c.arrive(0, podapi.Fence{Pod: 0, Seq: 5000})
	if n := len(c.l.jobs[1].broker.seqs); n != keepFences {
		t.Errorf("%d fences kept of %d", n, keepFences+1)
	}
}
