package conduct

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// twoEpochs is a job on n1 and n2 with the spare n3 and epochs 1 and 2; n2 was
// just declared dead.
func twoEpochs(t *testing.T) *scheduler.State {
	t.Helper()
	var st *scheduler.State
	index := uint64(0)
	apply := func(c scheduler.Command) {
		index++
		next, acts := scheduler.Step(st, index, c)
		for _, a := range acts {
			if a.Kind == scheduler.ActRefuse {
				t.Fatalf("%+v: %s", c, a.Refusal.Text)
			}
		}
		st = next
	}
	for _, n := range []job.NodeID{"n1", "n2", "n3"} {
		role := scheduler.Compute
		if n == "n3" {
			role = scheduler.Spare
		}
		apply(scheduler.Command{Join: &scheduler.Join{Node: n, Addr: "10.0.0.1", Boot: 1, Session: 1, Role: role, Slots: 2}})
	}
	spec := simSpec(2, 3*time.Second)
	spec.PPN = 1
	apply(scheduler.Command{Submit: &scheduler.Submit{Key: "k", Spec: spec}})
	apply(scheduler.Command{Started: &scheduler.Started{Job: 1, Incarnation: 1}})
	for e := job.Epoch(1); e <= 2; e++ {
		apply(scheduler.Command{BeginEpoch: &scheduler.BeginEpoch{Job: 1, Incarnation: 1, Term: 1, Attempt: uint64(e)}})
		c := &scheduler.Commit{Job: 1, Incarnation: 1, Epoch: e, SetDigest: "d"}
		for p, own := range []job.NodeID{"n1", "n2"} {
			c.Images = append(c.Images, scheduler.PodImage{Pod: job.PodIndex(p), Bytes: 1, Written: podapi.Written{Digest: "d"}, Holders: []job.NodeID{own, "n3"}})
		}
		apply(scheduler.Command{Commit: c})
	}
	apply(scheduler.Command{DeclareDead: &scheduler.DeclareDead{Nodes: []scheduler.NodeRef{{Node: "n2", Boot: 1}}}})
	return st
}

// actionsOf returns the actions of one type.
func actionsOf[T Action](acts []Action) []T {
	var out []T
	for _, a := range acts {
		if x, ok := a.(T); ok {
			out = append(out, x)
		}
	}
	return out
}

// A recovery that finds no intact copy of an image asks the log for one that
// does without; what is damaged although the copy succeeded is told as well.
func TestDamagedImagesAreToldToTheLog(t *testing.T) {
	for name, c := range map[string]struct {
		done Done
		want scheduler.Command
	}{
		"all copies": {
			Done{Failure: &Failure{Kind: NoIntactCopy, Text: "bad"}, Damaged: []job.NodeID{"n3"}},
			scheduler.Command{Recover: &scheduler.Recover{
				Job: 1, Incarnation: 2, Pods: []job.PodIndex{1}, Why: scheduler.WhyRedo, Cause: "image: rank 1 on n3: bad",
				Damaged: &scheduler.Damaged{Epoch: 2, Pod: 1, Nodes: []job.NodeID{"n3"}},
			}},
		},
		"one of several": {
			Done{Damaged: []job.NodeID{"n3"}},
			scheduler.Command{Damaged: &scheduler.Damaged{Job: 1, Epoch: 2, Pod: 1, Nodes: []job.NodeID{"n3"}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := NewLeader(Config{Lease: time.Second}, 1, time.Second)
			now := 2 * time.Second
			st := twoEpochs(t)
			// A recovery that was under way is begun anew by a new leader.
			acts := l.Step(now, Committed{State: st})
			redo := actionsOf[Propose](acts)
			if len(redo) != 1 || redo[0].Command.Recover == nil {
				t.Fatalf("%+v", acts)
			}
			r := *redo[0].Command.Recover
			r.Incarnation = st.Jobs[1].Incarnation
			st, _ = scheduler.Step(st, st.Index+1, scheduler.Command{Recover: &r})
			acts = l.Step(now, Committed{State: st})
			copies := actionsOf[Copy](acts)
			if len(copies) != 1 || copies[0].Epoch != 2 || copies[0].To != "n3" || !copies[0].Urgent {
				t.Fatalf("%+v", acts)
			}
			l.Step(now, Done{Ref: redo[0].Ref})
			c.done.Ref = copies[0].Ref
			got := actionsOf[Propose](l.Step(now, c.done))
			if c.want.Recover != nil {
				c.want.Recover.Incarnation = st.Jobs[1].Incarnation
			}
			if len(got) != 1 {
				t.Fatalf("%+v", got)
			}
			if d := cmp.Diff(c.want, got[0].Command); d != "" {
				t.Error(d)
			}
		})
	}
}

// The epoch before the newest stays until the next commit, as a second way
// back.
func TestOneOlderEpochIsKept(t *testing.T) {
	w := newWorld(1, 3, 1)
	w.work = 11 * time.Second
	w.start(simSpec(4, 2*time.Second))
	most := 0
	for at := time.Second; !w.ended() && at < time.Minute; at += 100 * time.Millisecond {
		w.run(at, w.ended)
		most = max(most, len(w.st.Jobs[1].Epochs))
	}
	if w.bad != nil || w.commits < 4 || most < 2 || most > 3 { // three between a commit and what follows from it
		t.Errorf("%v; %d commits, up to %d epochs at a time", w.bad, w.commits, most)
	}
}

func TestAFullDiskIsRecognised(t *testing.T) {
	for text, want := range map[string]bool{
		"write: rank 1 on n1: write page file: no space left on device":    true,
		"image of rank 1 on 1 of 2 nodes: copy to n2: disk quota exceeded": true,
		"freeze: rank 1 on n1: a connection is being set up":               false,
	} {
		if noRoom(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}
