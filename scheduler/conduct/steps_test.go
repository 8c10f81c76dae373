package conduct

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// stepWorld is a quiet cluster of four compute nodes and two spares with a job
// of eight ranks, checkpointed every three seconds.
func stepWorld(seed uint64, replicas int, trace *strings.Builder) *world {
	w := newWorld(seed, 4, 2)
	w.trace = trace
	w.work = 8 * time.Second
	spec := simSpec(8, 3*time.Second)
	spec.Replicas = replicas
	w.start(spec)
	return w
}

// finish plays on until the job is put away.
func (w *world) finish() error {
	w.run(w.now+3*time.Minute, w.ended)
	w.run(w.now+15*time.Second, func() bool { return false })
	if w.bad != nil {
		return w.bad
	}
	return w.verdict()
}

// TestFaultAtEveryStep lets every kind of fault strike at every single action
// of a leader, from the launch to the end. With a committed epoch the job must
// end as if nothing had happened.
func TestFaultAtEveryStep(t *testing.T) {
	faults := map[string]func(*world){
		"crash n2":        func(w *world) { w.crash("n2", false) },
		"cut n2":          func(w *world) { w.crash("n2", true) },
		"crash leader":    func(w *world) { w.crash("n1", false) },
		"cut leader":      func(w *world) { w.crash("n1", true) },
		"crash spare":     func(w *world) { w.crash("n5", false) },
		"kill rank":       func(w *world) { w.kill("n3", "rank") },
		"kill pod":        func(w *world) { w.kill("n3", "pod") },
		"lamd restarts":   func(w *world) { w.restartLamd("n2") },
		"leader restarts": func(w *world) { w.restartLamd("n1") },
		"false alarm":     func(w *world) { w.falseAlarm("n2") },
		"two at once":     func(w *world) { w.crash("n2", false); w.crash("n3", false) },
		"cut for a while": func(w *world) { w.blink("n2", 1500*time.Millisecond) },
		"leader blinks":   func(w *world) { w.blink("n1", 500*time.Millisecond) },
		"suspended":       func(w *world) { w.user(Verb{Kind: VerbSuspend}); w.after(3*time.Second, w.wake) },
		"damaged images":  func(w *world) { w.damage("n5") },
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			replicas := 2
			if name == "two at once" {
				replicas = 3
			}
			for n := 1; ; n++ {
				struck, err := strike(n, replicas, fault, nil)
				if err != nil {
					var trace strings.Builder
					_, _ = strike(n, replicas, fault, &trace)
					t.Fatalf("at action %d: %v\n%s", n, err, tail(trace.String(), 400))
				}
				if !struck {
					t.Logf("%d actions", n-1)
					return
				}
			}
		})
	}
}

// strike plays the job with a fault at the n-th action.
func strike(n, replicas int, fault func(*world), trace *strings.Builder) (struck bool, err error) {
	w := stepWorld(uint64(n), replicas, trace)
	safe := false
	w.onAction = func() {
		if w.actions == n && !w.ended() {
			struck = true
			w.after(0, func() {
				safe = w.st.Jobs[1].Newest() != nil
				fault(w)
			})
		}
	}
	if n <= w.actions { // the launch itself went by
		struck = true
		fault(w)
	}
	if err := w.finish(); err != nil {
		return struck, err
	}
	if code := *w.st.Jobs[1].ExitCode; safe && code != 0 {
		return struck, fmt.Errorf("ended with %d: %s", code, w.st.Jobs[1].Reason)
	}
	return struck, nil
}

// TestSecondFaultAtEveryStep loses a node, and then, at every single action of
// the recovery, a second one. With three replicas the job survives both.
func TestSecondFaultAtEveryStep(t *testing.T) {
	second := map[string]func(*world){
		"the spare":         func(w *world) { w.crash("n5", false); w.crash("n6", false) },
		"a survivor":        func(w *world) { w.crash("n3", false) },
		"the leader":        func(w *world) { w.crash("n1", false) },
		"the leader's link": func(w *world) { w.crash("n1", true) },
		"a survivor's pod":  func(w *world) { w.kill("n4", "pod") },
		"lamd of a spare":   func(w *world) { w.restartLamd("n5"); w.restartLamd("n6") },
		"the node returns":  func(w *world) { w.revive("n2") },
		"a false alarm":     func(w *world) { w.falseAlarm("n4") },
		"the spare is cut":  func(w *world) { w.crash("n5", true) },
		"a rank":            func(w *world) { w.kill("n4", "rank") },
		"a suspension":      func(w *world) { w.user(Verb{Kind: VerbSuspend}); w.after(5*time.Second, w.wake) },
		"lost images":       func(w *world) { w.damage("n5"); w.damage("n6") },
	}
	for name, fault := range second {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 1; n < 200; n++ {
				if err := strikeTwice(n, fault, nil); err != nil {
					var trace strings.Builder
					_ = strikeTwice(n, fault, &trace)
					t.Fatalf("at action %d: %v\n%s", n, err, tail(trace.String(), 400))
				}
			}
		})
	}
}

func strikeTwice(n int, fault func(*world), trace *strings.Builder) error {
	w := stepWorld(uint64(n), 4, trace)
	w.run(5*time.Second, w.ended)
	w.crash("n2", n%2 == 0)
	from := w.actions
	w.onAction = func() {
		if w.actions == from+n {
			w.after(0, func() { fault(w) })
			w.after(20*time.Second, func() { // somebody repairs what there is
				for _, nd := range w.sorted() {
					w.revive(nd.id)
				}
			})
		}
	}
	if err := w.finish(); err != nil {
		return err
	}
	if j := w.st.Jobs[1]; *j.ExitCode != 0 {
		return fmt.Errorf("ended with %d: %s", *j.ExitCode, j.Reason)
	}
	return nil
}

// TestVerdicts: how a job ends that cannot go on, or need not.
func TestVerdicts(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*job.Spec)
		play   func(*world)
		code   int
		reason string
	}{
		{"undisturbed", nil, func(*world) {}, 0, ""},
		{"crash of the program", nil, func(w *world) {
			w.run(5*time.Second, w.ended)
			w.kill("n2", "segv")
		}, 139, "rank 2 on n2 was ended by signal 11"},
		{"crash, with a retry", func(s *job.Spec) { s.CrashRetries = 1 }, func(w *world) {
			w.run(5*time.Second, w.ended)
			w.kill("n2", "segv")
		}, 0, ""},
		{"killed before any checkpoint", nil, func(w *world) {
			w.run(2*time.Second, w.ended)
			w.kill("n2", "rank")
		}, 137, "rank 2 on n2 was ended by signal 9"},
		{"killed after a checkpoint", nil, func(w *world) {
			w.run(5*time.Second, w.ended)
			w.kill("n2", "rank")
		}, 0, ""},
		{"node lost before any checkpoint", nil, func(w *world) {
			w.run(2*time.Second, w.ended)
			w.crash("n3", false)
		}, 69, "node n3 with ranks 4-5: the job had no checkpoint yet"},
		{"all replicas lost", func(s *job.Spec) { s.Replicas = 1 }, func(w *world) {
			w.run(5*time.Second, w.ended)
			w.crash("n3", false)
		}, 69, "no intact image of ranks 4-5"},
		{"no spare, abort", func(s *job.Spec) { s.NoSpare = job.NoSpareAbort }, func(w *world) {
			w.run(5*time.Second, w.ended)
			w.crash("n5", false)
			w.crash("n6", false)
			w.run(9*time.Second, w.ended)
			w.crash("n3", false)
		}, 75, "no spare"},
		{"no spare, wait for it", nil, func(w *world) {
			w.run(5*time.Second, w.ended)
			w.crash("n5", false)
			w.crash("n6", false)
			w.run(9*time.Second, w.ended)
			w.crash("n3", false)
			w.run(40*time.Second, w.ended)
			w.revive("n6")
		}, 0, ""},
		{"vacated", nil, func(w *world) {
			w.run(5*time.Second, w.ended)
			w.user(Verb{Kind: VerbVacate})
		}, 75, "vacated"},
		{"vacated and restarted", nil, func(w *world) {
			w.run(5*time.Second, w.ended)
			w.user(Verb{Kind: VerbVacate})
			w.run(8*time.Second, w.ended)
			if r := w.apply(scheduler.Command{Restart: &scheduler.Restart{Job: scheduler.Job{ID: 1}}}); r != nil {
				w.fail("restart: %s", r.Text)
			}
			w.toLeaders(nil)
		}, 0, ""},
		{"killed by the user", nil, func(w *world) {
			w.run(5*time.Second, w.ended)
			w.user(Verb{Kind: VerbKill, Code: 130, Reason: "interrupted"})
		}, 130, "interrupted"},
		{"restart policy", func(s *job.Spec) { s.OnFailure = job.OnFailureRestart }, func(w *world) {
			w.run(5*time.Second, w.ended)
			w.crash("n3", false)
		}, 0, ""},
		{"suspended over a loss, and resumed", nil, func(w *world) {
			w.run(5*time.Second, w.ended)
			w.user(Verb{Kind: VerbSuspend})
			w.run(6*time.Second, w.ended)
			w.crash("n3", false)
			w.run(30*time.Second, w.ended)
			if w.ended() {
				w.fail("ended while suspended")
			}
			w.user(Verb{Kind: VerbResume})
		}, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var trace strings.Builder
			w := newWorld(1, 4, 2)
			w.trace = &trace
			w.work = 12 * time.Second
			spec := simSpec(8, 3*time.Second)
			if tc.change != nil {
				tc.change(&spec)
			}
			w.start(spec)
			tc.play(w)
			w.run(w.now+2*time.Minute, w.ended)
			j := w.st.Jobs[1]
			if len(w.asked) > 0 {
				t.Errorf("questions without an answer: %d", len(w.asked))
			}
			if w.bad != nil || !j.Retired || *j.ExitCode != tc.code || !strings.Contains(j.Reason, tc.reason) {
				t.Fatalf("%v; job %s, exit %v, %q\n%s", w.bad, j.Shown(), j.ExitCode, j.Reason, tail(trace.String(), 120))
			}
			for _, a := range w.answers {
				if a.Failure != nil {
					t.Errorf("answer %d: %s", a.Ticket, a.Failure.Text)
				}
			}
			if tc.code >= 100 && j.Epochs != nil {
				t.Error("images are left")
			}
		})
	}
}

// TestCheckpointsGoOn loses the leader at every single action of two rounds:
// whatever a round had come to, its successor takes checkpoints again soon.
func TestCheckpointsGoOn(t *testing.T) {
	for name, fault := range map[string]func(*world){
		"restarts": func(w *world) { w.restartLamd("n1") },
		"is cut off for a moment": func(w *world) {
			w.crash("n1", true)
			w.after(300*time.Millisecond, func() { w.revive("n1") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 1; n <= 120; n++ {
				var trace strings.Builder
				w := stepWorld(uint64(n), 2, &trace)
				w.work = time.Minute
				w.onAction = func() {
					if w.actions == n {
						w.after(0, func() { fault(w) })
					}
				}
				w.run(25*time.Second, w.ended)
				before := w.commits
				w.run(35*time.Second, w.ended)
				if w.bad != nil || w.ended() || w.commits-before < 2 {
					t.Fatalf("action %d: %v, ended %t, %d commits in the last 10 s\n%s", n, w.bad, w.ended(), w.commits-before, tail(trace.String(), 150))
				}
			}
		})
	}
}

// blink cuts a node off for a moment.
func (w *world) blink(id job.NodeID, d time.Duration) {
	w.crash(id, true)
	w.after(d, func() { w.revive(id) })
}

// TestReplicasAreMadeAgain loses a node of a job with one checkpoint, and lets
// something else fail at every single action from then on: once the faults are
// over, the images are on as many nodes as before, and really there.
func TestReplicasAreMadeAgain(t *testing.T) {
	for name, fault := range map[string]func(*world){
		"nothing else":    func(*world) {},
		"leader restarts": func(w *world) { w.restartLamd("n1") },
		"leader blinks":   func(w *world) { w.blink("n1", 700*time.Millisecond) },
		"spare dies":      func(w *world) { w.crash("n6", false) },
		"holder blinks":   func(w *world) { w.blink("n5", 3*time.Second) },
		"lamd restarts":   func(w *world) { w.restartLamd("n5") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 1; n <= 80; n += 1 + n/40 {
				var trace strings.Builder
				w := newWorld(uint64(n), 4, 2)
				w.trace = &trace
				w.work = 10 * time.Minute
				spec := simSpec(8, 0)
				spec.Replicas = 3
				w.start(spec)
				w.run(2*time.Second, w.ended)
				w.user(Verb{Kind: VerbCheckpoint})
				w.run(5*time.Second, w.ended)
				w.crash("n2", false)
				from := w.actions
				w.onAction = func() {
					if w.actions == from+n {
						w.after(0, func() { fault(w) })
					}
				}
				w.run(50*time.Second, w.ended)
				if err := w.protected(3); err != nil {
					t.Fatalf("action %d: %v\n%s", n, err, tail(trace.String(), 150))
				}
			}
		})
	}
}

// protected judges a job that should be safe again.
func (w *world) protected(replicas int) error {
	j := w.st.Jobs[1]
	switch {
	case w.bad != nil:
		return w.bad
	case j.State != job.Running || j.Newest() == nil:
		return fmt.Errorf("the job is %s: %s", j.State, j.Reason)
	case w.st.Protected(j) != "YES":
		return fmt.Errorf("the job is %s", w.st.Protected(j))
	}
	for _, im := range j.Newest().Images {
		for _, h := range im.Holders {
			if got, ok := w.nodes[h].images[imageKey{j.Newest().Epoch, im.Pod}]; !ok || got.bad || len(im.Holders) < replicas {
				return fmt.Errorf("image of pod %d is not on %s", im.Pod, h)
			}
			if !w.nodes[h].sealed[j.Newest().Epoch] {
				return fmt.Errorf("%s does not know that the epoch is committed", h)
			}
		}
	}
	return nil
}
