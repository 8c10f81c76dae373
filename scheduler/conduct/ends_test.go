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

// watched is a running job of four ranks, two each on n1 and n2, with the spare
// n3, and the leader that launched it. Requests are answered with success
// unless a test says otherwise.
type watched struct {
	t      *testing.T
	l      *Leader
	st     *scheduler.State
	now    time.Duration
	said   []scheduler.Command // proposed, newest last
	acts   []Action            // all, newest last
	refuse func(Action) *Failure

	deathAt []time.Duration // when deaths were proposed
}

// newWatched makes one; epochs is the number of committed ones.
func newWatched(t *testing.T, epochs int, change func(*job.Spec)) *watched {
	t.Helper()
	w := &watched{t: t, l: NewLeader(Config{Pair: pairAll}, 1, 0), now: time.Second}
	for _, n := range []job.NodeID{"n1", "n2", "n3"} {
		role := scheduler.Compute
		if n == "n3" {
			role = scheduler.Spare
		}
		w.log(scheduler.Command{Join: &scheduler.Join{Node: n, Addr: "10.0.0.1", Boot: 1, Session: 1, Role: role, Slots: 2}})
	}
	w.tell(Committed{State: w.st})
	spec := simSpec(4, 0)
	if change != nil {
		change(&spec)
	}
	w.log(scheduler.Command{Submit: &scheduler.Submit{Spec: spec}})
	w.log(scheduler.Command{Started: &scheduler.Started{Job: 1, Incarnation: 1}})
	for e := 1; e <= epochs; e++ {
		w.log(scheduler.Command{BeginEpoch: &scheduler.BeginEpoch{Job: 1, Incarnation: 1, Term: 1, Attempt: uint64(e)}})
		c := &scheduler.Commit{Job: 1, Incarnation: 1, Epoch: job.Epoch(e), SetDigest: "d"}
		for p, own := range []job.NodeID{"n1", "n2"} {
			c.Images = append(c.Images, scheduler.PodImage{Pod: job.PodIndex(p), Written: podapi.Written{Digest: "d"}, Holders: []job.NodeID{own, "n3"}})
		}
		w.log(scheduler.Command{Commit: c})
	}
	w.tell(Committed{State: w.st})
	w.acts, w.said = nil, nil
	return w
}

// log applies a command.
func (w *watched) log(c scheduler.Command) *scheduler.Refusal {
	index := uint64(1)
	if w.st != nil {
		index = w.st.Index + 1
	}
	next, acts := scheduler.Step(w.st, index, c)
	w.st = next
	if len(acts) > 0 && acts[0].Kind == scheduler.ActRefuse {
		return acts[0].Refusal
	}
	return nil
}

// tell passes on an event; what follows is answered at once.
func (w *watched) tell(ev Event) {
	w.t.Helper()
	for _, a := range w.l.Step(w.now, ev) {
		w.acts = append(w.acts, a)
		var d Done
		switch a := a.(type) {
		case Propose:
			w.said = append(w.said, a.Command)
			if a.Command.DeclareDead != nil {
				w.deathAt = append(w.deathAt, w.now)
			}
			d = Done{Ref: a.Ref}
			if r := w.log(a.Command); r != nil {
				d.Failure = &Failure{Kind: Refused, Text: r.Text, Exit: r.Exit}
			}
			w.tell(Committed{State: w.st})
		case StartPod:
			d = Done{Ref: a.Ref}
		case KillPod:
			d = Done{Ref: a.Ref}
		case Call:
			d = Done{Ref: a.Ref, Reply: &podapi.PhaseReply{Written: &podapi.Written{Digest: "d"}}}
		case Copy:
			d = Done{Ref: a.Ref}
		case Seal:
			d = Done{Ref: a.Ref}
		default:
			continue
		}
		if w.refuse != nil {
			if f := w.refuse(a); f != nil {
				d.Failure = f
			}
		}
		if d.Failure == nil || d.Failure.Kind != 0 {
			w.tell(d)
		}
	}
}

// until lets time pass, with every tick that is asked for.
func (w *watched) until(at time.Duration) {
	w.t.Helper()
	for {
		next, ok := w.l.Next()
		if !ok || next > at {
			break
		}
		if next <= w.now {
			w.t.Fatalf("at %v a tick is asked for at %v", w.now, next)
		}
		w.now = next
		w.tell(Tick{})
	}
	w.now = at
}

// job returns the record.
func (w *watched) job() *scheduler.Job { return w.st.Jobs[1] }

func (w *watched) report(node job.NodeID, pod job.PodIndex, seq uint64, inc job.Incarnation, x job.Exit) {
	w.t.Helper()
	w.tell(PodReport{Job: 1, Pod: pod, Node: node, Event: podapi.Event{Seq: seq, Incarnation: inc, Kind: "exit", Exit: &x, Rank: x.Rank}})
}

// verdict says what was proposed, in a word.
func (w *watched) verdict() string {
	var out []string
	for _, c := range w.said {
		switch {
		case c.End != nil:
			out = append(out, fmt.Sprintf("end %d", c.End.Code))
		case c.Recover != nil:
			out = append(out, fmt.Sprintf("recover %v %s", c.Recover.Pods, c.Recover.Why))
		case c.DeclareDead != nil:
			out = append(out, fmt.Sprintf("dead %v", c.DeclareDead.Nodes))
		}
	}
	return strings.Join(out, ", ")
}

const sigkill = 9

// TestEndsOfRanks: what the ends of ranks lead to.
func TestEndsOfRanks(t *testing.T) {
	kill, crash := job.Exit{Rank: 2, Signal: sigkill}, job.Exit{Rank: 2, Signal: 11}
	for name, c := range map[string]struct {
		epochs int
		change func(*job.Spec)
		exits  []job.Exit
		want   string
		reason string
	}{
		"all well":                {0, nil, []job.Exit{{Rank: 0}, {Rank: 1}, {Rank: 2}, {Rank: 3}}, "end 0", ""},
		"three of four":           {0, nil, []job.Exit{{Rank: 0}, {Rank: 1}, {Rank: 2}}, "", ""},
		"one twice":               {0, nil, []job.Exit{{Rank: 0}, {Rank: 1}, {Rank: 2}, {Rank: 2, Code: 3}}, "", ""},
		"killed":                  {1, nil, []job.Exit{kill}, "recover [1] killed", ""},
		"killed, both of a pod":   {1, nil, []job.Exit{{Rank: 3, Signal: sigkill}, kill}, "recover [1] killed", ""},
		"killed, in two pods":     {1, nil, []job.Exit{kill, {Rank: 1, Signal: sigkill}}, "recover [0 1] killed", ""},
		"killed, no checkpoint":   {0, nil, []job.Exit{kill}, "end 137", "rank 2 on n2 was ended by signal 9 (killed)"},
		"killed, policy is abort": {1, func(s *job.Spec) { s.OnFailure = job.OnFailureAbort }, []job.Exit{kill}, "end 137", ""},
		"crash":                   {1, nil, []job.Exit{crash}, "end 139", "rank 2 on n2 was ended by signal 11 (segmentation fault)"},
		"crash, then killed":      {1, nil, []job.Exit{crash, {Rank: 3, Signal: sigkill}}, "recover [1] killed", ""}, // the echo came first
		"crash of two":            {1, nil, []job.Exit{crash, {Rank: 3, Code: 1}}, "end 139", "(and 1 more ranks)"},
		"killed, then crash":      {1, nil, []job.Exit{{Rank: 3, Signal: sigkill}, crash}, "recover [1] killed", ""},
		"killed, a peer fails":    {1, nil, []job.Exit{{Rank: 3, Signal: sigkill}, {Rank: 0, Code: 15}}, "recover [0 1] killed", ""},
		"status":                  {1, nil, []job.Exit{{Rank: 1, Code: 7}}, "end 7", "rank 1 on n1 exited with status 7"},
		"crash, with a retry":     {1, func(s *job.Spec) { s.CrashRetries = 1 }, []job.Exit{crash}, "recover [1] crash", ""},
		"retry, no checkpoint":    {0, func(s *job.Spec) { s.CrashRetries = 1 }, []job.Exit{crash}, "end 139", ""},
		"killed, with a retry":    {1, func(s *job.Spec) { s.CrashRetries = 1 }, []job.Exit{kill}, "recover [1] killed", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWatched(t, c.epochs, c.change)
			for i, x := range c.exits {
				pod := job.PodIndex(x.Rank / 2)
				w.report(w.job().Pods[pod].Node, pod, uint64(i+1), 1, x)
			}
			bad := slices.ContainsFunc(c.exits, func(x job.Exit) bool { return x.Status() != 0 })
			w.until(w.now + w.l.cfg.CrashHold - 1)
			if got := w.verdict(); bad && got != "" {
				t.Errorf("at once: %s", got)
			}
			w.until(w.now + 1)
			if got := w.verdict(); got != c.want {
				t.Errorf("%s, not %s", got, c.want)
			}
			if c.reason != "" && !strings.Contains(w.job().Reason, c.reason) {
				t.Errorf("reason %q", w.job().Reason)
			}
			if c.want == "end 0" && len(w.job().Exits) != 4 {
				t.Errorf("exits %v", w.job().Exits)
			}
		})
	}
}

// TestAborts: what MPI_Abort leads to, whatever the pod says of it.
func TestAborts(t *testing.T) {
	for name, c := range map[string]struct {
		exit *job.Exit
		code int
	}{
		"with a code": {&job.Exit{Rank: 3, Code: 5}, 5},
		"with code 0": {&job.Exit{Rank: 3}, 1},
		"bare":        {nil, 1},
	} {
		w := newWatched(t, 1, nil)
		w.tell(PodReport{Job: 1, Pod: 1, Node: "n2", Event: podapi.Event{Seq: 1, Incarnation: 1, Kind: "abort", Rank: 3, Text: "no luck", Exit: c.exit}})
		w.tell(PodReport{Job: 1, Pod: 0, Node: "n1", Event: podapi.Event{Seq: 1, Incarnation: 1, Kind: "abort", Rank: 0, Text: "me too"}})
		w.tell(PodReport{Job: 1, Pod: 0, Node: "n1", Event: podapi.Event{Seq: 2, Incarnation: 1, Kind: "exit"}}) // malformed
		w.until(w.now + time.Second)
		if j := w.job(); j.ExitCode == nil || *j.ExitCode != c.code || j.Reason != "rank 3 called MPI_Abort: no luck" {
			t.Errorf("%s: %s", name, j.Reason)
		}
	}
}

// TestReportsThatDoNotCount: of other places, other builds, read before.
func TestReportsThatDoNotCount(t *testing.T) {
	for name, c := range map[string]struct {
		node job.NodeID
		pod  job.PodIndex
		seq  uint64
		inc  job.Incarnation
	}{
		"from a former node":    {"n3", 1, 9, 2},
		"of no pod":             {"n2", 2, 9, 2},
		"of a negative pod":     {"n2", -1, 9, 2},
		"read before":           {"n1", 0, 4, 2},
		"of a past incarnation": {"n1", 0, 9, 1},
		"of a former build":     {"n2", 1, 9, 1},
		"of the next":           {"n1", 0, 9, 3},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWatched(t, 1, nil)
			w.report("n2", 1, 7, 1, job.Exit{Rank: 2, Signal: sigkill})
			w.until(w.now + time.Second) // pod 1 is built again on n2, in incarnation 2
			if j := w.job(); j.Incarnation != 2 || j.State != job.Running || j.Pods[1].Built != 2 || j.Pods[1].Node != "n2" {
				t.Fatalf("%+v", j)
			}
			w.report("n1", 0, 4, 2, job.Exit{Rank: 0})
			w.said = nil
			w.report(c.node, c.pod, c.seq, c.inc, job.Exit{Rank: 1, Code: 3})
			w.until(w.now + time.Second)
			if got := w.verdict(); got != "" {
				t.Error(got)
			}
			w.report("n2", 1, 1, 2, job.Exit{Rank: 2, Code: 4}) // the new build counts from 1
			w.until(w.now + time.Second)
			if got := w.verdict(); got != "end 4" {
				t.Errorf("then %s", got)
			}
		})
	}
}

// TestPodsThatVanish on living nodes.
func TestPodsThatVanish(t *testing.T) {
	for name, c := range map[string]struct {
		ev   PodGone
		want string
	}{
		"a pod":                   {PodGone{Pod: 1, Node: "n2", Incarnation: 1}, "recover [1] killed"},
		"nobody knows which":      {PodGone{Pod: 1, Node: "n2"}, "recover [1] killed"},
		"a former build":          {PodGone{Pod: 1, Node: "n2", Incarnation: 9}, ""},
		"somewhere else":          {PodGone{Pod: 1, Node: "n3", Incarnation: 1}, ""},
		"no such pod":             {PodGone{Pod: 2, Node: "n2", Incarnation: 1}, ""},
		"a negative pod":          {PodGone{Pod: -1, Node: "n2", Incarnation: 1}, ""},
		"the first of the book":   {PodGone{Pod: 0, Node: "n1", Incarnation: 1}, "recover [0] killed"},
		"another node's, by name": {PodGone{Pod: 0, Node: "n2", Incarnation: 1}, ""},
	} {
		w := newWatched(t, 1, nil)
		c.ev.Job, c.ev.Text = 1, "so it goes"
		w.tell(c.ev)
		w.tell(c.ev)
		w.until(w.now + time.Second)
		if got := w.verdict(); got != c.want {
			t.Errorf("%s: %s, not %s", name, got, c.want)
		}
	}
	w := newWatched(t, 0, nil)
	w.tell(PodGone{Job: 1, Pod: 1, Node: "n2", Text: "so it goes"})
	w.until(w.now + time.Second)
	if j := w.job(); w.verdict() != "end 69" || j.Reason != "the pod of ranks [2 3] on n2 ended: so it goes" {
		t.Errorf("%s: %s", w.verdict(), j.Reason)
	}
	w.said = nil
	w.tell(PodGone{Job: 1, Pod: 0, Node: "n1"}) // the job has ended
	w.until(w.now + time.Second)
	if got := w.verdict(); got != "" {
		t.Error(got)
	}
}

// TestCrashesWaitForVerdictsOnNodes: the death of a node makes its peers'
// programs fail too.
func TestCrashesWaitForVerdictsOnNodes(t *testing.T) {
	n1 := scheduler.NodeRef{Node: "n1", Boot: 1}
	start := func() *watched {
		w := newWatched(t, 1, nil)
		w.tell(Suspect{Node: n1, Source: "gossip"})
		w.report("n2", 1, 1, 1, job.Exit{Rank: 2, Code: 1})
		w.until(w.now + 2*time.Second)
		if got := w.verdict(); got != "" {
			t.Fatalf("while a node is under suspicion: %s", got)
		}
		return w
	}
	w := start()
	w.tell(Cleared{Node: n1})
	w.until(w.now + w.l.cfg.CrashHold)
	if got := w.verdict(); got != "end 1" {
		t.Errorf("cleared: %s", got)
	}
	w = start()
	w.tell(Evidence{Node: n1, Source: "gossip", Certain: true})
	w.until(w.now + time.Second)
	if got := w.verdict(); got != "dead [{n1 1}]" || w.job().Incarnation != 2 {
		t.Errorf("dead: %s", got)
	}
	w = start()
	w.until(time.Second + w.l.cfg.CrashMax - 1)
	if got := w.verdict(); got != "" {
		t.Errorf("too early: %s", got)
	}
	w.until(time.Second + w.l.cfg.CrashMax + w.l.cfg.CrashHold)
	if got := w.verdict(); got != "end 1" {
		t.Errorf("never cleared: %s", got)
	}
	w = newWatched(t, 1, nil)
	w.tell(Suspect{Node: scheduler.NodeRef{Node: "n3", Boot: 1}}) // no node of the job
	w.report("n2", 1, 1, 1, job.Exit{Rank: 2, Code: 1})
	w.until(w.now + w.l.cfg.CrashHold)
	if got := w.verdict(); got != "end 1" {
		t.Errorf("suspicion elsewhere: %s", got)
	}
}

// TestRollCalls: a pod that its node does not name is gone, after a while.
func TestRollCalls(t *testing.T) {
	n2 := scheduler.NodeRef{Node: "n2", Boot: 1}
	mine := PodAt{Job: 1, Pod: 1, Built: 1}
	for name, c := range map[string]struct {
		node scheduler.NodeRef
		pods []PodAt
		want string
	}{
		"there":            {n2, []PodAt{{Job: 3}, mine}, ""},
		"missing":          {n2, nil, "recover [1] killed"},
		"another build":    {n2, []PodAt{{Job: 1, Pod: 1, Built: 2}}, "recover [1] killed"},
		"another job":      {n2, []PodAt{{Job: 2, Pod: 1, Built: 1}}, "recover [1] killed"},
		"another node":     {scheduler.NodeRef{Node: "n3", Boot: 1}, nil, ""},
		"another life":     {scheduler.NodeRef{Node: "n2", Boot: 2}, nil, ""},
		"another pod's":    {n2, []PodAt{{Job: 1, Pod: 0, Built: 1}}, "recover [1] killed"},
		"both of the node": {n2, []PodAt{mine, {Job: 1, Pod: 0, Built: 1}}, ""},
	} {
		w := newWatched(t, 1, nil)
		for range 3 {
			w.tell(RollCall{Node: c.node, Pods: c.pods})
			w.until(w.now + w.l.cfg.Absence/2 - 1)
		}
		w.until(w.now + w.l.cfg.CrashHold)
		if got := w.verdict(); got != "" {
			t.Errorf("%s: %s, too early", name, got)
		}
		w.tell(RollCall{Node: c.node, Pods: c.pods})
		w.until(w.now + w.l.cfg.CrashHold)
		if got := w.verdict(); got != c.want {
			t.Errorf("%s: %s, not %s", name, got, c.want)
		}
	}
	w := newWatched(t, 1, nil)
	for i := range 6 { // there now and then
		w.tell(RollCall{Node: n2, Pods: []PodAt{mine}[:i%2]})
		w.until(w.now + w.l.cfg.Absence*2/3)
	}
	if got := w.verdict(); got != "" {
		t.Errorf("there now and then: %s", got)
	}
}

// TestLaunchThatLosesAPod: the answer to its start says it better.
func TestLaunchThatLosesAPod(t *testing.T) {
	w := newWatched(t, 0, nil)
	w.refuse = func(a Action) *Failure {
		if s, ok := a.(StartPod); ok && s.Pod == 1 {
			return &Failure{} // not answered for now
		}
		return nil
	}
	w.log(scheduler.Command{Submit: &scheduler.Submit{Spec: func() job.Spec { s := simSpec(2, 0); s.PPN = 1; return s }()}})
	w.tell(Committed{State: w.st})
	w.tell(PodGone{Job: 2, Pod: 1, Node: "n2", Text: "so it goes"})
	w.until(w.now + w.l.cfg.CrashHold - 1)
	if got := w.verdict(); got != "" {
		t.Fatalf("at once: %s", got)
	}
	w.until(w.now + 1)
	if j := w.st.Jobs[2]; w.verdict() != "end 69" || j.Reason != "the pod of rank 1 on n2 ended: so it goes" {
		t.Errorf("%s: %s", w.verdict(), cmp.Diff("", j.Reason))
	}
}
