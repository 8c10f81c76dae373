package conduct

import (
	"testing"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/scheduler"
)

// TestFirstLeaseCounts: a spare that is cut off before it renewed any lease has
// the one that its supervisor was started with.
func TestFirstLeaseCounts(t *testing.T) {
	s := newStepped(t, 1, nil)
	s.now = 30 * time.Second // leases of a former leader are long over
	s.lose()
	s.answer(Done{}, "kill 1")
	s.until(s.now + 40*time.Millisecond)
	started := s.now
	s.answer(Done{}, "start 1")
	s.log(scheduler.Command{DeclareDead: &scheduler.DeclareDead{Nodes: []scheduler.NodeRef{life("n3", 1)}}})
	s.tell(Committed{State: s.st})
	end := started + s.l.cfg.Lease + s.l.cfg.LeaseMargin
	for now, want := range map[time.Duration]bool{started: false, end - 1: false, end: true} {
		s.l.now = now
		if got := s.l.guard.fenced(life("n3", 1)); got != want {
			t.Errorf("%v after the start: fenced %t", now-started, got)
		}
	}
}

// TestCopyToANodeOutOfReach goes to another one after a while, not before.
func TestCopyToANodeOutOfReach(t *testing.T) {
	s := newStepped(t, 1, nil)
	s.checkpoint()
	for _, op := range stall {
		s.answer(Done{}, bothOps[op]...)
	}
	s.answer(Done{Reply: &podapi.PhaseReply{Written: &podapi.Written{Digest: "d"}}}, "write 0")
	from := s.now
	lost := Done{Failure: &Failure{Kind: Unreachable, Text: "no route"}}
	for {
		to := s.find("copy 0").(Copy).To //nolint:errcheck,forcetypeassert // by its name
		if to != "n3" {
			if waited := s.now - from; to != "n2" || waited < s.l.cfg.CopyTries-time.Second || waited > s.l.cfg.CopyTries+time.Second {
				t.Errorf("to %s after %v", to, waited)
			}
			return
		}
		if s.now > from+time.Minute {
			t.Fatal("still to n3")
		}
		s.answer(lost, "copy 0")
		s.until(s.now + 500*time.Millisecond)
	}
}
