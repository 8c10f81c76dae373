package lamd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/membership"
	"github.com/lampause/lampause/scheduler"
	"github.com/lampause/lampause/scheduler/conduct"
)

func TestMemberEvent(t *testing.T) {
	ref := scheduler.NodeRef{Node: "n2", Boot: 3}
	for _, c := range []struct {
		e    membership.Event
		want conduct.Event
	}{
		{membership.Event{Kind: membership.Alive}, conduct.Cleared{Node: ref}},
		{membership.Event{Kind: membership.Suspect, Source: "gossip", Doubt: 1500 * time.Microsecond}, conduct.Suspect{Node: ref, Source: "gossip", AgeMS: 1.5}},
		{membership.Event{Kind: membership.Dead, Source: membership.SourceGossip}, conduct.Evidence{Node: ref, Source: string(membership.SourceGossip)}},
		{membership.Event{Kind: membership.Dead, Source: membership.SourceBoot}, conduct.Evidence{Node: ref, Source: string(membership.SourceBoot), Certain: true}},
		{membership.Event{Kind: "other"}, nil},
	} {
		c.e.Node, c.e.Boot = "n2", 3
		if diff := cmp.Diff(c.want, memberEvent(c.e)); diff != "" {
			t.Errorf("%s: %s", c.e.Kind, diff)
		}
	}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestNews(t *testing.T) {
	n := newNews()
	first := n.after(0)
	if closed(first) {
		t.Fatal("news of nothing")
	}
	n.reach(4)
	if !closed(first) || !closed(n.after(3)) || closed(n.after(4)) {
		t.Error("4 is newer than 3 only")
	}
	now := n.after(4)
	n.reach(4)
	n.reach(2)
	if closed(now) {
		t.Error("what is old is no news")
	}
	n.reach(5)
	if !closed(now) {
		t.Error("5 was not told")
	}
}

func TestLeaderFinder(t *testing.T) {
	says := func(id job.NodeID) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, id) })
	}
	broken := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeError(w, errors.New("no")) })
	f := &leaderFinder{
		self: "n1", told: func() bool { return false },
		nodes: func() []job.NodeID { return []job.NodeID{"n1", "n2", "n3", "n4", "n5", "n6"} },
		peers: peersOf(t, nodes{"n1": says("n1"), "n2": nil, "n3": broken, "n4": says(""), "n5": says("n9")}),
	}
	if id := f.ask(testContext(t)); id != "n9" {
		t.Errorf("found %q", id)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error, 1)
	go func() { done <- f.run(ctx) }()
	eventually(t, "found", func() bool { id, ok := f.found(); return ok && id == "n9" })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// joining is a daemon that asks a leader with this handler to join.
func joining(t *testing.T, h http.HandlerFunc) *Daemon {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/join", h)
	m, _ := testPods(t)
	return &Daemon{
		cfg: Config{Node: "n1", Addr: netip.MustParseAddr("10.77.0.11"), Boot: 2}, log: testLog(t), pods: m,
		agent: &agent{node: "n1", pods: m, log: testLog(t), leader: leading("n2").get, peers: peersOf(t, nodes{"n2": mux})},
	}
}

func TestJoinOfALifeThatWasDeclaredDead(t *testing.T) {
	var asked atomic.Int32
	d := joining(t, func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 1 { // an election is tried again
			writeError(w, errNotLeading)
			return
		}
		writeError(w, &control.Error{Message: "5", Status: http.StatusPreconditionFailed, Exit: job.ExitNoNodes})
	})
	var stale *staleBoot
	if err := d.joinCluster(testContext(t)); !errors.As(err, &stale) || stale.boot != 5 {
		t.Errorf("got %v", err)
	}
}

func TestJoinRefusedWithoutABoot(t *testing.T) {
	d := joining(t, func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, &control.Error{Message: "soon", Status: http.StatusPreconditionFailed})
	})
	var stale *staleBoot
	if err := d.joinCluster(testContext(t)); err == nil || errors.As(err, &stale) {
		t.Errorf("got %v", err)
	}
}

// A restarted daemon takes over what lives and reports what does not, and what
// nobody hears of keeps nothing waiting.
func TestDaemonAdopts(t *testing.T) {
	m, s := testPods(t)
	alive := startOne(t, m, s, specOf(1, 1))
	startOne(t, m, s, specOf(2, 1)).die()
	next := restarted(t, m)
	l := &fakeLeader{}
	d := &Daemon{log: testLog(t), pods: next, agent: testAgent(t, next, l)}
	found, err := next.claim(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	d.adopt(testContext(t), found)
	if got := l.gone(); len(got) != 1 || got[0] != 2 || len(next.list()) != 1 {
		t.Errorf("gone %v, there %v", got, next.list())
	}
	if err := d.endPods(); err != nil || alive.alive() || len(next.list()) != 0 {
		t.Errorf("end of a life: %v", err)
	}
}

// A report of a dead pod that finds no leader must not take the directory of
// its successor with it later.
func TestSuccessorOfADeadPodKeepsItsDirectory(t *testing.T) {
	m, s := testPods(t)
	startOne(t, m, s, specOf(7, 1)).die()
	next := restarted(t, m)
	l := &fakeLeader{}
	d := &Daemon{log: testLog(t), pods: next, agent: testAgent(t, next, l)}
	now := leading("")
	d.agent.leader = now.get
	found, err := next.claim(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	adopted := make(chan struct{})
	go func() {
		defer close(adopted)
		d.adopt(testContext(t), found)
	}()
	startOne(t, next, s, specOf(7, 2))
	now.id.Store(job.NodeID("n2"))
	<-adopted
	if got := l.gone(); len(got) != 1 {
		t.Errorf("gone %v", got)
	}
	if _, err := os.Stat(next.podDir(7) + "/" + specFile); err != nil {
		t.Error(err)
	}
}

func TestDecodeError(t *testing.T) {
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		want control.Error
	}{
		"ours":    {func(w http.ResponseWriter, _ *http.Request) { writeError(w, notFound("no job 7")) }, control.Error{Message: "no job 7", Exit: job.ExitUsage, Status: 404}},
		"any":     {func(w http.ResponseWriter, _ *http.Request) { writeError(w, fmt.Errorf("disk full")) }, control.Error{Message: "disk full", Exit: job.ExitInternal, Status: 500}},
		"foreign": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "what?", http.StatusTeapot) }, control.Error{Message: "418 I'm a teapot: what?", Exit: job.ExitInternal, Status: 418}},
	} {
		err := peersOf(t, nodes{"n1": c.h}).call(testContext(t), "n1", http.MethodGet, "/x", nil, nil)
		var e *control.Error
		if !errors.As(err, &e) || e.Message != c.want.Message || e.Exit != c.want.Exit || e.Status != c.want.Status {
			t.Errorf("%s: %+v", name, err)
		}
	}
}
