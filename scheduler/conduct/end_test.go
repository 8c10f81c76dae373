package conduct

import (
	"slices"
	"testing"
	"time"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

func (w *watched) retired() bool { return w.job().Retired }

// dropped returns the nodes that were told to delete the whole job.
func (w *watched) dropped() []job.NodeID {
	var out []job.NodeID
	for _, d := range actionsOf[Drop](w.acts) {
		if d.Epoch == 0 {
			out = append(out, d.Node)
		}
	}
	slices.Sort(out)
	return out
}

// TestTakingDown: an ended job is put away when nothing of it can be left.
func TestTakingDown(t *testing.T) {
	s := newStepped(t, 1, nil)
	s.tell(Verb{Ticket: 4, Job: 1, Kind: VerbKill, Code: 130, Reason: "enough"})
	for _, what := range []string{"kill 0", "kill 1"} {
		if k := s.find(what).(KillPod); !k.Drain || k.UpTo != 1 || k.Timeout != s.l.cfg.KillMax { //nolint:errcheck,forcetypeassert // by its name
			t.Errorf("%+v", k)
		}
	}
	s.answer(Done{}, "kill 0")
	s.until(s.now + time.Minute)
	if s.retired() || len(s.dropped()) > 0 {
		t.Fatal("put away while a pod may live")
	}
	s.answer(Done{Failure: &Failure{Kind: FailedForGood, Text: "stuck"}}, "kill 1")
	s.answer(Done{}, "kill 1") // asked again
	if s.until(s.now + time.Second); !s.retired() || !slices.Equal(s.dropped(), []job.NodeID{"n1", "n2", "n3"}) {
		t.Errorf("retired %t, dropped on %v", s.retired(), s.dropped())
	}
}

// TestTakingDownOnADeadNode waits for its fence, so that a restart can never
// meet what is left there.
func TestTakingDownOnADeadNode(t *testing.T) {
	s := newStepped(t, 1, func(sp *job.Spec) { sp.OnFailure = job.OnFailureAbort })
	s.now = 20 * time.Second
	s.l.Renew(s.now, life("n1", 1))
	s.l.Renew(s.now, life("n2", 1))
	s.tell(Evidence{Node: life("n2", 1), Source: "gossip"})
	s.until(s.now + s.l.cfg.Settle)
	if j := s.job(); j.State != job.Failed || !j.KeepImages {
		t.Fatalf("%+v", j)
	}
	if s.waits("kill 1") {
		t.Error("a dead node is asked to kill")
	}
	s.answer(Done{}, "kill 0", "seal n1", "seal n3")
	end := 20*time.Second + s.l.cfg.Lease + s.l.cfg.LeaseMargin
	if s.until(end - time.Millisecond); s.retired() {
		t.Error("put away before the fence")
	}
	if s.until(end + 2*s.l.cfg.Retry); !s.retired() {
		t.Error("not put away after the fence")
	}
	if d := s.dropped(); len(d) > 0 {
		t.Errorf("kept images dropped on %v", d)
	}
}

// TestTakingDownByANewLeader: it does not know where pods once were.
func TestTakingDownByANewLeader(t *testing.T) {
	w := newWatched(t, 1, nil)
	w.log(scheduler.Command{End: &scheduler.End{Job: 1, Code: 1}})
	w.now = 30 * time.Second
	w.l = NewLeader(Config{}, 2, w.now)
	w.tell(Committed{State: w.st})
	end := w.now + w.l.cfg.Lease + w.l.cfg.LeaseMargin
	if w.until(end - 1); w.retired() {
		t.Error("put away while leases of a former leader may run")
	}
	if w.until(end); !w.retired() {
		t.Error("not put away")
	}
	if n := len(actionsOf[KillPod](w.acts)); n != 2 {
		t.Errorf("%d kills", n)
	}
}

// TestVerbsAtTheEnd are all answered.
func TestVerbsAtTheEnd(t *testing.T) {
	s := newStepped(t, 1, nil)
	s.tell(Verb{Ticket: 1, Job: 1, Kind: VerbSuspend})
	s.tell(Verb{Ticket: 2, Job: 1, Kind: VerbCheckpoint}) // waits for the suspension
	s.tell(Verb{Ticket: 3, Job: 1, Kind: VerbPreflight})
	s.tell(Verb{Ticket: 4, Job: 1, Kind: VerbKill, Code: 130})
	s.tell(Verb{Ticket: 5, Job: 1, Kind: VerbCheckpoint})
	s.tell(Verb{Ticket: 6, Job: 9, Kind: VerbKill})
	heard := map[Ticket]bool{}
	for _, a := range s.answers() {
		heard[a.Ticket] = a.Failure == nil
	}
	for ticket, ok := range map[Ticket]bool{1: false, 2: false, 4: true, 5: false, 6: false} {
		if got, known := heard[ticket]; !known || got != ok {
			t.Errorf("verb %d: answered %t, success %t", ticket, known, got)
		}
	}
}

// TestLeaderFollowsTheLog forwards only, and does nothing before it knows it.
func TestLeaderFollowsTheLog(t *testing.T) {
	w := newWatched(t, 1, nil)
	l := NewLeader(Config{}, 3, 0)
	for _, ev := range []Event{Tick{}, Suspect{Node: life("n1", 1)}, Evidence{Node: life("n1", 1)}, Verb{Ticket: 1, Job: 1}, Fence{Ticket: 2}, PodGone{Job: 1}} {
		if acts := l.Step(0, ev); len(acts) != 0 {
			t.Errorf("%T: %+v", ev, acts)
		}
	}
	old := w.st
	w.log(scheduler.Command{End: &scheduler.End{Job: 1}})
	w.tell(Committed{State: w.st})
	if !w.retired() {
		t.Fatal("not put away")
	}
	w.acts = nil
	w.tell(Committed{State: old})
	if len(w.acts) != 0 || len(w.l.jobs) != 0 || w.l.st == old {
		t.Errorf("went back to an older state: %+v", w.acts)
	}
	for _, ev := range []Event{PodGone{Job: 1}, PodReport{Job: 1}, RollCall{Node: life("n1", 1)}} {
		w.tell(ev)
	}
	if len(w.acts) != 0 {
		t.Errorf("%+v", w.acts)
	}
	if at, ok := w.l.Next(); ok {
		t.Errorf("idle, and the next tick is at %v", at)
	}
	l.Step(0, Committed{State: w.st})
	if len(l.jobs) != 0 {
		t.Error("a job that was put away is led")
	}
}
