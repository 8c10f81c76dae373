package conduct

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// stepped is a watched job whose pods and nodes answer when the test says so.
type stepped struct {
	*watched
	open []Action
}

func newStepped(t *testing.T, epochs int, change func(*job.Spec)) *stepped {
	s := &stepped{watched: newWatched(t, epochs, change)}
	s.refuse = s.later
	return s
}

// later keeps what is not answered at once.
func (s *stepped) later(a Action) *Failure {
	if _, ok := a.(Propose); ok {
		return nil
	}
	s.open = append(s.open, a)
	return &Failure{}
}

func refOf(a Action) Ref {
	switch a := a.(type) {
	case StartPod:
		return a.Ref
	case KillPod:
		return a.Ref
	case Call:
		return a.Ref
	case Copy:
		return a.Ref
	case Seal:
		return a.Ref
	}
	return 0
}

// text names a request.
func text(a Action) string {
	switch a := a.(type) {
	case StartPod:
		return fmt.Sprintf("start %d", a.Pod)
	case KillPod:
		return fmt.Sprintf("kill %d", a.Pod)
	case Call:
		return fmt.Sprintf("%s %d", a.Request.Op, a.Pod)
	case Copy:
		return fmt.Sprintf("copy %d", a.Pod)
	case Seal:
		return "seal " + string(a.Node)
	}
	return ""
}

func (s *stepped) find(what string) Action {
	s.t.Helper()
	i := len(s.open) - 1 // the newest try
	for i >= 0 && text(s.open[i]) != what {
		i--
	}
	if i < 0 {
		var have []string
		for _, a := range s.open {
			have = append(have, text(a))
		}
		s.t.Fatalf("nobody asked for %q; open: %s", what, strings.Join(have, ", "))
	}
	return s.open[i]
}

// answer answers requests that are open, by name.
func (s *stepped) answer(d Done, whats ...string) {
	s.t.Helper()
	for _, what := range whats {
		a := s.find(what)
		s.open = slices.DeleteFunc(s.open, func(o Action) bool { return refOf(o) == refOf(a) })
		d.Ref = refOf(a)
		s.tell(d)
	}
}

func (s *stepped) waits(what string) bool {
	return slices.ContainsFunc(s.open, func(a Action) bool { return text(a) == what })
}

// lose has n2 declared dead for certain: pod 1 goes to n3.
func (s *stepped) lose() {
	s.t.Helper()
	s.open = nil
	s.tell(Evidence{Node: life("n2", 1), Source: "power", Certain: true})
	s.until(s.now + s.l.cfg.Settle)
	if j := s.job(); j.State != job.Recovering || j.Pods[1].Node != "n3" {
		s.t.Fatalf("%+v", j)
	}
}

func timed(name string, v float64) Done {
	return Done{Reply: &podapi.PhaseReply{TimesMS: map[string]float64{name: v}}}
}

// TestBillOfARecovery: what every phase cost.
func TestBillOfARecovery(t *testing.T) {
	s := newStepped(t, 0, func(sp *job.Spec) { sp.CkptInterval = time.Second })
	s.watched.refuse = nil
	s.until(2500 * time.Millisecond) // a checkpoint at 2 s
	if s.job().Newest() == nil {
		t.Fatal("no checkpoint")
	}
	s.refuse = s.later
	s.tell(Suspect{Node: life("n2", 1), Source: "reset", AgeMS: 10})
	s.until(s.now + 40*time.Millisecond)
	s.lose() // 100 ms later
	step := func(d time.Duration, done Done, whats ...string) {
		t.Helper()
		s.until(s.now + d)
		s.answer(done, whats...)
	}
	step(5*time.Millisecond, Done{}, "stop 0")
	step(2*time.Millisecond, Done{}, "kill 1")
	step(3*time.Millisecond, Done{}, "copy 1") // staged after 10
	step(10*time.Millisecond, Done{}, "start 1")
	step(20*time.Millisecond, timed("rewire", 3), "rollback 0")
	step(30*time.Millisecond, timed("rewire", 7), "restore 1")
	step(6*time.Millisecond, timed("refill", 2), "release 0")
	step(2*time.Millisecond, timed("refill", 1), "release 1")
	bills := s.job().Bills
	if len(bills) != 1 {
		t.Fatalf("%+v", s.job())
	}
	want := map[string]float64{
		"detect": 150, "agree": 0, "stop": 5, "stage": 10, "start": 13, "rollback": 35, "restore": 50,
		"rewire": 7, "refill": 2, "fence": 0, "release": 8, "total": 78, "lost_work": 490,
	}
	if d := cmp.Diff(want, bills[0].MS); d != "" {
		t.Error(d)
	}
}

// TestRecoveryThatFails asks for another one, without the pod, in place or not.
func TestRecoveryThatFails(t *testing.T) {
	broken := Done{Failure: &Failure{Kind: FailedForGood, Text: "broken"}}
	lost := Done{Reply: &podapi.PhaseReply{LostRanks: []job.Rank{1}}}
	for name, c := range map[string]struct {
		play func(*stepped)
		pods []job.PodIndex
		move bool
		text string
	}{
		"stop":           {func(s *stepped) { s.answer(broken, "stop 0") }, []job.PodIndex{0}, false, "stop: ranks [0 1] on n1: broken"},
		"stop, ranks":    {func(s *stepped) { s.answer(lost, "stop 0") }, []job.PodIndex{0}, false, "ranks [1] are lost"},
		"rollback":       {func(s *stepped) { s.answer(Done{}, "stop 0"); s.answer(broken, "rollback 0") }, []job.PodIndex{0}, false, "rollback"},
		"rollback, some": {func(s *stepped) { s.answer(Done{}, "stop 0"); s.answer(lost, "rollback 0") }, []job.PodIndex{0}, false, "could not be put back"},
		"kill":           {func(s *stepped) { s.answer(broken, "kill 1") }, []job.PodIndex{1}, true, "kill"},
		"image":          {func(s *stepped) { s.answer(broken, "copy 1") }, []job.PodIndex{1}, true, "image"},
		"start":          {func(s *stepped) { s.answer(Done{}, "kill 1"); s.answer(broken, "start 1") }, []job.PodIndex{1}, true, "start"},
		"restore": {func(s *stepped) {
			s.answer(Done{}, "kill 1", "start 1", "copy 1")
			s.answer(broken, "restore 1")
		}, []job.PodIndex{1}, true, "restore"},
		"release": {func(s *stepped) {
			s.answer(Done{}, "kill 1", "start 1", "copy 1", "restore 1", "stop 0", "rollback 0")
			s.answer(broken, "release 0")
		}, []job.PodIndex{0}, false, "release"},
		"a survivor vanishes": {func(s *stepped) { s.tell(PodGone{Job: 1, Pod: 0, Node: "n1", Text: "gone"}) }, []job.PodIndex{0}, false, "gone"},
		"a new pod vanishes": {func(s *stepped) {
			s.answer(Done{}, "kill 1")
			s.tell(PodGone{Job: 1, Pod: 1, Node: "n3", Text: "gone"})
		}, []job.PodIndex{1}, false, "gone"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepped(t, 1, nil)
			s.lose()
			s.said = nil
			c.play(s)
			s.until(s.now + time.Millisecond)
			if len(s.said) != 1 || s.said[0].Recover == nil {
				t.Fatalf("proposed %s", s.verdict())
			}
			r := s.said[0].Recover
			if !slices.Equal(r.Pods, c.pods) || c.move != (len(r.Move) > 0) || c.move && !slices.Equal(r.Move, c.pods) || r.Why != scheduler.WhyRedo || !strings.Contains(r.Cause, c.text) {
				t.Errorf("%+v", r)
			}
			if s.waits("release 1") && name != "release" {
				t.Error("pods were released")
			}
		})
	}
}

// TestNewsOfAnOldPodBeforeItsReplacement does not count.
func TestNewsOfAnOldPodBeforeItsReplacement(t *testing.T) {
	s := newStepped(t, 1, nil)
	s.lose()
	s.said = nil
	s.tell(PodGone{Job: 1, Pod: 1, Node: "n3", Text: "of long ago"})
	if len(s.said) != 0 {
		t.Errorf("proposed %s", s.verdict())
	}
}

// TestExitsThatComeWithTheRelease count for the new incarnation.
func TestExitsThatComeWithTheRelease(t *testing.T) {
	s := newStepped(t, 1, nil)
	s.lose()
	s.answer(Done{}, "kill 1", "start 1", "copy 1", "restore 1", "stop 0", "rollback 0")
	s.answer(Done{Reply: &podapi.PhaseReply{Exits: []job.Exit{{Rank: 0}, {Rank: 1}}}}, "release 0")
	s.answer(Done{}, "release 1")
	s.said = nil
	s.report("n3", 1, 1, 2, job.Exit{Rank: 2})
	s.report("n3", 1, 2, 2, job.Exit{Rank: 3})
	s.until(s.now + time.Second)
	if got := s.verdict(); got != "end 0" {
		t.Errorf("%s", got)
	}
}

// TestWhatPodsAreTold in a recovery.
func TestWhatPodsAreTold(t *testing.T) {
	s := newStepped(t, 1, nil)
	s.lose()
	told := func(what string) podapi.PhaseRequest {
		return s.find(what).(Call).Request //nolint:errcheck,forcetypeassert // by its name
	}
	mark := func(local, remote string) podapi.Mark {
		return podapi.Mark{Flow: podapi.Flow{Local: local, Remote: remote}}
	}
	if q := told("stop 0"); !slices.Equal(q.Lost, []job.PodIndex{1}) || q.Epoch != 1 || q.Incarnation != 2 {
		t.Errorf("stop: %+v", q)
	}
	own := []podapi.Mark{mark("127.0.0.1:1", "127.0.0.1:2"), mark("127.0.0.1:2", "127.0.0.1:1"), mark("10.0.0.1:1", "10.0.0.2:1")}
	s.answer(Done{Reply: &podapi.PhaseReply{Marks: own}}, "stop 0")
	q := told("rollback 0")
	if d := cmp.Diff([]podapi.Mark{own[1], own[0]}, q.Peers); d != "" || !slices.Equal(q.Lost, []job.PodIndex{1}) || len(q.Book) != 2 || len(q.Placement) != 2 {
		t.Errorf("rollback: %+v %s", q, d)
	}
	s.answer(Done{}, "kill 1", "start 1", "copy 1")
	if q := told("restore 1"); !slices.Equal(q.Lost, []job.PodIndex{1}) || len(q.Book) != 2 || len(q.Placement) != 2 || q.Epoch != 1 {
		t.Errorf("restore: %+v", q)
	}
}

// TestLivePeers: whose marks a survivor gets.
func TestLivePeers(t *testing.T) {
	m := func(local, remote string, seq uint32) podapi.Mark {
		return podapi.Mark{Flow: podapi.Flow{Local: local, Remote: remote}, WriteSeq: seq}
	}
	got := livePeers(map[job.PodIndex][]podapi.Mark{
		0: {m("10.0.0.1:5", "10.0.0.2:6", 1), m("127.0.0.1:5", "127.0.0.1:6", 2), m("10.0.0.1:7", "10.0.0.9:1", 3), m("[::1]:5", "[::1]:6", 8)},
		1: {m("10.0.0.2:6", "10.0.0.1:5", 4), m("127.0.0.1:6", "127.0.0.1:5", 5), m("127.0.0.1:5", "127.0.0.1:6", 6), m("unix", "peer", 7)},
	})
	want := map[job.PodIndex][]podapi.Mark{
		0: {m("10.0.0.2:6", "10.0.0.1:5", 4)}, // the loopback of another pod is another network
		1: {m("10.0.0.1:5", "10.0.0.2:6", 1), m("127.0.0.1:5", "127.0.0.1:6", 6), m("127.0.0.1:6", "127.0.0.1:5", 5)},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestMergeMarks: the send side of the first capture, the rest of the second.
func TestMergeMarks(t *testing.T) {
	m := func(local string, rank job.Rank, cookie uint64, seq uint32, length int) podapi.Mark {
		x := podapi.Mark{Flow: podapi.Flow{Local: local, Remote: "r"}, Rank: rank, Cookie: cookie}
		x.WriteSeq, x.SendLen = seq, length
		return x
	}
	send := []podapi.Mark{m("a", 0, 1, 10, 1), m("a", 1, 1, 20, 2), m("a", 0, 2, 30, 3), m("b", 0, 1, 40, 4)}
	recv := []podapi.Mark{m("b", 0, 1, 0, 0), m("a", 0, 2, 0, 0), m("a", 0, 1, 0, 0), m("a", 1, 1, 0, 0), m("c", 0, 1, 50, 5)}
	want := []podapi.Mark{m("b", 0, 1, 40, 4), m("a", 0, 2, 30, 3), m("a", 0, 1, 10, 1), m("a", 1, 1, 20, 2), m("c", 0, 1, 50, 5)}
	if d := cmp.Diff(want, mergeMarks(send, recv)); d != "" {
		t.Error(d)
	}
	if recv[0].WriteSeq != 0 {
		t.Error("the reply of a pod was written to")
	}
}

// TestLaunchFailures: how a job ends whose pods cannot be started.
func TestLaunchFailures(t *testing.T) {
	for name, c := range map[string]struct {
		f      Failure
		code   int
		reason string
	}{
		"the program":    {Failure{Kind: Refused, Text: "no such program", Exit: 64}, 64, "no such program"},
		"the node":       {Failure{Kind: Refused, Text: "odd"}, 70, "ranks [0 1] on n1 could not be started: odd"},
		"out of reach":   {Failure{Kind: Unreachable, Text: "no route"}, 69, "ranks [0 1] on n1 could not be started: no route"},
		"a broken node":  {Failure{Kind: FailedForGood, Text: "broken"}, 70, "ranks [0 1] on n1 could not be started: broken"},
		"not permitted ": {Failure{Kind: FailedForGood, Text: "forbidden", Exit: 77}, 77, "forbidden"},
	} {
		w := newWatched(t, 0, nil)
		w.refuse = func(a Action) *Failure {
			if s, ok := a.(StartPod); ok && s.Pod == 0 {
				return &c.f
			}
			return nil
		}
		w.log(scheduler.Command{Submit: &scheduler.Submit{Spec: simSpec(4, 0)}})
		w.log(scheduler.Command{End: &scheduler.End{Job: 1}})
		w.log(scheduler.Command{Submit: &scheduler.Submit{Spec: simSpec(4, 0)}})
		w.tell(Committed{State: w.st})
		w.until(w.now + time.Minute)
		if j := w.st.Jobs[2]; j == nil || j.ExitCode == nil || *j.ExitCode != c.code || j.Reason != c.reason {
			t.Errorf("%s: %+v", name, j)
		}
	}
}
