package conduct

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// TestFenceCompletedEarlyOrAskedFor: the fence of MPI_Finalize may be completed
// while pods are missing, which then pass it at once; asking is no arrival.
func TestFenceCompletedEarlyOrAskedFor(t *testing.T) {
	l := &Leader{}
	c := &conductor{l: l, id: 1, inc: 1, j: &scheduler.Job{Pods: make([]scheduler.Pod, 3)}}
	c.broker = broker{c: c}
	c.broker.reset()
	arrive := func(pod job.PodIndex, ticket Ticket, early, ask bool) []Ticket {
		l.out = nil
		c.broker.arrive(podapi.Fence{Pod: pod, Seq: 4, Early: early, Ask: ask}, ticket)
		var answered []Ticket
		for _, a := range l.out {
			if f, ok := a.(FenceAnswer); ok && !f.Stale && f.Reply.Seq == 4 {
				answered = append(answered, f.Tickets...)
			}
		}
		return answered
	}
	for i, step := range []struct {
		pod        job.PodIndex
		early, ask bool
		want       []Ticket
	}{
		{0, false, false, nil},
		{1, false, true, nil}, // asks only
		{2, false, false, nil},
		{0, true, false, []Ticket{1, 2, 3, 4}}, // pod 1 is still missing
		{1, false, false, []Ticket{5}},
		{2, false, true, []Ticket{6}},
	} {
		if d := cmp.Diff(step.want, arrive(step.pod, Ticket(i+1), step.early, step.ask)); d != "" {
			t.Errorf("step %d: %s", i+1, d)
		}
	}
}
