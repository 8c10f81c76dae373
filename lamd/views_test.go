package lamd

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

func viewState() *scheduler.State {
	code := 0
	return &scheduler.State{
		Nodes: map[job.NodeID]scheduler.Node{
			"n10": {ID: "n10", State: scheduler.Alive, Role: scheduler.Spare, Boot: 1},
			"n2":  {ID: "n2", State: scheduler.Alive, Role: scheduler.Compute, Boot: 2, Slots: 4},
			"n1":  {ID: "n1", State: scheduler.Dead, Role: scheduler.Compute, Boot: 1},
		},
		Jobs: map[job.ID]*scheduler.Job{
			7: {
				ID: 7, State: job.Running, Spec: job.Spec{Name: "cg", Ranks: 3, Replicas: 2, Env: []string{"SECRET=1"}},
				Pods: []scheduler.Pod{
					{Index: 0, Node: "n2", Boot: 2, Ranks: []job.Rank{0, 1}},
					{Index: 1, Node: "n2", Boot: 1, Ranks: []job.Rank{2}}, // of an earlier life
				},
				Epochs: []scheduler.Epoch{{Epoch: 4, Images: []scheduler.PodImage{{Pod: 0, Holders: []job.NodeID{"n2"}}}}},
			},
			8: {ID: 8, State: job.Done, ExitCode: &code, Pods: []scheduler.Pod{{Node: "n2", Boot: 2, Ranks: []job.Rank{0}}}},
		},
	}
}

func TestNodesView(t *testing.T) {
	got := nodesView(viewState(), map[job.NodeID]bool{"n1": true, "n10": true}, map[job.NodeID]string{"n2": "leader"})
	want := []control.Node{
		{Node: "n1", State: "dead", Role: "compute", Boot: 1, Ranks: []string{}, Jobs: []job.ID{}},
		{Node: "n2", State: "alive", Role: "compute", Boot: 2, Slots: 4, Raft: "leader", Ranks: []string{"7:0", "7:1"}, Jobs: []job.ID{7}},
		{Node: "n10", State: "suspect", Role: "spare", Boot: 1, Ranks: []string{}, Jobs: []job.ID{}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestJobViews(t *testing.T) {
	st := viewState()
	v := jobView(st, st.Jobs[7])
	if v.Epoch != 4 || v.Protected != "AT_RISK" || !cmp.Equal(v.Nodes, []job.NodeID{"n2"}) || v.ExitCode != nil {
		t.Errorf("%+v", v)
	}
	d := detailView(st, st.Jobs[7])
	if d.Spec.Env != nil {
		t.Error("environments hold secrets")
	}
	if st.Jobs[7].Spec.Env == nil {
		t.Error("the state was written to")
	}
	if diff := cmp.Diff(map[string][]job.NodeID{"0": {"n2"}}, d.Epochs[0].Replicas); diff != "" {
		t.Error(diff)
	}
}

func TestEndedView(t *testing.T) {
	three := 3
	for name, c := range map[string]struct {
		j    scheduler.Job
		want control.Ended
	}{
		"by itself": {scheduler.Job{ID: 7, ExitCode: &three}, control.Ended{ExitCode: 3}},
		"killed": {
			scheduler.Job{ID: 7, Spec: job.Spec{Name: "cg"}, ExitCode: &three, Reason: "killed by its user"},
			control.Ended{ExitCode: 3, Message: "job 7 (cg): killed by its user"},
		},
		"recovered": {
			scheduler.Job{ID: 7, Spec: job.Spec{Name: "cg"}, ExitCode: new(int), Recoveries: 1, Bills: []scheduler.Bill{
				{Lost: []job.NodeID{"n2"}, MS: map[string]float64{"total": 120.4, "lost_work": 900, "detect": 80}},
			}},
			control.Ended{Summary: "job 7 (cg): 1 recovery after the loss of n2; paused 120 ms, repeated 900 ms of work"},
		},
		"recovered twice, once in place": {
			scheduler.Job{ID: 7, Spec: job.Spec{Name: "cg"}, ExitCode: new(int), Recoveries: 2, Bills: []scheduler.Bill{
				{Lost: []job.NodeID{"n2"}, MS: map[string]float64{"total": 100}}, {MS: map[string]float64{"total": 50, "lost_work": 1}},
			}},
			control.Ended{Summary: "job 7 (cg): 2 recoveries; paused 150 ms, repeated 1 ms of work"},
		},
	} {
		if diff := cmp.Diff(c.want, endedView(&c.j)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
