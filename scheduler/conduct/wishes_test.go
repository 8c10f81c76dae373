package conduct

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// TestSuspendAndResume: the user hears when all pods stand still or go on.
func TestSuspendAndResume(t *testing.T) {
	s := newStepped(t, 1, nil)
	s.tell(Verb{Ticket: 1, Job: 1, Kind: VerbSuspend})
	s.answer(Done{}, "suspend 0")
	if len(s.answers()) != 0 {
		t.Error("answered while a pod runs")
	}
	s.tell(Verb{Ticket: 2, Job: 1, Kind: VerbResume}) // before the last pod stood still
	if s.waits("continue 0") {
		t.Error("two wishes at a time")
	}
	s.answer(Done{}, "suspend 1")
	if len(s.answers()) != 0 || !s.waits("continue 0") || !s.waits("continue 1") {
		t.Errorf("%+v", s.answers())
	}
	on, off := actionsOf[Call](s.acts)[0], s.find("continue 0").(Call) //nolint:errcheck,forcetypeassert // by its name
	if off.Request.Attempt <= on.Request.Attempt {
		t.Errorf("attempts %d and %d", on.Request.Attempt, off.Request.Attempt)
	}
	s.answer(Done{}, "continue 0", "continue 1")
	for i, a := range s.answers() {
		if a.Failure != nil || i > 1 {
			t.Errorf("%+v", a)
		}
	}
	if len(s.answers()) != 2 || s.job().Suspended {
		t.Errorf("%+v", s.answers())
	}
	s.tell(Verb{Ticket: 3, Job: 1, Kind: VerbResume}) // as it is
	if got := s.answers(); len(got) != 3 || got[2].Failure != nil || len(s.open) != 0 {
		t.Errorf("%+v, %d requests", got, len(s.open))
	}
	s.tell(Verb{Ticket: 4, Job: 1, Kind: VerbSuspend})
	s.answer(Done{}, "suspend 0")
	s.answer(Done{Failure: &Failure{Kind: FailedForGood, Text: "broken"}}, "suspend 1")
	if got := s.answers(); len(got) != 4 || got[3].Failure == nil || got[3].Failure.Text != "broken" {
		t.Errorf("%+v", got)
	}
}

// TestSuspendDuringARound waits for the end of the stall.
func TestSuspendDuringARound(t *testing.T) {
	s := newStepped(t, 1, nil)
	s.checkpoint()
	s.tell(Verb{Ticket: 1, Job: 1, Kind: VerbSuspend})
	for _, op := range stall {
		if s.waits("suspend 0") {
			t.Fatalf("suspended before %s", op)
		}
		s.answer(Done{}, bothOps[op]...)
	}
	s.answer(Done{}, "suspend 0", "suspend 1")
	s.answer(Done{Reply: &podapi.PhaseReply{Written: &podapi.Written{Digest: "d"}}}, "write 0", "write 1")
	s.answer(Done{}, "copy 0", "copy 1")
	if got := s.epochsSaid(); got != "begin, commit" {
		t.Errorf("the round: %s", got)
	}
}

// TestSuspensionOutlivesARecovery, and so does the end of one.
func TestSuspensionOutlivesARecovery(t *testing.T) {
	back := func(s *stepped) {
		s.lose()
		s.answer(Done{}, "kill 1", "start 1", "copy 1", "restore 1", "stop 0", "rollback 0", "release 0", "release 1")
		if s.job().State != job.Running {
			t.Fatalf("%+v", s.job())
		}
	}
	s := newStepped(t, 1, nil)
	s.tell(Verb{Ticket: 1, Job: 1, Kind: VerbSuspend})
	s.answer(Done{}, "suspend 0", "suspend 1")
	back(s)
	s.answer(Done{}, "suspend 0", "suspend 1")
	s = newStepped(t, 1, nil)
	back(s)
	if s.waits("continue 0") || s.waits("suspend 0") {
		t.Error("pods that nobody suspended are told to go on")
	}
	s = newStepped(t, 1, nil)
	s.tell(Verb{Ticket: 1, Job: 1, Kind: VerbSuspend})
	s.answer(Done{}, "suspend 0", "suspend 1")
	s.tell(Verb{Ticket: 2, Job: 1, Kind: VerbResume})
	back(s) // before they were told
	s.answer(Done{}, "continue 0", "continue 1")
}

// TestPreflight gathers what stands in the way.
func TestPreflight(t *testing.T) {
	s := newStepped(t, 0, nil)
	s.tell(Verb{Ticket: 1, Job: 1, Kind: VerbPreflight})
	s.answer(Done{Reply: &podapi.PhaseReply{Obstacles: []string{"a"}}}, "preflight 1")
	s.answer(Done{Reply: &podapi.PhaseReply{Obstacles: []string{"b"}}}, "preflight 0")
	if got := s.answers(); len(got) != 1 || got[0].Failure != nil || !slices.Equal(got[0].Obstacles, []string{"a", "b"}) {
		t.Errorf("%+v", got)
	}
	s.tell(Verb{Ticket: 2, Job: 1, Kind: VerbPreflight})
	s.answer(Done{Failure: &Failure{Kind: FailedForGood, Text: "one"}}, "preflight 1")
	s.answer(Done{Failure: &Failure{Kind: FailedForGood, Text: "two"}}, "preflight 0")
	if got := s.answers(); len(got) != 2 || got[1].Failure == nil || got[1].Failure.Text != "one" {
		t.Errorf("%+v", got)
	}
	s.tell(Verb{Ticket: 3, Job: 1, Kind: "dance"})
	if got := s.answers(); len(got) != 3 || got[2].Failure == nil || !strings.Contains(got[2].Failure.Text, "dance") {
		t.Errorf("%+v", got)
	}
	s = newStepped(t, 1, nil)
	s.lose()
	s.tell(Verb{Ticket: 4, Job: 1, Kind: VerbPreflight})
	if got := s.answers(); len(got) != 1 || got[0].Failure == nil || got[0].Failure.Kind != RefusedNow {
		t.Errorf("%+v", got)
	}
}

// TestWaitAfterAFailedRound grows, within bounds.
func TestWaitAfterAFailedRound(t *testing.T) {
	second := time.Second
	for name, c := range map[string]struct {
		interval time.Duration
		kind     FailureKind
		text     string
		want     []time.Duration
	}{
		"for good":         {time.Minute, FailedForGood, "x", []time.Duration{second / 2, second, 2 * second, 4 * second, 8 * second, 16 * second, 30 * second, 30 * second}},
		"may pass":         {time.Minute, RefusedNow, "x", []time.Duration{second / 2, second, 2 * second, 4 * second, 4 * second}},
		"short interval":   {3 * second, FailedForGood, "x", []time.Duration{second / 2, second, 2 * second, 3 * second, 3 * second}},
		"tiny interval":    {time.Millisecond, FailedForGood, "x", []time.Duration{second / 2, second / 2}},
		"the disk is full": {time.Minute, FailedForGood, "no space left on device", []time.Duration{second / 2, second}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepped(t, 2, func(sp *job.Spec) { sp.CkptInterval = c.interval })
			s.refuse = func(a Action) *Failure {
				if x, ok := a.(Call); ok && x.Request.Op == podapi.OpFreeze && x.Pod == 0 {
					return &Failure{Kind: c.kind, Text: c.text}
				}
				return nil
			}
			s.l.jobs[1].rounds.at = s.now
			s.tell(Tick{})
			for i, want := range c.want {
				if got := s.l.jobs[1].rounds.at - s.now; got != want {
					t.Errorf("wait %d: %v, not %v", i, got, want)
				}
				s.until(s.l.jobs[1].rounds.at)
			}
			if full := strings.Contains(c.text, "space"); full != (len(s.job().Epochs) == 1) {
				t.Errorf("%d epochs are kept", len(s.job().Epochs))
			}
		})
	}
}

// TestWishesOutliveFailedRounds, for a while.
func TestWishesOutliveFailedRounds(t *testing.T) {
	s := newStepped(t, 1, nil)
	s.refuse = func(a Action) *Failure {
		if x, ok := a.(Call); ok && x.Request.Op == podapi.OpFreeze && x.Pod == 0 && s.now < 3*time.Second {
			return &Failure{Kind: RefusedNow, Text: "a connection is being set up"}
		}
		return nil
	}
	s.tell(Verb{Ticket: 9, Job: 1, Kind: VerbCheckpoint})
	s.until(2900 * time.Millisecond)
	if got := s.answers(); len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	s.until(time.Minute)
	if got := s.answers(); len(got) != 1 || got[0].Failure != nil || got[0].Epoch == 0 {
		t.Errorf("%+v", got)
	}
	if strings.Count(s.epochsSaid(), "commit") != 1 {
		t.Errorf("a job without an interval is checkpointed: %s", s.epochsSaid())
	}
	s.said = nil
	s.tell(Verb{Ticket: 10, Job: 1, Kind: VerbCheckpoint}) // of a job that recovers: when it runs again
	s = newStepped(t, 1, nil)
	s.lose()
	s.tell(Verb{Ticket: 11, Job: 1, Kind: VerbCheckpoint})
	if len(s.answers()) != 0 || s.epochsSaid() != "" {
		t.Errorf("%+v %s", s.answers(), s.epochsSaid())
	}
	s.answer(Done{}, "kill 1", "start 1", "copy 1", "restore 1", "stop 0", "rollback 0", "release 0", "release 1")
	s.until(s.now + time.Millisecond)
	if got := s.epochsSaid(); got != "begin" {
		t.Errorf("after the recovery: %s", got)
	}
	s.log(scheduler.Command{End: &scheduler.End{Job: 1}}) // in the middle of the round
	s.tell(Committed{State: s.st})
	if got := s.answers(); len(got) != 1 || got[0].Failure == nil {
		t.Errorf("%+v", got)
	}
}

// TestWishThatNeverComesTrue is answered in the end.
func TestWishThatNeverComesTrue(t *testing.T) {
	s := newStepped(t, 1, nil)
	s.refuse = func(a Action) *Failure {
		if x, ok := a.(Call); ok && x.Request.Op == podapi.OpFreeze && x.Pod == 0 {
			return &Failure{Kind: RefusedNow, Text: "a connection is being set up"}
		}
		return nil
	}
	from := s.now
	s.tell(Verb{Ticket: 9, Job: 1, Kind: VerbCheckpoint})
	if s.until(from + verbMax - time.Millisecond); len(s.answers()) != 0 {
		t.Errorf("%+v", s.answers())
	}
	s.until(from + verbMax + 2*hasty)
	if got := s.answers(); len(got) != 1 || got[0].Failure == nil {
		t.Errorf("%+v", got)
	}
	s.said = nil
	if s.until(s.now + time.Minute); s.epochsSaid() != "" {
		t.Errorf("and still: %s", s.epochsSaid())
	}
}

// TestTargets: where copies may go, the best first.
func TestTargets(t *testing.T) {
	w := newWatched(t, 1, nil)
	c := w.l.jobs[1]
	for name, x := range map[string]struct {
		intended job.NodeID
		pod      job.PodIndex
		want     []job.NodeID
	}{
		"the spare, then who comes after": {"n3", 0, []job.NodeID{"n3", "n2"}},
		"round the corner":                {"n3", 1, []job.NodeID{"n3", "n1"}},
		"nobody is meant":                 {"", 1, []job.NodeID{"n3", "n1"}},
		"nobody is meant for the first":   {"", 0, []job.NodeID{"n2", "n3"}},
		"the own node":                    {"n1", 0, []job.NodeID{"n2", "n3"}},
		"a stranger":                      {"n9", 0, []job.NodeID{"n2", "n3"}},
	} {
		j := *c.j
		j.Pods = slices.Clone(j.Pods)
		j.Pods[x.pod].Intended = x.intended
		c.j = &j
		if got := c.targets(x.pod); !slices.Equal(got, x.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}
