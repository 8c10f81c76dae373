package membership

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/lampause/lampause/job"
)

// history feeds a table with random evidence about four others and remembers
// what it may base a verdict on. Time goes on by ticks, sometimes by a stall.
type history struct {
	rnd *rand.Rand
	t   *table
	now time.Duration
	log []string

	life  map[job.NodeID]reach         // what a probe finds
	since map[job.NodeID]time.Duration // last proof of life
	fails map[job.NodeID]int           // failed probes since
	told  map[job.NodeID]Kind          // newest event of the newest boot
	judge map[job.NodeID]bool          // an operator's word
	open  map[target]bool              // probes under way
	dead  int
}

// TestRandomEvidence: a verdict needs failed probes since the last proof of
// life, an operator or a newer boot; nobody is dead twice, this node never; a
// member has one probe at a time; and who stays silent is dead in the end.
func TestRandomEvidence(t *testing.T) {
	deaths := 0
	for seed := range uint64(600) {
		h := &history{
			rnd: rand.New(rand.NewPCG(seed, 3)), t: newTable("n0", DefaultTuning()), now: time.Millisecond, //nolint:gosec // a test
			life: map[job.NodeID]reach{}, since: map[job.NodeID]time.Duration{}, fails: map[job.NodeID]int{},
			told: map[job.NodeID]Kind{}, judge: map[job.NodeID]bool{}, open: map[target]bool{},
		}
		for i := range 5 {
			h.seen(job.NodeID(fmt.Sprint("n", i)), 1, 1)
		}
		var err error
		for i := 0; i < 300 && err == nil; i++ {
			err = h.step()
		}
		if err == nil {
			err = h.silence()
		}
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, strings.Join(h.log, "\n"))
		}
		deaths += h.dead
	}
	if deaths < 500 {
		t.Errorf("%d deaths only", deaths)
	}
}

func (h *history) logf(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf("%8.0f ", float64(h.now.Microseconds())/1000)+fmt.Sprintf(format, args...))
}

func (h *history) boot(n job.NodeID) job.Boot {
	if p := h.t.peers[n]; p != nil {
		return p.meta.Boot
	}
	return 0
}

func (h *history) seen(n job.NodeID, boot job.Boot, session uint64) {
	h.logf("%s#%d seen", n, boot)
	if boot > h.boot(n) {
		h.judge[n] = false
	}
	if boot >= h.boot(n) {
		h.alive(n)
	}
	h.t.seen(h.now, Meta{Node: n, Boot: boot, Session: session}, netip.AddrPort{})
}

func (h *history) alive(n job.NodeID) { h.since[n], h.fails[n] = h.now, 0 }

// step is one input, or a tick.
func (h *history) step() error {
	n := job.NodeID(fmt.Sprint("n", h.rnd.IntN(6))) // n5 is unknown
	b := h.boot(n)
	switch h.rnd.IntN(24) {
	case 0:
		h.life[n] = reach(h.rnd.IntN(5))
		h.logf("%s is now %d", n, h.life[n])
	case 1:
		if n == "n0" {
			break // memberlist never says that of this node
		}
		h.logf("%s gone", n)
		h.t.gone(h.now, n, b, h.rnd.IntN(12) == 0)
	case 2:
		h.logf("%s reported", n)
		h.t.report(h.now, Evidence{Node: n, Boot: b, Source: []Source{SourceReset, SourceTimeout}[h.rnd.IntN(2)]})
	case 3:
		h.logf("%s told", n)
		h.t.told(h.now, word{From: job.NodeID(fmt.Sprint("n", h.rnd.IntN(6))), Node: n, Boot: b})
	case 4:
		h.logf("%s unreachable", n)
		h.t.unreachable(h.now, n, b)
	case 5:
		if p := h.t.peers[n]; p != nil && n != "n0" {
			h.logf("%s acked", n)
			if h.alive(n); h.life[n] != reachAck {
				h.life[n] = reachAck
			}
			h.t.acked(h.now, n, b)
		}
	case 6:
		if n != "n5" && n != "n0" && h.rnd.IntN(3) == 0 {
			h.life[n] = reachAck
			h.seen(n, b+job.Boot(h.rnd.IntN(2)), 1)
		}
	case 7:
		if h.rnd.IntN(20) == 0 {
			h.logf("%s condemned", n)
			h.judge[n] = h.boot(n) != 0 && n != "n0" && h.told[n] != Left
			h.t.report(h.now, Evidence{Node: n, Source: SourceOperator})
		}
	case 8:
		if h.rnd.IntN(10) == 0 {
			h.now += 3 * time.Second
			h.logf("a stall")
		}
	default:
		h.now += tickEvery
		h.t.tick(h.now)
	}
	return h.follow()
}

// follow takes what the table wants and answers its probes.
func (h *history) follow() error {
	out := h.t.drain(h.now)
	for _, e := range out.events {
		h.logf("  %s#%d is %s by %s", e.Node, e.Boot, e.Kind, e.Source)
		switch {
		case e.Node == "n0" && e.Kind != Alive:
			return fmt.Errorf("this node is %s", e.Kind)
		case e.Kind == Dead && h.told[e.Node] == Dead:
			return fmt.Errorf("%s is dead twice", e.Node)
		case e.Kind == Dead && e.Source != SourceOperator && e.Source != SourceBoot && h.fails[e.Node] < 2 && h.life[e.Node] == reachNone:
			return fmt.Errorf("%s is dead by %s after %d probes", e.Node, e.Source, h.fails[e.Node])
		case e.Kind == Dead && e.Source != SourceOperator && e.Source != SourceBoot && h.fails[e.Node] == 0:
			return fmt.Errorf("%s is dead by %s, and answered last", e.Node, e.Source)
		case e.Kind == Dead && (e.Source == SourceOperator) != h.judge[e.Node] && e.Source != SourceBoot:
			return fmt.Errorf("%s is dead by %s, condemned: %t", e.Node, e.Source, h.judge[e.Node])
		case e.Kind == Alive && e.Source != SourceBoot && h.judge[e.Node] && h.told[e.Node] == Dead:
			return fmt.Errorf("%s rose from the dead", e.Node)
		}
		if e.Kind == Dead {
			h.dead++
		}
		h.told[e.Node] = e.Kind
	}
	for _, w := range out.words {
		if p := h.t.peers[w.Node]; p == nil || w.Node == "n0" {
			return fmt.Errorf("word about %s", w.Node)
		}
	}
	seen := map[job.NodeID]bool{}
	for _, g := range out.probes {
		if g.node == "n0" {
			return fmt.Errorf("this node probes itself")
		}
		if seen[g.node] && h.open[g] {
			return fmt.Errorf("two probes of %s", g.node)
		}
		seen[g.node] = true
		r := h.life[g.node]
		if g.boot == h.boot(g.node) {
			switch r {
			case reachAck:
				h.alive(g.node)
			case reachUnknown:
			default:
				if g.sent >= h.t.stallEnd {
					h.fails[g.node]++
				}
			}
		}
		h.logf("  probe of %s: %d", g.node, r)
		h.t.probed(h.now, g, r)
	}
	return nil
}

// silence: one that does not answer any more is dead soon, when the others are
// there.
func (h *history) silence() error {
	for n := range h.t.peers {
		h.life[n] = reachAck
		if n != "n0" && !h.judge[n] {
			h.seen(n, h.boot(n)+1, 1)
		}
	}
	if h.judge["n3"] {
		return nil
	}
	h.life["n3"] = reachNone
	h.t.unreachable(h.now, "n3", 0)
	for end := h.now + 6*time.Second; h.now < end; {
		h.now += tickEvery
		h.t.tick(h.now)
		if err := h.follow(); err != nil {
			return err
		}
	}
	if s := h.t.peers["n3"].state; s != Dead {
		return fmt.Errorf("n3 is silent, and %s", s)
	}
	return nil
}
