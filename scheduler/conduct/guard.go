package conduct

import (
	"slices"
	"strings"
	"time"

	"github.com/lampause/lampause/scheduler"
)

// guard watches the nodes: it batches verdicts into one DeclareDead, keeps
// the times of leases, and knows when a dead node is fenced.
//
// The fence: a lease that was renewed at t (when this leader granted it, which
// is after the supervisor asked) lets ranks compute until t+Lease at the most.
// A former leader cannot have granted any after this one's term began, because
// it had to be confirmed by a majority between request and grant. A supervisor
// has its first lease from its start, which counts as granted when that is
// answered; before, no rank of it was released. So a life of a node is fenced at max(start of the term, last grant) + Lease + LeaseMargin,
// or at once on certain evidence: its processes were killed, or the node came
// back with a higher boot, which it does only after it killed them.
type guard struct {
	l       *Leader
	scope   *scope
	doubts  map[scheduler.NodeRef]*doubt
	grants  map[scheduler.NodeRef]time.Duration // last renewal
	certain map[scheduler.NodeRef]bool
	heard   map[scheduler.NodeRef]time.Duration // of nodes with pods: last renewal asked for, or since when it has pods
	leases  bool                                // some node renews: then all do
	settle  time.Duration                       // when the verdicts so far are put into the log; 0 = none
	latest  time.Duration                       // ... at the latest
	asking  bool
	wake    []time.Duration // when fences are reached that somebody waits for
}

// doubt is what speaks against a node.
type doubt struct {
	source  string
	since   time.Duration
	ageMS   float64 // age of the last sign of life at since
	verdict bool    // evidence, not only suspicion
}

func newGuard(l *Leader) *guard {
	return &guard{
		l: l, scope: &scope{}, doubts: map[scheduler.NodeRef]*doubt{},
		grants: map[scheduler.NodeRef]time.Duration{}, certain: map[scheduler.NodeRef]bool{},
		heard: map[scheduler.NodeRef]time.Duration{},
	}
}

func (g *guard) suspect(ev Suspect) {
	if g.l.st.IsAlive(ev.Node) && g.doubts[ev.Node] == nil {
		g.doubts[ev.Node] = &doubt{source: ev.Source, since: g.l.now, ageMS: ev.AgeMS}
	}
}

// cleared drops what spoke against a node, unless its death is certain.
func (g *guard) cleared(ref scheduler.NodeRef) {
	if !g.certain[ref] {
		delete(g.doubts, ref)
	}
}

func (g *guard) evidence(ev Evidence) {
	if ev.Certain {
		g.certain[ev.Node] = true
		g.wakeAt(g.l.now)
	}
	if !g.l.st.IsAlive(ev.Node) {
		return
	}
	d := g.doubts[ev.Node]
	if d == nil {
		d = &doubt{source: ev.Source, since: g.l.now, ageMS: ev.AgeMS}
		g.doubts[ev.Node] = d
	}
	d.verdict = true
	if g.settle == 0 {
		g.settle = g.l.now + g.l.cfg.Settle
		g.latest = g.l.now + 5*g.l.cfg.Settle
	}
}

// committed forgets doubts about lives that are over, and learns which nodes
// have pods.
func (g *guard) committed() {
	busy := map[scheduler.NodeRef]bool{}
	for _, j := range g.l.st.Jobs {
		if j.State.Final() {
			continue
		}
		for _, p := range j.Pods {
			ref := scheduler.NodeRef{Node: p.Node, Boot: p.Boot}
			busy[ref] = true
			if _, ok := g.heard[ref]; !ok {
				g.heard[ref] = g.l.now
			}
		}
	}
	for ref := range g.heard {
		if !busy[ref] || !g.l.st.IsAlive(ref) {
			delete(g.heard, ref)
		}
	}
	for ref := range g.doubts {
		if !g.l.st.IsAlive(ref) {
			delete(g.doubts, ref)
		}
	}
	for ref := range g.grants {
		if n, ok := g.l.st.Nodes[ref.Node]; !ok || n.Boot > ref.Boot+1 {
			delete(g.grants, ref)
			delete(g.certain, ref)
		}
	}
}

func (g *guard) tick() {
	g.wake = slices.DeleteFunc(g.wake, func(t time.Duration) bool { return t <= g.l.now })
	g.tickSilence()
	if g.settle == 0 || g.settle > g.l.now || g.asking {
		return
	}
	// Another node under suspicion is given a moment: a rack is one recovery.
	for _, d := range g.doubts {
		if !d.verdict && g.l.now < g.latest {
			g.settle = min(g.latest, g.l.now+g.l.cfg.Settle)
			return
		}
	}
	g.settle = 0
	c := &scheduler.DeclareDead{}
	var first *doubt
	for _, ref := range sortedRefs(g.doubts) {
		d := g.doubts[ref]
		if !d.verdict {
			continue
		}
		c.Nodes = append(c.Nodes, ref)
		if first == nil || d.since < first.since {
			first = d
		}
	}
	if first == nil {
		return
	}
	c.Source = first.source
	c.DetectMS = first.ageMS + ms(g.l.now-first.since)
	g.asking = true
	g.l.propose(g.scope, scheduler.Command{DeclareDead: c}, func(Done) {
		g.asking = false
		for ref, d := range g.doubts {
			if d.verdict && g.l.st.IsAlive(ref) { // came meanwhile, or was refused
				g.settle = g.l.now + g.l.cfg.Settle
				g.latest = g.settle
			}
		}
	})
}

// tickSilence takes a node with pods that asks for no lease any more for dead,
// should gossip have failed to say so: its ranks stand still, and soon its
// supervisors will kill them.
func (g *guard) tickSilence() {
	if !g.leases {
		return
	}
	for ref, at := range g.heard {
		if d := g.doubts[ref]; at+g.l.cfg.Silence <= g.l.now && (d == nil || !d.verdict) {
			g.evidence(Evidence{Node: ref, Source: "no lease asked for", AgeMS: ms(g.l.now - at)})
		}
	}
}

func (g *guard) next(d *deadline) {
	if g.leases {
		for ref, at := range g.heard {
			if b := g.doubts[ref]; b == nil || !b.verdict {
				d.by(at + g.l.cfg.Silence)
			}
		}
	}
	if g.settle != 0 && !g.asking {
		d.by(g.settle)
	}
	for _, t := range g.wake {
		d.by(t)
	}
}

// renew grants a lease, unless the node is dead or about to be declared so.
func (g *guard) renew(ref scheduler.NodeRef) bool {
	if !g.l.st.IsAlive(ref) {
		return false
	}
	g.leases = true
	if _, ok := g.heard[ref]; ok {
		g.heard[ref] = g.l.now
	}
	if d := g.doubts[ref]; d != nil && d.verdict {
		return false
	}
	g.grants[ref] = g.l.now
	return true
}

// started counts the lease that a supervisor has from its start, asked for or
// not: a spare that just took over may never have renewed one.
func (g *guard) started(ref scheduler.NodeRef) { g.grants[ref] = g.l.now }

// heardSince reports whether a node with pods asked for its leases since t; true
// when nobody asks for leases.
func (g *guard) heardSince(ref scheduler.NodeRef, t time.Duration) bool {
	at, ok := g.heard[ref]
	return !g.leases || !ok || at >= t
}

// suspected reports whether something speaks against a living node.
func (g *guard) suspected(ref scheduler.NodeRef) bool { return g.doubts[ref] != nil }

// fenced reports whether no rank of that life of a node can compute any more.
// When that is a matter of time, it sees to a Tick at that time.
func (g *guard) fenced(ref scheduler.NodeRef) bool {
	if g.l.st.IsAlive(ref) {
		return false
	}
	if n, ok := g.l.st.Nodes[ref.Node]; ok && n.Boot > ref.Boot || g.certain[ref] {
		return true
	}
	at := max(g.l.start, g.grants[ref]) + g.l.cfg.Lease + g.l.cfg.LeaseMargin
	if at <= g.l.now {
		return true
	}
	g.wakeAt(at)
	return false
}

func (g *guard) wakeAt(at time.Duration) {
	if !slices.Contains(g.wake, at) {
		g.wake = append(g.wake, at)
	}
}

func sortedRefs(m map[scheduler.NodeRef]*doubt) []scheduler.NodeRef {
	refs := make([]scheduler.NodeRef, 0, len(m))
	for r := range m {
		refs = append(refs, r)
	}
	slices.SortFunc(refs, func(a, b scheduler.NodeRef) int { return strings.Compare(string(a.Node), string(b.Node)) })
	return refs
}

// ms is a duration in milliseconds.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
