package scheduler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/job"
)

// memNet is a network in memory: listeners by address, and nodes that can be
// cut off from everybody.
type memNet struct {
	mu        sync.Mutex
	listeners map[string]*memListener
	cut       map[string]bool
	conns     map[string][]net.Conn // by address of either end
}

func newMemNet() *memNet {
	return &memNet{listeners: map[string]*memListener{}, cut: map[string]bool{}, conns: map[string][]net.Conn{}}
}

type memListener struct {
	net    *memNet
	addr   memAddr
	accept chan net.Conn
	done   chan struct{}
	once   sync.Once
}

type memAddr string

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

func (m *memNet) listen(addr string) *memListener {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &memListener{net: m, addr: memAddr(addr), accept: make(chan net.Conn), done: make(chan struct{})}
	m.listeners[addr] = l
	return l
}

// setCut isolates a node, or joins it to the others again.
func (m *memNet) setCut(addr string, on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut[addr] = on
	if on {
		for _, c := range m.conns[addr] {
			_ = c.Close()
		}
		m.conns[addr] = nil
	}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}
func (l *memListener) Addr() net.Addr { return l.addr }

func (l *memListener) Dial(address string, timeout time.Duration) (net.Conn, error) {
	m := l.net
	m.mu.Lock()
	to, blocked := m.listeners[address], m.cut[address] || m.cut[string(l.addr)]
	m.mu.Unlock()
	if to == nil || blocked {
		time.Sleep(min(timeout, 100*time.Millisecond))
		return nil, errors.New("no route")
	}
	a, b := net.Pipe()
	select {
	case to.accept <- b:
	case <-to.done:
		return nil, errors.New("refused")
	case <-time.After(timeout):
		return nil, errors.New("timed out")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conns[address] = append(m.conns[address], a, b)
	m.conns[string(l.addr)] = append(m.conns[string(l.addr)], a, b)
	return a, nil
}

// member is one node of a test cluster.
type member struct {
	*Scheduler
	id     job.NodeID
	addr   string
	cancel context.CancelFunc
	done   chan error
	mu     sync.Mutex
	terms  []uint64 // in which it led
}

type cluster struct {
	t       *testing.T
	net     *memNet
	dir     string
	members map[job.NodeID]*member
}

func newCluster(t *testing.T, n int) *cluster {
	c := &cluster{t: t, net: newMemNet(), dir: t.TempDir(), members: map[job.NodeID]*member{}}
	var voters []Peer
	for i := range n {
		voters = append(voters, Peer{ID: job.NodeID(fmt.Sprintf("n%d", i+1)), Addr: fmt.Sprintf("10.0.0.%d:7947", i+1)})
	}
	for i := range n {
		c.start(i+1, InitialVoters(voters))
	}
	return c
}

func (c *cluster) start(i int, voters []Peer) *member {
	m := &member{id: job.NodeID(fmt.Sprintf("n%d", i)), addr: fmt.Sprintf("10.0.0.%d:7947", i), done: make(chan error, 1)}
	s, err := New(Config{
		ID: m.id, Dir: filepath.Join(c.dir, string(m.id)), Stream: c.net.listen(m.addr), Log: zerolog.Nop(),
		SnapshotThreshold: 50,
		Lead: func(ctx context.Context, term uint64) {
			m.mu.Lock()
			m.terms = append(m.terms, term)
			m.mu.Unlock()
			<-ctx.Done()
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	m.Scheduler = s
	for _, v := range voters {
		if v.ID == m.id {
			if err := s.Bootstrap(voters); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	go func() { m.done <- s.Run(ctx) }()
	c.members[m.id] = m
	return m
}

// stop ends a member in good order, or, cut off before, without a word.
func (c *cluster) stop(id job.NodeID) {
	m := c.members[id]
	m.cancel()
	if err := <-m.done; err != nil {
		c.t.Errorf("%s: %v", id, err)
	}
	delete(c.members, id)
}

func (c *cluster) close() {
	for id := range c.members {
		c.stop(id)
	}
}

// leader waits for a member that leads and was confirmed.
func (c *cluster) leader() *member {
	c.t.Helper()
	for range 300 {
		for _, m := range c.members {
			if !m.Leader().Self {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			_, err := m.Confirm(ctx)
			cancel()
			if err == nil {
				return m
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatal("no leader within 30 s")
	return nil
}

func (c *cluster) apply(cmd Command) Result {
	c.t.Helper()
	for range 50 {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		res, err := c.leader().Apply(ctx, cmd)
		cancel()
		if err == nil || AsRefusal(err) != nil {
			return res
		}
	}
	c.t.Fatal("not applied")
	return Result{}
}

func (c *cluster) joinAll(n int) {
	for i := range n {
		c.apply(Command{Join: &Join{Node: job.NodeID(fmt.Sprintf("n%d", i+1)), Addr: fmt.Sprintf("10.0.0.%d", i+1), Boot: 1, Slots: 2}})
	}
}

func TestElectionAndApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		w := c.leader().Watch()
		defer w.Close()
		c.joinAll(3)
		res := c.apply(Command{Submit: &Submit{Key: "k", Spec: testSpec(args{"n": "4"})}})
		if res.State.Jobs[1] == nil {
			t.Fatalf("job not there: %+v", res.Actions)
		}
		for i, want := range []uint64{1, 2, 3} {
			u, err := w.Next(context.Background())
			if err != nil || uint64(u.State.View) != want || u.Missed {
				t.Errorf("update %d: view %d, missed %t, %v", i, u.State.View, u.Missed, err)
			}
		}
		time.Sleep(time.Second)
		for id, m := range c.members {
			if m.State().Jobs[1] == nil {
				t.Errorf("%s has not got the job", id)
			}
			if m.Leader().Self {
				continue
			}
			var not *ErrNotLeader
			if _, err := m.Apply(context.Background(), Command{Leave: &Leave{Node: "n1"}}); !errors.As(err, &not) || not.Node != c.leader().id {
				t.Errorf("%s: %v", id, err)
			}
		}
		// A refusal is an error with the way out, and changes nothing.
		ctx := context.Background()
		_, err := c.leader().Apply(ctx, Command{Submit: &Submit{Spec: testSpec(args{"n": "40"})}})
		if r := AsRefusal(err); r == nil || r.Code != NoRoom {
			t.Errorf("refusal: %v", err)
		}
	})
}

// TestLeaderLostWhileSubmitting loses the leader in the middle of submissions:
// every one that was acknowledged is there afterwards, and a repeated one is
// there once.
func TestLeaderLostWhileSubmitting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		c.joinAll(3)
		var wg sync.WaitGroup
		lost := c.leader()
		acked := make(chan string, 64)
		for i := range 16 {
			wg.Go(func() {
				key := fmt.Sprint("job-", i)
				spec := testSpec(args{"n": "1", "ppn": "9"})
				time.Sleep(time.Duration(i) * 3 * time.Millisecond)
				_, err := lost.Apply(context.Background(), Command{Submit: &Submit{Key: key, Spec: spec}})
				if err == nil {
					acked <- key
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		c.net.setCut(lost.addr, true)
		wg.Wait()
		close(acked)
		c.stop(lost.id)
		n := 0
		for key := range acked {
			n++
			if _, ok := c.leader().State().Keys[key]; !ok {
				t.Errorf("%s was acknowledged and is lost", key)
			}
		}
		if n == 0 || n == 16 {
			t.Logf("%d of 16 acknowledged before the cut", n)
		}
		for i := range 16 {
			c.apply(Command{Submit: &Submit{Key: fmt.Sprint("job-", i), Spec: testSpec(args{"n": "1", "ppn": "9"})}})
		}
		if got := len(c.leader().State().Jobs); got != 16 {
			t.Errorf("%d jobs, want 16", got)
		}
	})
}

// TestPartitionedLeader: a leader without a majority cannot be confirmed once
// another one may exist, and comes back as a follower.
func TestPartitionedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		c.joinAll(3)
		old := c.leader()
		term := old.Leader().Term
		c.net.setCut(old.addr, true)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if _, err := old.Confirm(ctx); err == nil {
			t.Error("a leader without a majority was confirmed")
		}
		cancel()
		next := c.leader()
		if next == old || next.Leader().Term <= term {
			t.Fatalf("leader %s in term %d after %s in %d", next.id, next.Leader().Term, old.id, term)
		}
		c.apply(Command{Leave: &Leave{Node: old.id}})
		c.net.setCut(old.addr, false)
		time.Sleep(5 * time.Second)
		if old.State().Nodes[old.id].State != Left {
			t.Error("the old leader did not catch up")
		}
		old.mu.Lock()
		defer old.mu.Unlock()
		if len(old.terms) != 1 || old.terms[0] != term {
			t.Errorf("the old leader led in terms %v", old.terms)
		}
	})
}

// TestRestartFromDisk stops everything, power included, and starts it again.
func TestRestartFromDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		c.joinAll(3)
		for i := range 70 { // beyond a snapshot
			c.apply(Command{Note: &Note{Event: Event{Name: fmt.Sprint("note-", i)}}})
		}
		time.Sleep(2 * time.Minute) // raft looks at its log for a snapshot now and then
		c.apply(Command{Submit: &Submit{Key: "k", Spec: testSpec(args{"n": "4"})}})
		for i := range 3 {
			c.stop(job.NodeID(fmt.Sprintf("n%d", i+1)))
		}
		for i := range 3 {
			c.start(i+1, nil)
		}
		st := c.leader().State()
		if st.Jobs[1] == nil || len(st.Nodes) != 3 || st.LastSeq != 74 {
			t.Errorf("after the restart: jobs %v, %d nodes, %d events", st.JobIDs(), len(st.Nodes), st.LastSeq)
		}
		snaps, err := filepath.Glob(filepath.Join(c.dir, "n*", "snapshots", "*"))
		if err != nil || len(snaps) == 0 {
			t.Errorf("no snapshot was made (%v)", err)
		}
	})
}

// TestDeadVoterReplaced: of six nodes five vote; one dies and the sixth takes
// its place; two more may die after that.
func TestDeadVoterReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 6)
		defer c.close()
		c.joinAll(6)
		dead := c.leader().id
		c.net.setCut(c.members[dead].addr, true)
		c.stop(dead)
		c.apply(Command{DeclareDead: &DeclareDead{Nodes: []NodeRef{{Node: dead, Boot: 1}}}})
		time.Sleep(10 * time.Second)
		voters, err := c.leader().Voters()
		if err != nil || len(voters) != 5 {
			t.Fatalf("voters %v, %v", voters, err)
		}
		six := false
		for _, v := range voters {
			if v.ID == dead {
				t.Errorf("the dead node %s still votes", dead)
			}
			six = six || v.ID == "n6"
		}
		if !six {
			t.Errorf("n6 does not vote: %v", voters)
		}
		for range 2 {
			dead = c.leader().id
			c.net.setCut(c.members[dead].addr, true)
			c.stop(dead)
		}
		c.apply(Command{Note: &Note{Event: Event{Name: "still here"}}})
		if n := len(c.leader().State().Nodes); n != 6 {
			t.Errorf("%d nodes", n)
		}
	})
}

func TestNextChange(t *testing.T) {
	state := func(nodes ...string) *State {
		var s *State
		for i, n := range nodes {
			s, _ = Step(s, uint64(i+1), Command{Join: &Join{Node: job.NodeID(n[:2]), Addr: "a" + n[:2], Boot: 1}})
			if len(n) > 2 {
				s, _ = Step(s, uint64(i+1), Command{DeclareDead: &DeclareDead{Nodes: []NodeRef{{Node: job.NodeID(n[:2]), Boot: 1}}}})
			}
		}
		return s
	}
	peers := func(ids ...string) (out []Peer) {
		for _, id := range ids {
			out = append(out, Peer{ID: job.NodeID(id), Addr: "a" + id + ":7947"})
		}
		return out
	}
	for _, tc := range []struct {
		name   string
		s      *State
		voters []Peer
		want   string
	}{
		{"three of three", state("n1", "n2", "n3"), peers("n1", "n2", "n3"), ""},
		{"three of four", state("n1", "n2", "n3", "n4"), peers("n1", "n2", "n3"), ""},
		{"grow to five", state("n1", "n2", "n3", "n4", "n5"), peers("n1", "n2", "n3"), "+n4"},
		{"dead without replacement", state("n1", "n2", "n3-"), peers("n1", "n2", "n3"), ""},
		{"dead with replacement", state("n1", "n2", "n3-", "n4"), peers("n1", "n2", "n3"), "-n3"},
		{"then the replacement", state("n1", "n2", "n3-", "n4"), peers("n1", "n2"), "+n4"},
		{"one of two", state("n1", "n2"), peers("n1"), ""},
		{"a third node came", state("n1", "n2", "n3"), peers("n1"), "+n2"},
		{"three alive of five", state("n1", "n2-", "n3-", "n4", "n5"), peers("n1", "n2", "n3", "n4", "n5"), "-n2"},
		{"and on to three", state("n1", "n2-", "n3-", "n4", "n5"), peers("n1", "n3", "n4", "n5"), "-n3"},
		{"moved", state("n1"), []Peer{{ID: "n1", Addr: "b"}}, "+n1"},
	} {
		got := ""
		if c := NextChange(tc.s, tc.voters); c != nil && c.Add != nil {
			got = "+" + string(c.Add.ID)
		} else if c != nil {
			got = "-" + string(c.Remove)
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
