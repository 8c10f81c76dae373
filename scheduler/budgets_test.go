package scheduler

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/job"
)

// TestTriesAreCounted: a job whose recoveries do not get through is stopped.
func TestTriesAreCounted(t *testing.T) {
	p := newPlay(t)
	p.run(nil)
	p.checkpoint(1, "n4")
	p.do(dead(ref(2, 1)))
	for i := 2; ; i++ {
		j := p.st.Jobs[1]
		if j.State != job.Recovering {
			if i != maxTries+2 || j.State != job.Failed || *j.ExitCode != job.ExitCheckpoint || !j.KeepImages || !strings.Contains(j.Reason, "8 recoveries in a row") {
				t.Errorf("after %d: %+v", i-2, j)
			}
			return
		}
		if j.Recovery.Tries != i-1 || j.Recovery.DetectMS != 5 {
			t.Errorf("try %d: %+v", i, j.Recovery)
		}
		same := Command{Recover: &Recover{Job: 1, Incarnation: j.Incarnation, Why: WhyRedo, Cause: "the leader was lost"}}
		p.do(same) // does not count
		j = p.st.Jobs[1]
		if j.Recovery.Tries != i-1 {
			t.Fatalf("the leader's loss counts: %+v", j.Recovery)
		}
		p.do(Command{Recover: &Recover{Job: 1, Incarnation: j.Incarnation, Pods: []job.PodIndex{0}, Why: WhyRedo, Cause: "x"}})
	}
}

// TestKillsAndCrashesAreCounted, each on its own account.
func TestKillsAndCrashesAreCounted(t *testing.T) {
	p := newPlay(t)
	p.run(func(s *job.Spec) { s.CrashRetries = 9 })
	p.checkpoint(1)
	round := func(why Why) {
		inc := p.st.Jobs[1].Incarnation
		p.do(Command{Recover: &Recover{Job: 1, Incarnation: inc, Pods: []job.PodIndex{0}, Why: why}})
		if p.st.Jobs[1].State == job.Recovering {
			p.do(Command{Recovered: &Recovered{Job: 1, Incarnation: inc + 1}})
		}
	}
	for range 3 {
		round(WhyCrash)
	}
	for range maxKills {
		round(WhyKilled)
	}
	if j := p.st.Jobs[1]; j.Crashes != 3 || j.Kills != maxKills || j.State != job.Running || len(j.Bills) != 3+maxKills {
		t.Fatalf("%+v", j)
	}
	p.checkpoint(1)
	if j := p.st.Jobs[1]; j.Kills != 0 || j.Crashes != 3 {
		t.Errorf("after a commit: %+v", j)
	}
	for range maxKills + 1 {
		round(WhyKilled)
	}
	if j := p.st.Jobs[1]; j.State != job.Failed || *j.ExitCode != job.ExitCheckpoint {
		t.Errorf("%+v", j)
	}
}

// TestMoves: a pod that cannot be rebuilt where it is goes elsewhere, if there
// is an elsewhere.
func TestMoves(t *testing.T) {
	for name, c := range map[string]struct {
		before []Command
		to     job.NodeID
	}{
		"to the spare":              {nil, "n4"},
		"no spare: to an idle node": {[]Command{dead(ref(4, 1))}, "n3"},
		"nowhere to go":             {[]Command{dead(ref(4, 1)), dead(ref(3, 1))}, "n1"},
	} {
		p := newPlay(t)
		p.run(nil)
		p.checkpoint(1, "n2")
		p.do(c.before...)
		p.do(Command{Recover: &Recover{Job: 1, Incarnation: 1, Pods: []job.PodIndex{0}, Move: []job.PodIndex{0}, Why: WhyRedo}})
		j := p.st.Jobs[1]
		if j.Pods[0].Node != c.to || j.Recovery.Waiting || len(j.Recovery.Old) != 1 || j.Recovery.Old[0].Place != ref(1, 1) {
			t.Errorf("%s: %+v", name, j.Recovery)
		}
	}
}

// TestRestartPlaces: where a job goes that comes back from its images.
func TestRestartPlaces(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*job.Spec)
		before []Command
		want   string
	}{
		"holders first":             {nil, nil, "n1 n2"},
		"not where it does not fit": {nil, []Command{{Submit: &Submit{Spec: testSpec(args{"n": "2"})}}}, "n3 n2"},
		"dead ones are out":         {nil, []Command{dead(ref(1, 1))}, "n3 n2"},
		"a spare at last":           {nil, []Command{dead(ref(1, 1)), dead(ref(2, 1))}, "n3 n4"},
		"more ranks than slots":     {func(s *job.Spec) { s.PPN = 2 }, []Command{dead(ref(1, 1)), dead(ref(2, 1)), {Submit: &Submit{Spec: testSpec(args{"n": "2"})}}}, "n4 n3"},
		"no room":                   {nil, []Command{dead(ref(1, 1)), dead(ref(2, 1)), {Submit: &Submit{Spec: func() job.Spec { s := testSpec(args{"n": "2"}); s.CkptInterval = 0; return s }()}}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlay(t)
			p.run(c.change)
			away(p)
			for _, b := range c.before {
				if b.Submit != nil {
					b.Submit.Spec.CkptInterval = 0
				}
				p.do(b)
			}
			r := p.try(Command{Restart: &Restart{Job: Job{ID: 1}}})
			var got []string
			if r == nil {
				for _, pod := range p.st.Jobs[1].Pods {
					got = append(got, string(pod.Node))
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("%v, %+v", got, r)
			}
		})
	}
}

// TestRestartOfAnOlderEpoch forgets the newer ones, but not their numbers.
func TestRestartOfAnOlderEpoch(t *testing.T) {
	p := newPlay(t)
	p.run(nil)
	p.checkpoint(1, "n3")
	p.checkpoint(1, "n3")
	away(p)
	p.do(Command{Restart: &Restart{Job: Job{ID: 1}, Epoch: 2}})
	j := p.st.Jobs[1]
	if j.Newest().Epoch != 2 || j.LastEpoch != 3 || j.Recovery.Epoch != 2 || j.Incarnation != 2 || j.Pods[0].Intended == "" {
		t.Errorf("%+v", j)
	}
	p.do(Command{Recovered: &Recovered{Job: 1, Incarnation: 2}}, begin(1, 2, 5))
	if o := p.st.Jobs[1].Open; o.Epoch != 4 {
		t.Errorf("%+v", o)
	}
}

// TestAdoption: a job that only its images remember.
func TestAdoption(t *testing.T) {
	p := newPlay(t)
	from := Job{
		ID: 9, Spec: testSpec(args{"n": "2"}), Incarnation: 4, LastEpoch: 2, Pods: []Pod{{Ranks: []job.Rank{0, 1}}},
		Epochs: []Epoch{{Epoch: 3, Images: []PodImage{{Holders: []job.NodeID{"n9", "n2"}}}}},
	}
	was := asJSON(t, from)
	p.do(Command{Restart: &Restart{Job: from}})
	j := p.st.Jobs[9]
	if j.Incarnation != 5 || j.LastEpoch != 3 || p.st.LastJob != 9 || j.Pods[0].Node != "n2" || !slices.Equal(j.Epochs[0].Images[0].Holders, []job.NodeID{"n2"}) {
		t.Errorf("%+v", j)
	}
	if asJSON(t, from) != was {
		t.Error("the command was written to")
	}
}

// TestCollecting names what may be deleted where.
func TestCollecting(t *testing.T) {
	p := newPlay(t)
	p.run(nil)
	p.checkpoint(1, "n3")
	p.checkpoint(1, "n4")
	p.do(Command{Collect: &Collect{Job: 1, Before: 2}})
	got := map[job.NodeID]job.Epoch{}
	for _, a := range p.acts {
		if a.Kind == ActDrop {
			got[a.Node] = a.Epoch
		}
	}
	if d := cmp.Diff(map[job.NodeID]job.Epoch{"n1": 1, "n2": 1, "n3": 1}, got); d != "" || len(p.st.Jobs[1].Epochs) != 1 || !p.changed(1) {
		t.Errorf("%s", d)
	}
	p.do(Command{Collect: &Collect{Job: 1, Before: 2}})
	if len(p.acts) != 0 {
		t.Errorf("again: %+v", p.acts)
	}
	for n, want := range map[job.NodeID][]job.Epoch{"n1": {2}, "n3": nil, "n4": {2}} {
		if got := p.st.ImagesOn(n, 1); !slices.Equal(got, want) {
			t.Errorf("%s keeps %v", n, got)
		}
	}
}

// TestJobsOfALostNodeStayTogether: all pods of a node go to the same spare,
// which takes its place; the node is a spare when it returns.
func TestJobsOfALostNodeStayTogether(t *testing.T) {
	p := newPlay(t)
	p.do(Command{Join: &Join{Node: "n5", Addr: "10.0.0.1", Boot: 1, Session: 1, Slots: 2, Role: Spare}})
	for id := job.ID(1); id <= 2; id++ {
		s := testSpec(args{"n": "1"})
		s.Hosts = []job.HostSlots{{Node: "n2"}}
		p.do(Command{Submit: &Submit{Spec: s}}, Command{Started: &Started{Job: id, Incarnation: 1}})
		p.checkpoint(id, "n3")
	}
	p.do(dead(ref(2, 1)))
	a, b := p.st.Jobs[1].Pods[0].Node, p.st.Jobs[2].Pods[0].Node
	if a != b || p.st.Nodes[a].Role != Compute || p.st.Nodes["n2"].Role != Spare {
		t.Errorf("%s and %s, %+v", a, b, p.st.Nodes)
	}
	p.do(Command{Join: &Join{Node: "n2", Addr: "10.0.0.1", Boot: 2, Session: 1, Slots: 2, Role: Compute}})
	if n := p.st.Nodes["n2"]; n.Role != Spare {
		t.Errorf("%+v", n)
	}
}

// TestAbandonedRounds leave nothing but a used number and the reason.
func TestAbandonedRounds(t *testing.T) {
	p := newPlay(t)
	p.run(nil)
	p.do(begin(1, 1, 1), Command{Abandon: &Abandon{Job: 1, Epoch: 1, Reason: "no cut"}})
	var drops []job.NodeID
	for _, a := range p.acts {
		if a.Kind == ActDrop && a.Epoch == 1 {
			drops = append(drops, a.Node)
		}
	}
	if j := p.st.Jobs[1]; j.Open != nil || j.Unprotected != "no cut" || !p.changed(1) || !slices.Equal(p.events(), []string{"checkpoint.abandoned"}) || !slices.Equal(drops, []job.NodeID{"n1", "n2"}) {
		t.Errorf("%+v %v %v", j, p.events(), drops)
	}
	p.checkpoint(1)
	if j := p.st.Jobs[1]; j.Newest().Epoch != 2 || j.Unprotected != "" {
		t.Errorf("%+v", j)
	}
}

// TestBillsAreBounded: the newest are kept.
func TestBillsAreBounded(t *testing.T) {
	p := newPlay(t)
	p.run(nil)
	for range maxBills + 3 {
		p.checkpoint(1)
		inc := p.st.Jobs[1].Incarnation
		p.do(
			Command{Recover: &Recover{Job: 1, Incarnation: inc, Pods: []job.PodIndex{0}, Why: WhyKilled}},
			Command{Recovered: &Recovered{Job: 1, Incarnation: inc + 1}},
		)
	}
	j := p.st.Jobs[1]
	if len(j.Bills) != maxBills || j.Bills[maxBills-1].Incarnation != j.Incarnation || j.Bills[0].Incarnation != j.Incarnation-maxBills+1 || j.Recoveries != maxBills+3 {
		t.Errorf("%d bills, %d recoveries", len(j.Bills), j.Recoveries)
	}
}
