package lamd

import (
	"context"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// fakeLeader is what a leader answers to daemons.
type fakeLeader struct {
	mu      sync.Mutex
	reports []podReport
	calls   []leaseAsk
	stale   map[job.ID]bool
}

func (l *fakeLeader) handler() http.Handler {
	mux := http.NewServeMux()
	handle(mux, "POST /v1/report", func(_ context.Context, r podReport) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.reports = append(l.reports, r)
		return nil
	})
	answer(mux, "POST /v1/lease", func(_ context.Context, ask leaseAsk) (leaseGrant, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.calls = append(l.calls, ask)
		var g leaseGrant
		for _, k := range ask.Pods {
			if l.stale[k.Job] {
				g.Stale = append(g.Stale, k)
			} else {
				g.Headers = append(g.Headers, podapi.Header{Term: 5, Job: k.Job, Incarnation: k.Built})
			}
		}
		return g, nil
	})
	return mux
}

// gone lists the jobs whose pods were reported gone.
func (l *fakeLeader) gone() []job.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []job.ID
	for _, r := range l.reports {
		if r.Gone {
			out = append(out, r.Job)
		}
	}
	return out
}

func (l *fakeLeader) lastCall() (leaseAsk, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.calls) == 0 {
		return leaseAsk{}, 0
	}
	return l.calls[len(l.calls)-1], len(l.calls)
}

func testAgent(t *testing.T, m *pods, l *fakeLeader) *agent {
	t.Helper()
	return &agent{
		node: "n1", boot: 2, pods: m, log: testLog(t),
		leader: leading("n2").get, peers: peersOf(t, nodes{"n2": l.handler()}),
	}
}

func leasesOf(f *fakePod) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.leases)
}

// A supervisor that hangs must not cost the other pods of its node their leases.
func TestLeasesBesideASupervisorThatHangs(t *testing.T) {
	m, s := testPods(t)
	s.hook = func(f *fakePod) {
		if f.spec.Job == 1 {
			f.onLease = func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // lets the server see the caller go
				<-r.Context().Done()
			}
		}
	}
	var others []*fakePod
	for id := range job.ID(6) {
		f := startOne(t, m, s, specOf(id+1, 1))
		if id > 0 {
			others = append(others, f)
		}
	}
	a := testAgent(t, m, &fakeLeader{})
	if _, err := a.renewOnce(testContext(t), m.list()); err == nil {
		t.Error("nobody was told of the one that hangs")
	}
	for _, f := range others {
		if leasesOf(f) != 1 || f.leases[0].TTLMS != leaseTTL.Milliseconds() || f.leases[0].SentNS == 0 {
			t.Errorf("job %d: leases %+v", f.spec.Job, f.leases)
		}
	}
}

// Nor must a stale pod that is slow to end: it takes its time beside them.
func TestLeasesWhileAStalePodEnds(t *testing.T) {
	m, s := testPods(t)
	stale := startOne(t, m, s, specOf(1, 1))
	stale.mu.Lock()
	stale.deaf = true
	stale.mu.Unlock()
	good := startOne(t, m, s, specOf(2, 1))
	a := testAgent(t, m, &fakeLeader{stale: map[job.ID]bool{1: true}})
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error, 1)
	go func() { done <- a.renewLeases(ctx) }()
	eventually(t, "leases go on", func() bool { return leasesOf(good) >= 4 })
	if !stale.alive() {
		t.Error("the stale pod ended before its supervisor was given time")
	}
	eventually(t, "the stale pod ends", func() bool { return !stale.alive() && len(m.list()) == 1 })
	stale.mu.Lock()
	if stale.kills != 1 {
		t.Errorf("asked to end %d times", stale.kills)
	}
	stale.mu.Unlock()
	cancel()
	<-done
}

// A pod that is gone is reported, and no roll call names it any more: that is
// how a leader that never heard the report finds out.
func TestPodThatIsGone(t *testing.T) {
	m, s := testPods(t)
	f := startOne(t, m, s, specOf(7, 3))
	l := &fakeLeader{}
	a := testAgent(t, m, l)
	p, _ := m.get(7)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		a.watch(testContext(t), p)
	}()
	f.die()
	<-watched
	if got := l.gone(); len(got) != 1 || got[0] != 7 {
		t.Fatalf("gone: %v", got)
	}
	if _, err := a.renewOnce(testContext(t), m.list()); err != nil {
		t.Fatal(err)
	}
	if call, n := l.lastCall(); n != 1 || len(call.Pods) != 0 || call.Node != "n1" || call.Boot != 2 {
		t.Errorf("%d roll calls, the last one %+v", n, call)
	}
}

// A pod that was killed on purpose is not news.
func TestPodThatWasKilledIsNotReported(t *testing.T) {
	m, s := testPods(t)
	startOne(t, m, s, specOf(7, 3))
	l := &fakeLeader{}
	a := testAgent(t, m, l)
	p, _ := m.get(7)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		a.watch(testContext(t), p)
	}()
	if err := m.kill(testContext(t), 7, everyPod); err != nil {
		t.Fatal(err)
	}
	<-watched
	if got := l.gone(); len(got) != 0 {
		t.Errorf("gone: %v", got)
	}
}
