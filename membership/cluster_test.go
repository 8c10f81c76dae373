package membership

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/membership/memnet"
)

// These tests run real memberlist members over a network in memory, in virtual
// time: a minute of cluster life takes about a second.

// lab is a cluster in a synctest bubble.
type lab struct {
	t       *testing.T
	net     *memnet.Network
	members map[string]*member // by gossip name
	wg      sync.WaitGroup
}

// member is one running Cluster and everything it told.
type member struct {
	c      *Cluster
	addr   string
	cancel context.CancelFunc
	ended  chan error

	mu   sync.Mutex
	told []Event
}

func newLab(t *testing.T) *lab {
	return &lab{t: t, net: memnet.New(), members: map[string]*member{}}
}

// addrOf gives node i of up to 65,000 its address; a later boot has the same.
func addrOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, byte(i / 250), byte(i%250 + 1)}) }

func hostPort(i int) string { return netip.AddrPortFrom(addrOf(i), DefaultPort).String() }

func nodeName(i int) job.NodeID { return job.NodeID(fmt.Sprintf("n%d", i)) }

// start runs node i; the first two nodes are everybody's seeds.
func (l *lab) start(i int, boot job.Boot, session uint64) *member {
	l.t.Helper()
	c, err := New(Config{
		Node: nodeName(i), Boot: boot, Session: session, Addr: addrOf(i), HTTPPort: 7948, Slots: 4,
		Seeds:     func() []string { return []string{hostPort(1), addrOf(2).String()} },
		Cluster:   "lab",
		SecretKey: []byte("0123456789abcdef"),
		Transport: l.net.Attach(hostPort(i)),
		Log:       zerolog.Nop(),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{c: c, addr: hostPort(i), cancel: cancel, ended: make(chan error, 1)}
	l.wg.Go(func() { m.ended <- c.Run(ctx) })
	l.wg.Go(func() {
		for e := range c.Events() {
			m.mu.Lock()
			m.told = append(m.told, e)
			m.mu.Unlock()
		}
	})
	l.members[gossipName(nodeName(i), boot)] = m
	return m
}

// startAll runs nodes 1..n, a few milliseconds apart, and waits until all see
// all.
func (l *lab) startAll(n int) {
	l.t.Helper()
	for i := 1; i <= n; i++ {
		l.start(i, 1, 1)
		time.Sleep(3 * time.Millisecond)
	}
	l.until(20*time.Second, "all see all", func() bool {
		for _, m := range l.members {
			if m.count(Alive) != n {
				return false
			}
		}
		return true
	})
}

// until lets virtual time pass until ok holds.
func (l *lab) until(limit time.Duration, what string, ok func() bool) time.Duration {
	l.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			for name, m := range l.members {
				l.t.Logf("%s: %s", name, m.summary())
			}
			l.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

// stop ends every member, as at the end of each test.
func (l *lab) stop() {
	for _, m := range l.members {
		m.cancel()
	}
	l.wg.Wait()
	// memberlist's goroutines end at their next timer; a bubble's clock stands
	// still once its main function has returned.
	time.Sleep(15 * time.Second)
}

// powerOff silences node i, then ends its process.
func (l *lab) powerOff(i int, boot job.Boot) {
	l.net.Mute(hostPort(i), true)
	l.members[gossipName(nodeName(i), boot)].cancel()
	delete(l.members, gossipName(nodeName(i), boot))
}

// everybody reports whether all running members hold (node, boot) to be in
// state k.
func (l *lab) everybody(node job.NodeID, boot job.Boot, k Kind) func() bool {
	return func() bool {
		for _, m := range l.members {
			if m.state(node, boot) != k {
				return false
			}
		}
		return true
	}
}

// deaths counts the Dead events of all running members about any node but the
// excepted ones.
func (l *lab) deaths(except ...job.NodeID) int {
	n := 0
	for _, m := range l.members {
		m.mu.Lock()
		for _, e := range m.told {
			if e.Kind == Dead && !contains(except, e.Node) {
				n++
				l.t.Logf("%s tells: %s dead by %s", m.c.cfg.Node, e.Node, e.Source)
			}
		}
		m.mu.Unlock()
	}
	return n
}

func contains(l []job.NodeID, n job.NodeID) bool {
	for _, x := range l {
		if x == n {
			return true
		}
	}
	return false
}

func (m *member) count(k Kind) int {
	n := 0
	for _, x := range m.c.Members() {
		if x.State == k {
			n++
		}
	}
	return n
}

func (m *member) state(node job.NodeID, boot job.Boot) Kind {
	for _, x := range m.c.Members() {
		if x.Node == node && x.Boot == boot {
			return x.State
		}
	}
	return ""
}

// summary names what is not alive, so that 64 members fit on a line.
func (m *member) summary() string {
	s := fmt.Sprintf("%d members", len(m.c.Members()))
	for _, x := range m.c.Members() {
		if x.State != Alive {
			s += fmt.Sprintf(", %s %s", gossipName(x.Node, x.Boot), x.State)
		}
	}
	return s
}

// bubble runs f with a lab in virtual time.
func bubble(t *testing.T, f func(l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.stop()
		f(l)
	})
}

func TestJoinAndSilentDeath(t *testing.T) {
	for _, n := range []int{2, 3, 5, 16, 64} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			if n == 64 && testing.Short() {
				t.Skip("64 members take several seconds; not with -short")
			}
			bubble(t, func(l *lab) {
				l.startAll(n)
				time.Sleep(2 * time.Second)
				victim := nodeName(n)
				l.powerOff(n, 1)
				took := l.until(10*time.Second, "death seen by all", l.everybody(victim, 1, Dead))
				t.Logf("%d members: all told the death after %v of virtual time", n, took)
				if d := l.deaths(victim); d != 0 {
					t.Errorf("%d false deaths", d)
				}
			})
		})
	}
}

func TestLossesOneAfterTheOtherAndTogether(t *testing.T) {
	bubble(t, func(l *lab) {
		l.startAll(16)
		for _, i := range []int{16, 15} {
			l.powerOff(i, 1)
			l.until(10*time.Second, "death seen by all", l.everybody(nodeName(i), 1, Dead))
		}
		// A rack: four at once.
		for i := 11; i <= 14; i++ {
			l.powerOff(i, 1)
		}
		for i := 11; i <= 14; i++ {
			l.until(10*time.Second, "rack seen by all", l.everybody(nodeName(i), 1, Dead))
		}
		if d := l.deaths("n11", "n12", "n13", "n14", "n15", "n16"); d != 0 {
			t.Errorf("%d false deaths", d)
		}
		// Late joiners learn the same.
		l.start(17, 1, 1)
		l.start(18, 1, 1)
		l.until(10*time.Second, "late joiner sees the living", func() bool {
			return l.members["n17#1"].count(Alive) == 12 && l.members["n18#1"].count(Alive) == 12
		})
	})
}

func TestNodeComesBackWithNewerBoot(t *testing.T) {
	for _, quick := range []bool{true, false} {
		t.Run(fmt.Sprintf("quick=%v", quick), func(t *testing.T) {
			bubble(t, func(l *lab) {
				l.startAll(5)
				l.powerOff(4, 1)
				if !quick {
					l.until(10*time.Second, "death", l.everybody("n4", 1, Dead))
				}
				l.net.Mute(hostPort(4), false)
				back := l.start(4, 2, 2)
				l.until(10*time.Second, "return", l.everybody("n4", 2, Alive))
				l.until(10*time.Second, "the returned sees all", func() bool { return back.count(Alive) == 5 })
				time.Sleep(10 * time.Second) // the ghost's echo changes nothing
				if !l.everybody("n4", 2, Alive)() {
					t.Error("the newer boot was lost again")
				}
				for name, m := range l.members {
					if m == back {
						continue
					}
					if n := m.told1("n4", 1, Dead); n != 1 {
						t.Errorf("%s told the death of n4#1 %d times, want once", name, n)
					}
				}
			})
		})
	}
}

// told1 counts events of one kind about one boot of a node.
func (m *member) told1(node job.NodeID, boot job.Boot, k Kind) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, e := range m.told {
		if e.Node == node && e.Boot == boot && e.Kind == k {
			n++
		}
	}
	return n
}

func TestLamdRestartIsNoDeath(t *testing.T) {
	bubble(t, func(l *lab) {
		l.startAll(5)
		m := l.members["n3#1"]
		m.cancel() // kill -9: the host stays, its port refuses
		if err := <-m.ended; err != nil {
			t.Errorf("run: %v", err)
		}
		l.members["n1#1"].c.Report(Evidence{Node: "n3", Source: SourceReset, Detail: "lease"})
		time.Sleep(1500 * time.Millisecond) // longer than memberlist's patience
		l.start(3, 1, 2)
		l.until(10*time.Second, "second session seen by all", func() bool {
			for _, m := range l.members {
				for _, x := range m.c.Members() {
					if x.Node == "n3" && (x.Session != 2 || x.State != Alive) {
						return false
					}
				}
			}
			return true
		})
		time.Sleep(5 * time.Second)
		if d := l.deaths(); d != 0 {
			t.Errorf("%d deaths for a restart of lamd", d)
		}
	})
}

func TestFrozenLamd(t *testing.T) {
	bubble(t, func(l *lab) {
		l.startAll(5)
		l.net.Freeze(hostPort(5), true)
		time.Sleep(2 * time.Second)
		l.net.Freeze(hostPort(5), false)
		l.until(10*time.Second, "alive again", l.everybody("n5", 1, Alive))
		time.Sleep(3 * time.Second)
		frozen := l.members["n5#1"]
		delete(l.members, "n5#1") // its own opinion of the others does not count
		if d := l.deaths(); d != 0 {
			t.Errorf("%d deaths for a stop of 2 s", d)
		}
		l.net.Freeze(hostPort(5), true)
		l.until(20*time.Second, "dead after a long stop", l.everybody("n5", 1, Dead))
		l.net.Freeze(hostPort(5), false)
		l.until(60*time.Second, "refuted after thawing", l.everybody("n5", 1, Alive))
		l.members["n5#1"] = frozen
	})
}

func TestSlowNodeIsNotDead(t *testing.T) {
	bubble(t, func(l *lab) {
		l.startAll(16)
		l.net.Delay(hostPort(7), 40*time.Millisecond) // 160 ms there and back, per pair
		time.Sleep(30 * time.Second)
		if d := l.deaths(); d != 0 {
			t.Errorf("%d deaths for slowness", d)
		}
	})
}

func TestLossyNetworkKillsNobody(t *testing.T) {
	bubble(t, func(l *lab) {
		l.startAll(16)
		var mu sync.Mutex
		n := 0
		l.net.Drop(func(string, string) bool { // every 20th packet
			mu.Lock()
			defer mu.Unlock()
			n++
			return n%20 == 0
		})
		time.Sleep(30 * time.Second)
		l.net.Drop(nil)
		if d := l.deaths(); d != 0 {
			t.Errorf("%d deaths at 5 %% loss", d)
		}
	})
}

func TestPartitionHeals(t *testing.T) {
	bubble(t, func(l *lab) {
		l.startAll(5)
		l.net.Partition(1, hostPort(4), hostPort(5))
		major := []string{"n1#1", "n2#1", "n3#1"}
		l.until(20*time.Second, "majority tells the deaths", func() bool {
			for _, name := range major {
				if l.members[name].state("n4", 1) != Dead || l.members[name].state("n5", 1) != Dead {
					return false
				}
			}
			return true
		})
		for _, name := range major {
			if l.members[name].told1("n1", 1, Dead)+l.members[name].told1("n2", 1, Dead)+l.members[name].told1("n3", 1, Dead) > 0 {
				t.Errorf("%s told the death of its own side", name)
			}
		}
		// Longer than memberlist remembers the dead: only our dials find together.
		time.Sleep(90 * time.Second)
		l.net.Partition(0, hostPort(4), hostPort(5))
		l.until(3*time.Minute, "all see all again", func() bool {
			for _, m := range l.members {
				if m.count(Alive) != 5 {
					return false
				}
			}
			return true
		})
	})
}

func TestLeaveIsToldAsLeft(t *testing.T) {
	bubble(t, func(l *lab) {
		l.startAll(5)
		m := l.members["n5#1"]
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := m.c.Leave(ctx); err != nil {
			t.Fatal(err)
		}
		if err := <-m.ended; err != nil {
			t.Errorf("run after leave: %v", err)
		}
		if err := m.c.Leave(ctx); err == nil {
			t.Error("second leave: no error")
		}
		delete(l.members, "n5#1")
		l.until(10*time.Second, "left", l.everybody("n5", 1, Left))
		time.Sleep(10 * time.Second)
		if d := l.deaths(); d != 0 {
			t.Errorf("%d deaths for a good-bye", d)
		}
	})
}

func TestReportedTimeoutIsFasterThanGossip(t *testing.T) {
	bubble(t, func(l *lab) {
		l.startAll(16)
		off := time.Now()
		l.powerOff(9, 1)
		leader := l.members["n1#1"]
		leader.c.Report(Evidence{Node: "n9", Boot: 1, Source: SourceTimeout, Detail: "lease renewal"})
		l.until(5*time.Second, "death", func() bool { return leader.state("n9", 1) == Dead })
		for _, m := range leader.c.Members() {
			dead := m.Node == "n9"
			if dead && (m.Source != SourceTimeout || m.Accused.Before(off) || m.Accused.After(time.Now())) {
				t.Errorf("n9 accused at %v by %s", m.Accused.Sub(off), m.Source)
			}
			if !dead && !m.Accused.IsZero() {
				t.Errorf("%s accused", m.Node)
			}
		}
		leader.mu.Lock()
		defer leader.mu.Unlock()
		for _, e := range leader.told {
			if e.Kind == Dead && e.Source != SourceTimeout {
				t.Errorf("decided by %s, want %s", e.Source, SourceTimeout)
			}
		}
	})
}

func TestStrangersStayOutside(t *testing.T) {
	bubble(t, func(l *lab) {
		l.startAll(3)
		for i, change := range []func(*Config){
			func(c *Config) { c.Cluster = "other" },
			func(c *Config) { c.SecretKey = []byte("fedcba9876543210") },
			func(c *Config) { c.SecretKey = nil },
		} {
			cfg := Config{
				Node: nodeName(10 + i), Boot: 1, Addr: addrOf(10 + i), Cluster: "lab",
				SecretKey: []byte("0123456789abcdef"),
				Seeds:     func() []string { return []string{hostPort(1)} },
				Transport: l.net.Attach(hostPort(10 + i)), Log: zerolog.Nop(),
			}
			change(&cfg)
			c, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			l.wg.Go(func() {
				for range c.Events() {
				}
			})
			if err := c.Run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
			cancel()
			if n := len(c.Members()); n != 1 {
				t.Errorf("stranger %d sees %d members, want itself alone", i, n)
			}
		}
		for name, m := range l.members {
			if n := len(m.c.Members()); n != 3 {
				t.Errorf("%s sees %d members, want 3: %s", name, n, m.summary())
			}
		}
	})
}
