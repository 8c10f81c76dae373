package scheduler

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/job"
)

// TestCheckFindsWhatIsBroken: every invariant, broken alone.
func TestCheckFindsWhatIsBroken(t *testing.T) {
	code := 3
	for name, c := range map[string]struct {
		recovering bool
		spoil      func(*State, *Job)
		want       string
	}{
		"nothing":                     {false, func(*State, *Job) {}, ""},
		"nothing, recovering":         {true, func(*State, *Job) {}, ""},
		"recovery while running":      {true, func(_ *State, j *Job) { j.State = job.Running }, "with recovery"},
		"recovering without one":      {false, func(_ *State, j *Job) { j.State = job.Recovering }, "with recovery"},
		"exit code of a living job":   {false, func(_ *State, j *Job) { j.ExitCode = &code }, "exit code set: true"},
		"ended without one":           {false, func(_ *State, j *Job) { j.State = job.Done }, "exit code set: false"},
		"round while recovering":      {true, func(_ *State, j *Job) { j.Open = &OpenEpoch{Epoch: j.LastEpoch} }, "open"},
		"index of a pod":              {false, func(_ *State, j *Job) { j.Pods[1].Index = 0 }, "has index 0"},
		"pod without ranks":           {false, func(_ *State, j *Job) { j.Pods[1].Ranks = nil }, "0 ranks"},
		"pod without a node":          {false, func(_ *State, j *Job) { j.Pods[1].Node = "" }, "has no node"},
		"the same, recovering":        {true, func(_ *State, j *Job) { j.Pods[0].Node = "" }, "has no node"},
		"two on a node":               {false, func(_ *State, j *Job) { j.Pods[1].Node = j.Pods[0].Node }, "two pods on"},
		"on a dead node":              {false, func(s *State, _ *Job) { n := s.Nodes["n1"]; n.State = Dead; s.Nodes["n1"] = n }, "on dead node"},
		"on a past life":              {false, func(_ *State, j *Job) { j.Pods[0].Boot = 7 }, "on dead node"},
		"built in the future":         {false, func(_ *State, j *Job) { j.Pods[0].Built = 9 }, "built in incarnation 9"},
		"epochs out of order":         {false, func(_ *State, j *Job) { slices.Reverse(j.Epochs) }, "epoch 1 after 2"},
		"an epoch twice":              {false, func(_ *State, j *Job) { j.Epochs[1].Epoch = 1 }, "epoch 1 after 1"},
		"number not given out":        {false, func(_ *State, j *Job) { j.LastEpoch = 1 }, "newest number 1"},
		"images missing":              {false, func(_ *State, j *Job) { j.Epochs[0].Images = j.Epochs[0].Images[:1] }, "1 images for 2 pods"},
		"an old number open":          {false, func(_ *State, j *Job) { j.Open = &OpenEpoch{Epoch: 2} }, "open epoch 2 after 2"},
		"a future one open":           {false, func(_ *State, j *Job) { j.Open = &OpenEpoch{Epoch: 9} }, "open epoch 9"},
		"recovery to nowhere":         {true, func(_ *State, j *Job) { j.Recovery.Epoch = 9 }, "not committed"},
		"recovery of another":         {true, func(_ *State, j *Job) { j.Recovery.Incarnation = 9 }, "of incarnation 9"},
		"waits for nothing":           {true, func(_ *State, j *Job) { j.Recovery.Waiting = true }, "waiting: true"},
		"does not wait":               {true, func(_ *State, j *Job) { j.Recovery.Lost[0].To = "" }, "waiting: false"},
		"lost pod elsewhere":          {true, func(_ *State, j *Job) { j.Recovery.Lost[0].To = "n3" }, `not "n3"`},
		"lost pod not built":          {true, func(_ *State, j *Job) { j.Pods[1].Built = 1 }, "built in 1"},
		"lost pod without its image":  {true, func(_ *State, j *Job) { j.Epochs[1].Images[1].Holders = nil }, "without an image"},
		"an ended job may be as ever": {false, func(_ *State, j *Job) { j.State, j.ExitCode, j.Pods[1].Node = job.Failed, &code, j.Pods[0].Node }, ""},
	} {
		p := newPlay(t)
		p.run(nil)
		p.checkpoint(1, "n4")
		p.checkpoint(1, "n4")
		if c.recovering {
			p.do(dead(ref(2, 1)))
		}
		tx := &txn{s: p.st.clone()}
		j := tx.job(1)
		for i := range j.Epochs {
			j.Epochs[i].Images = slices.Clone(j.Epochs[i].Images)
		}
		if j.Recovery != nil {
			r := *j.Recovery
			r.Lost = slices.Clone(r.Lost)
			j.Recovery = &r
		}
		c.spoil(tx.s, j)
		err := Check(tx.s)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPlaces: which ranks go where.
func TestPlaces(t *testing.T) {
	hosts := func(h ...job.HostSlots) []job.HostSlots { return h }
	for name, c := range map[string]struct {
		ranks  int
		change func(*job.Spec)
		busy   int // ranks of another job
		want   string
	}{
		"block":                 {5, nil, 0, "n1:0,1 n2:2,3 n3:4"},
		"dealt round":           {5, func(s *job.Spec) { s.MapBy = job.MapByNode }, 0, "n1:0,3 n2:1,4 n3:2"},
		"dealt round, one full": {4, func(s *job.Spec) { s.MapBy = job.MapByNode }, 2, "n2:0,2 n3:1,3"},
		"dealt round, half":     {3, func(s *job.Spec) { s.MapBy = job.MapByNode }, 3, "n2:0 n3:1,2"},
		"beside another":        {3, nil, 3, "n2:0 n3:1,2"},
		"ppn":                   {3, func(s *job.Spec) { s.PPN = 1 }, 0, "n1:0 n2:1 n3:2"},
		"ppn above the slots":   {3, func(s *job.Spec) { s.PPN = 3 }, 2, "n1:0,1,2"},
		"too many":              {7, nil, 0, ""},
		"hosts":                 {3, func(s *job.Spec) { s.Hosts = hosts(job.HostSlots{Node: "n3"}, job.HostSlots{Node: "n1"}) }, 0, "n3:0,1 n1:2"},
		"a host twice": {4, func(s *job.Spec) {
			s.Hosts = hosts(job.HostSlots{Node: "n3", Slots: 1}, job.HostSlots{Node: "n1", Slots: 1}, job.HostSlots{Node: "n3", Slots: 2})
		}, 0, "n3:0,1,2 n1:3"},
		"a host twice, ppn": {2, func(s *job.Spec) {
			s.PPN = 1
			s.Hosts = hosts(job.HostSlots{Node: "n3"}, job.HostSlots{Node: "n3"}, job.HostSlots{Node: "n1"})
		}, 0, "n3:0 n1:1"},
		"a spare by name":   {4, func(s *job.Spec) { s.Hosts = hosts(job.HostSlots{Node: "n1", Spare: true}) }, 0, "n2:0,1 n3:2,3"},
		"hosts and a spare": {2, func(s *job.Spec) { s.Hosts = hosts(job.HostSlots{Node: "n4", Spare: true}, job.HostSlots{Node: "n2"}) }, 0, "n2:0,1"},
		"a dead host":       {1, func(s *job.Spec) { s.Hosts = hosts(job.HostSlots{Node: "n9"}) }, 0, ""},
		"a spare as a host": {2, func(s *job.Spec) { s.Hosts = hosts(job.HostSlots{Node: "n4"}) }, 0, "n4:0,1"},
	} {
		p := newPlay(t)
		if c.busy > 0 {
			s := testSpec(args{"n": "1"})
			s.Ranks = c.busy
			p.do(Command{Submit: &Submit{Spec: s}})
		}
		s := testSpec(args{"n": "1"})
		s.Ranks = c.ranks
		if c.change != nil {
			c.change(&s)
		}
		pods, r := Place(p.st, &s)
		var got []string
		for i, pod := range pods {
			if int(pod.Pod) != i {
				t.Errorf("%s: %+v", name, pods)
			}
			got = append(got, string(pod.Node)+":"+strings.Join(strings.Fields(strings.Trim(strings.ReplaceAll(asJSON(t, pod.Ranks), ",", " "), "[]")), ","))
		}
		if strings.Join(got, " ") != c.want || (r == nil) == (c.want == "") {
			t.Errorf("%s: %v, %+v", name, got, r)
		}
	}
}

// TestWhatANodeMayKeep: pods and images, by what the log says.
func TestWhatANodeMayKeep(t *testing.T) {
	p := newPlay(t)
	p.run(nil)
	p.checkpoint(1, "n4")
	p.do(begin(1, 1, 50))
	if got := p.st.ImagesOn("n1", 1); !slices.Equal(got, []job.Epoch{1, 2}) {
		t.Errorf("n1 keeps %v", got)
	}
	if got := p.st.ImagesOn("n3", 1); !slices.Equal(got, []job.Epoch{2}) {
		t.Errorf("n3 keeps %v", got)
	}
	if got := p.st.ImagesOn("n1", 7); got != nil {
		t.Errorf("of an unknown job: %v", got)
	}
	if s := p.st.Jobs[1].Shown(); s != job.Checkpointing {
		t.Errorf("shown as %s", s)
	}
	p.do(Command{Suspend: &Suspend{Job: 1, On: true}})
	if s := p.st.Jobs[1].Shown(); s != job.Suspended {
		t.Errorf("shown as %s", s)
	}
	if got := p.st.PodsOn("n2", 1); len(got) != 1 || got[1].Index != 1 {
		t.Errorf("n2 has %v", got)
	}
	for n, boot := range map[job.NodeID]job.Boot{"n2": 2, "n3": 1} {
		if got := p.st.PodsOn(n, boot); len(got) != 0 {
			t.Errorf("%s has %v", n, got)
		}
	}
	j := p.st.Jobs[1]
	if pl, book := j.Placement(), j.Book(); len(pl) != 2 || pl[1].Node != "n2" || pl[1].Pod != 1 || len(pl[1].Ranks) != 2 || book[1].IP != j.Pods[1].IP || book[1].MAC != j.Pods[1].MAC || book[1].Hostname != j.Pods[1].Hostname || book[1].Pod != 1 {
		t.Errorf("%+v %+v", pl, book)
	}
	p.do(Command{End: &End{Job: 1}})
	if got := p.st.PodsOn("n2", 1); len(got) != 0 {
		t.Errorf("n2 has %v of an ended job", got)
	}
}

// TestNamesAreOrderedAsPeopleDo.
func TestNamesAreOrderedAsPeopleDo(t *testing.T) {
	want := []string{"", "2", "10", "a", "n", "n-1", "n1", "n1a", "n1a2", "n1a10", "n2", "n9", "n10", "n010b", "n11", "na", "nb", "o1"}
	for i, a := range want {
		for k, b := range want {
			got := compareNames(a, b)
			if (got < 0) != (i < k) || (got > 0) != (i > k) {
				t.Errorf("%q and %q: %d", a, b, got)
			}
		}
	}
}

// TestDamagedImages: who does not hold an image any more.
func TestDamagedImages(t *testing.T) {
	p := newPlay(t)
	p.run(nil)
	p.checkpoint(1, "n3", "n4")
	for name, c := range map[string]struct {
		d    Damaged
		left int
	}{
		"another epoch": {Damaged{Job: 1, Epoch: 7, Pod: 0, Nodes: []job.NodeID{"n3"}}, 3},
		"no pod":        {Damaged{Job: 1, Epoch: 1, Pod: 2, Nodes: []job.NodeID{"n3"}}, 3},
		"negative":      {Damaged{Job: 1, Epoch: 1, Pod: -1, Nodes: []job.NodeID{"n3"}}, 3},
		"no holder":     {Damaged{Job: 1, Epoch: 1, Pod: 0, Nodes: []job.NodeID{"n2"}}, 3},
		"a holder":      {Damaged{Job: 1, Epoch: 1, Pod: 0, Nodes: []job.NodeID{"n3"}}, 2},
	} {
		q := &play{t: t, st: p.st}
		q.try(Command{Damaged: &c.d})
		if im := q.st.Jobs[1].Newest().Images[0]; len(im.Holders) != c.left {
			t.Errorf("%s: %v", name, im.Holders)
		}
	}
	if r := (&play{t: t, st: p.st}).try(Command{Damaged: &Damaged{Job: 7}}); r == nil || r.Code != NoSuch {
		t.Errorf("%+v", r)
	}
	if d := cmp.Diff([]job.NodeID{"n1", "n3", "n4"}, p.st.Jobs[1].Newest().Images[0].Holders); d != "" {
		t.Errorf("an old state was written to: %s", d)
	}
}
