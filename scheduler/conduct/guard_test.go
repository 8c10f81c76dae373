package conduct

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

func life(n job.NodeID, b job.Boot) scheduler.NodeRef { return scheduler.NodeRef{Node: n, Boot: b} }

// deaths returns what was declared dead, one entry of the log each.
func (w *watched) deaths() []scheduler.DeclareDead {
	var out []scheduler.DeclareDead
	for _, c := range w.said {
		if c.DeclareDead != nil {
			out = append(out, *c.DeclareDead)
		}
	}
	return out
}

// TestVerdictsOnNodesAreBatched: a rack is one entry of the log.
func TestVerdictsOnNodesAreBatched(t *testing.T) {
	settle := Config{}.withDefaults().Settle
	type say struct {
		after time.Duration
		ev    Event
	}
	dead := func(n job.NodeID) Event { return Evidence{Node: life(n, 1), Source: "gossip", AgeMS: 1000} }
	doubt := func(n job.NodeID) Event { return Suspect{Node: life(n, 1), Source: "reset", AgeMS: 10} }
	for name, c := range map[string]struct {
		says []say
		want []scheduler.DeclareDead
		at   []time.Duration // when the log has them
	}{
		"one":        {[]say{{0, dead("n1")}}, []scheduler.DeclareDead{{Nodes: []scheduler.NodeRef{life("n1", 1)}, DetectMS: 1100, Source: "gossip"}}, []time.Duration{settle}},
		"two of one": {[]say{{0, dead("n2")}, {settle / 2, dead("n1")}}, []scheduler.DeclareDead{{Nodes: []scheduler.NodeRef{life("n1", 1), life("n2", 1)}, DetectMS: 1100, Source: "gossip"}}, []time.Duration{settle}},
		"two, apart": {
			[]say{{0, dead("n2")}, {2 * settle, dead("n1")}},
			[]scheduler.DeclareDead{{Nodes: []scheduler.NodeRef{life("n2", 1)}, DetectMS: 1100, Source: "gossip"}, {Nodes: []scheduler.NodeRef{life("n1", 1)}, DetectMS: 1100, Source: "gossip"}},
			[]time.Duration{settle, 3 * settle},
		},
		"doubted first": {[]say{{0, doubt("n1")}, {0, doubt("n1")}, {time.Second, dead("n1")}}, []scheduler.DeclareDead{{Nodes: []scheduler.NodeRef{life("n1", 1)}, DetectMS: 1110, Source: "reset"}}, []time.Duration{time.Second + settle}},
		"another is doubted, and dies": {
			[]say{{0, dead("n1")}, {0, doubt("n2")}, {3 * settle, dead("n2")}},
			[]scheduler.DeclareDead{{Nodes: []scheduler.NodeRef{life("n1", 1), life("n2", 1)}, DetectMS: 1400, Source: "gossip"}},
			[]time.Duration{4 * settle},
		},
		"another is doubted, and lives": {[]say{{0, dead("n1")}, {0, doubt("n2")}, {settle / 2, Cleared{Node: life("n2", 1)}}}, []scheduler.DeclareDead{{Nodes: []scheduler.NodeRef{life("n1", 1)}, DetectMS: 1100, Source: "gossip"}}, []time.Duration{settle}},
		"another stays doubted":         {[]say{{0, dead("n1")}, {0, doubt("n2")}}, []scheduler.DeclareDead{{Nodes: []scheduler.NodeRef{life("n1", 1)}, DetectMS: 1500, Source: "gossip"}}, []time.Duration{5 * settle}},
		"cleared in time":               {[]say{{0, dead("n1")}, {settle / 2, Cleared{Node: life("n1", 1)}}}, nil, nil},
		"certain, and cleared":          {[]say{{0, Evidence{Node: life("n1", 1), Source: "power", Certain: true}}, {settle / 2, Cleared{Node: life("n1", 1)}}}, []scheduler.DeclareDead{{Nodes: []scheduler.NodeRef{life("n1", 1)}, DetectMS: 100, Source: "power"}}, []time.Duration{settle}},
		"doubted only":                  {[]say{{0, doubt("n1")}}, nil, nil},
		"another life":                  {[]say{{0, Evidence{Node: life("n1", 2)}}, {0, Suspect{Node: life("n1", 2)}}}, nil, nil},
		"said again":                    {[]say{{0, dead("n3")}, {settle / 2, dead("n3")}, {2 * settle, dead("n3")}}, []scheduler.DeclareDead{{Nodes: []scheduler.NodeRef{life("n3", 1)}, DetectMS: 1100, Source: "gossip"}}, []time.Duration{settle}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWatched(t, 1, func(s *job.Spec) { s.Replicas = 3 })
			from := w.now
			for _, s := range c.says {
				w.until(from + s.after)
				w.tell(s.ev)
			}
			w.until(from + 3*time.Second)
			if d := cmp.Diff(c.want, w.deaths()); d != "" {
				t.Error(d)
			}
			for i, at := range c.at {
				if i < len(w.deathAt) && w.deathAt[i] != from+at {
					t.Errorf("entry %d after %v, not %v", i, w.deathAt[i]-from, at)
				}
			}
		})
	}
}

// TestVerdictWhileOneIsDecided goes into the next entry.
func TestVerdictWhileOneIsDecided(t *testing.T) {
	w := newWatched(t, 1, nil)
	w.refuse = func(a Action) *Failure {
		if p, ok := a.(Propose); ok && p.Command.DeclareDead != nil && len(p.Command.DeclareDead.Nodes) == 1 && w.now < 2*time.Second {
			return &Failure{Kind: Unreachable, Text: "not applied in time"}
		}
		return nil
	}
	w.tell(Evidence{Node: life("n3", 1), Source: "gossip"})
	w.until(w.now + w.l.cfg.Settle + 1)
	w.tell(Evidence{Node: life("n2", 1), Source: "gossip"})
	w.until(w.now + 400*time.Millisecond)
	if got := w.deaths(); len(got) < 2 || len(got[0].Nodes) != 1 || slices.ContainsFunc(got, func(d scheduler.DeclareDead) bool { return d.Nodes[0].Node == "n2" }) {
		t.Errorf("while the first is decided: %+v", got)
	}
	w.until(3 * time.Second)
	if w.st.IsAlive(life("n2", 1)) || w.st.IsAlive(life("n3", 1)) {
		t.Errorf("%+v", w.deaths())
	}
}

// TestSilence: a node with pods that asks for no leases is dead, from when
// anybody does.
func TestSilence(t *testing.T) {
	w := newWatched(t, 1, nil)
	silence := w.l.cfg.Silence
	w.until(w.now + 3*silence)
	if len(w.deaths()) != 0 {
		t.Error("nobody renews leases yet, and somebody is dead")
	}
	w = newWatched(t, 1, nil)
	beat := func(n job.NodeID) {
		if !w.l.Renew(w.now, life(n, 1)) {
			t.Errorf("%s: no lease at %v", n, w.now)
		}
		w.tell(Tick{})
	}
	for w.now < time.Second+silence-200*time.Millisecond {
		beat("n1")
		w.until(w.now + 100*time.Millisecond)
	}
	if len(w.deaths()) != 0 {
		t.Fatal("too early")
	}
	beat("n1")
	w.until(time.Second + silence + w.l.cfg.Settle - 1)
	if len(w.deaths()) != 0 {
		t.Fatal("too early")
	}
	if w.l.Renew(w.now, life("n2", 1)) {
		t.Error("a lease in the face of evidence")
	}
	w.until(w.now + 1)
	want := []scheduler.DeclareDead{{Nodes: []scheduler.NodeRef{life("n2", 1)}, DetectMS: ms(silence + w.l.cfg.Settle), Source: "no lease asked for"}}
	if d := cmp.Diff(want, w.deaths()); d != "" { // n3 has no pods: it need not ask
		t.Error(d)
	}
}

// TestSilenceOfAnEndedJob kills nobody.
func TestSilenceOfAnEndedJob(t *testing.T) {
	w := newWatched(t, 1, nil)
	w.l.Renew(w.now, life("n1", 1))
	w.log(scheduler.Command{End: &scheduler.End{Job: 1}})
	w.tell(Committed{State: w.st})
	w.until(w.now + 3*w.l.cfg.Silence)
	if len(w.deaths()) != 0 {
		t.Errorf("%+v", w.deaths())
	}
}

// TestLeases: who gets one.
func TestLeases(t *testing.T) {
	w := newWatched(t, 1, nil)
	for name, c := range map[string]struct {
		node scheduler.NodeRef
		want bool
	}{
		"with pods": {life("n1", 1), true}, "a spare": {life("n3", 1), true},
		"another life": {life("n1", 2), false}, "a former life": {life("n1", 0), false}, "a stranger": {life("n9", 1), false},
	} {
		if got := w.l.Renew(w.now, c.node); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	w.tell(Suspect{Node: life("n1", 1)})
	if !w.l.Renew(w.now, life("n1", 1)) {
		t.Error("a suspicion alone costs the lease")
	}
	if got := w.l.Suspects(); !slices.Equal(got, []job.NodeID{"n1"}) {
		t.Errorf("suspects %v", got)
	}
	w.tell(Evidence{Node: life("n1", 1)})
	if w.l.Renew(w.now, life("n1", 1)) {
		t.Error("a lease in the face of evidence")
	}
	if w.l = NewLeader(Config{}, 2, 0); w.l.Renew(0, life("n1", 1)) {
		t.Error("a lease from a leader that knows nothing yet")
	}
}

// TestFences: from when on no rank of a dead node can compute.
func TestFences(t *testing.T) {
	cfg := Config{}.withDefaults()
	lease := cfg.Lease + cfg.LeaseMargin
	die := func(w *watched, n job.NodeID) {
		w.log(scheduler.Command{DeclareDead: &scheduler.DeclareDead{Nodes: []scheduler.NodeRef{life(n, 1)}}})
		w.tell(Committed{State: w.st})
	}
	for name, c := range map[string]struct {
		play func(*watched) // at 10 s
		at   time.Duration  // fenced from here on
	}{
		"never had a lease from this leader": {func(w *watched) { die(w, "n3") }, 0},
		"a lease, then dead":                 {func(w *watched) { w.l.Renew(w.now, life("n3", 1)); die(w, "n3") }, 10*time.Second + lease},
		"an old lease":                       {func(w *watched) { w.l.Renew(8*time.Second, life("n3", 1)); die(w, "n3") }, 8*time.Second + lease},
		"a supervisor was started": {func(w *watched) {
			w.l.guard.started(life("n3", 1))
			die(w, "n3")
		}, 10*time.Second + lease},
		"its processes were killed": {func(w *watched) {
			w.l.Renew(w.now, life("n3", 1))
			die(w, "n3")
			w.tell(Evidence{Node: life("n3", 1), Certain: true})
		}, 10 * time.Second},
		"known before": {func(w *watched) {
			w.l.Renew(w.now, life("n3", 1))
			w.tell(Evidence{Node: life("n3", 1), Certain: true})
			die(w, "n3")
		}, 10 * time.Second},
		"came back": {func(w *watched) {
			w.l.Renew(w.now, life("n3", 1))
			die(w, "n3")
			w.log(scheduler.Command{Join: &scheduler.Join{Node: "n3", Addr: "10.0.0.1", Boot: 2, Session: 1, Slots: 2}})
			w.tell(Committed{State: w.st})
		}, 10 * time.Second},
		"is alive": {func(w *watched) {}, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWatched(t, 1, nil)
			w.now = 8 * time.Second
			if name != "an old lease" {
				w.now = 10 * time.Second
			}
			w.l.now = w.now
			c.play(w)
			w.l.now = 10 * time.Second
			for _, x := range []struct {
				now  time.Duration
				want bool
			}{{c.at - 1, false}, {c.at, true}, {c.at + time.Second, true}} {
				if x.now < 10*time.Second || c.at == time.Hour && x.now >= c.at {
					continue
				}
				w.l.now = x.now
				if got := w.l.guard.fenced(life("n3", 1)); got != x.want {
					t.Errorf("at %v: %t", x.now, got)
				}
				if at, ok := w.l.Next(); !x.want && c.at < time.Hour && (!ok || at > c.at) {
					t.Errorf("at %v the next tick is at %v, %t", x.now, at, ok)
				}
			}
		})
	}
}

// TestNewLeaderWaitsForLeases of its predecessor.
func TestNewLeaderWaitsForLeases(t *testing.T) {
	w := newWatched(t, 1, nil)
	l := NewLeader(Config{}, 2, 20*time.Second)
	w.log(scheduler.Command{DeclareDead: &scheduler.DeclareDead{Nodes: []scheduler.NodeRef{life("n3", 1)}}})
	l.Step(20*time.Second, Committed{State: w.st})
	end := 20*time.Second + l.cfg.Lease + l.cfg.LeaseMargin
	for _, now := range []time.Duration{20 * time.Second, end - 1, end} {
		l.now = now
		if got := l.guard.fenced(life("n3", 1)); got != (now >= end) {
			t.Errorf("at %v: %t", now, got)
		}
	}
}
