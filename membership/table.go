package membership

import (
	"net/netip"
	"slices"
	"time"

	"github.com/lampause/lampause/job"
)

// table weighs evidence. It is pure: the caller passes the time (since an
// arbitrary start, never decreasing) with every input and takes the outcome with
// drain. Not safe for concurrent use; the Cluster's loop owns it.
type table struct {
	tun   Tuning
	self  job.NodeID
	peers map[job.NodeID]*peer // the newest boot of every node, also of dead ones

	lastTick time.Duration
	stallEnd time.Duration // end of the newest stall: probes sent before prove nothing
	dueSince time.Duration // when the oldest waiting verdict became due; 0 = none waits

	out wishes
}

// wishes is what the table wants done.
type wishes struct {
	events []Event
	probes []target // members to be probed now
	rejoin []target // members held dead, to exchange state with now
	words  []word   // to be spread
}

// target names a member for a probe or a dial.
type target struct {
	node job.NodeID
	boot job.Boot
	addr netip.AddrPort
	sent time.Duration // when it was asked for
}

// peer is one row. The doubt fields mean something only while doubt is set.
type peer struct {
	meta   Meta
	addr   netip.AddrPort
	state  Kind
	source Source // of state

	doubt    bool          // accused, being examined
	doubtAt  time.Duration // first evidence
	accuser  Source        // first source other than gossip and probe, else the first
	gossip   bool          // memberlist holds it dead
	operator bool          // a person holds it dead; only a newer boot refutes

	fails     int           // probes without an answer since doubtAt, in a row
	firstFail time.Duration // start of that row
	lastFail  time.Duration // its newest member
	hostUp    bool          // the newest failure was a refused or accepted dial
	probing   bool          // a probe is under way
	nextProbe time.Duration

	seconds  map[job.NodeID]time.Duration // others that told they cannot reach it, and when
	nextTell time.Duration                // when we say the same again

	rejoinAt    time.Duration // next exchange of state with a member held dead
	rejoinPause time.Duration
}

// reach is the outcome of a probe.
type reach int

// The outcomes, see the package comment.
const (
	reachAck reach = iota
	reachRefused
	reachAccepted
	reachNone
	reachUnknown // this process was too slow to tell
)

// rejoinLiving is the pause between two exchanges of state with a living member
// that memberlist holds dead.
const rejoinLiving = time.Second

// A member that cannot reach another says so every tellEvery, and is believed
// for tellLasts.
const (
	tellEvery = 400 * time.Millisecond
	tellLasts = time.Second
	passOn    = 3 // voices about one member that are passed on
)

func newTable(self job.NodeID, tun Tuning) *table {
	return &table{tun: tun, self: self, peers: make(map[job.NodeID]*peer)}
}

// drain reaches the verdicts that are due and hands out what happened since the
// last call. Inputs alone decide nothing: after a stall of this process the
// caller passes all of them, then tick, and only then comes here.
func (t *table) drain(now time.Duration) wishes {
	t.settle(now)
	out := t.out
	t.out = wishes{}
	return out
}

// members lists all rows by node name; origin is the zero of the table's clock.
func (t *table) members(origin time.Time) []Member {
	out := make([]Member, 0, len(t.peers))
	for _, p := range t.sorted() {
		m := Member{Meta: p.meta, State: p.state, Source: p.source}
		if p.state == Suspect || p.state == Dead {
			m.Accused = origin.Add(p.doubtAt)
		}
		out = append(out, m)
	}
	return out
}

// sorted lists the rows by node name, so that outcomes do not depend on the
// order of a map.
func (t *table) sorted() []*peer {
	rows := make([]*peer, 0, len(t.peers))
	for _, p := range t.peers {
		rows = append(rows, p)
	}
	slices.SortFunc(rows, func(a, b *peer) int {
		switch {
		case a.meta.Node < b.meta.Node:
			return -1
		case a.meta.Node > b.meta.Node:
			return 1
		}
		return 0
	})
	return rows
}

// find returns the row of a boot; boot 0 means the current one.
func (t *table) find(n job.NodeID, b job.Boot) *peer {
	p := t.peers[n]
	if p == nil || (b != 0 && p.meta.Boot != b) {
		return nil
	}
	return p
}

// seen takes a member that gossip holds alive: a join, an update of its meta, or
// a refutation. A newer boot proves the older one dead; an older one is a ghost
// and is ignored.
func (t *table) seen(now time.Duration, m Meta, addr netip.AddrPort) {
	p := t.peers[m.Node]
	switch {
	case p == nil:
		p = &peer{meta: m, addr: addr}
		t.peers[m.Node] = p
		t.enter(now, p, Alive, SourceGossip)
		return
	case m.Boot < p.meta.Boot:
		return
	case m.Boot > p.meta.Boot:
		if p.state == Alive || p.state == Suspect {
			t.enter(now, p, Dead, SourceBoot)
		}
		*p = peer{meta: m, addr: addr}
		t.enter(now, p, Alive, SourceBoot)
		return
	}
	newer := m.Session > p.meta.Session
	if m.Session >= p.meta.Session {
		p.meta, p.addr = m, addr
	}
	if p.operator {
		return
	}
	p.gossip = false
	t.clear(now, p, SourceGossip, newer)
}

// gone takes memberlist's verdict on a member: left by its own word, or dead.
func (t *table) gone(now time.Duration, n job.NodeID, b job.Boot, leaving bool) {
	p := t.find(n, b)
	if p == nil || p.state == Left {
		return
	}
	if leaving {
		p.doubt = false
		t.enter(now, p, Left, SourceGossip)
		return
	}
	p.gossip = true
	t.accuse(now, p, SourceGossip)
}

// report takes evidence that the daemon brings.
func (t *table) report(now time.Duration, e Evidence) {
	p := t.find(e.Node, e.Boot)
	if p == nil || e.Node == t.self || p.state == Left {
		return
	}
	if e.Source == SourceOperator {
		p.operator = true // of a dead one, too: it does not come back in this boot
	}
	t.accuse(now, p, e.Source)
}

// told takes another member's word that it cannot reach a third one. The first few
// such words are passed on, so that they reach all.
func (t *table) told(now time.Duration, w word) {
	p, from := t.find(w.Node, w.Boot), t.peers[w.From]
	switch {
	case p == nil || from == nil || w.From == w.Node || w.Node == t.self || w.From == t.self:
		return
	case from.state != Alive || p.state == Dead || p.state == Left:
		return
	}
	t.accuse(now, p, SourceGossip)
	if p.seconds == nil {
		p.seconds = make(map[job.NodeID]time.Duration)
	}
	if _, known := p.seconds[w.From]; !known && len(p.seconds) < passOn {
		t.out.words = append(t.out.words, w)
	}
	p.seconds[w.From] = now
}

// unreachable takes a ping or dial of memberlist's that failed: an accusation.
func (t *table) unreachable(now time.Duration, n job.NodeID, b job.Boot) {
	if p := t.find(n, b); p != nil && n != t.self && p.state != Dead && p.state != Left {
		t.accuse(now, p, SourceProbe)
	}
}

// acked takes a ping that memberlist completed by itself: proof of life.
func (t *table) acked(now time.Duration, n job.NodeID, b job.Boot) {
	p := t.find(n, b)
	if p != nil && !p.operator && p.state != Left && (p.doubt || p.state != Alive) {
		t.clear(now, p, SourceProbe, false)
	}
}

// probed takes the outcome of a probe that drain asked for.
func (t *table) probed(now time.Duration, g target, r reach) {
	p := t.find(g.node, g.boot)
	if p == nil || p.operator || p.state == Left {
		return
	}
	p.probing = false
	if r == reachAck {
		if p.gossip && now >= p.rejoinAt { // it does not know what is said about it
			t.out.rejoin = append(t.out.rejoin, g)
			p.rejoinAt = now + rejoinLiving
		}
		t.clear(now, p, SourceProbe, false)
		return
	}
	if !p.doubt {
		return
	}
	if g.sent < t.stallEnd || r == reachUnknown {
		p.nextProbe = now
		return
	}
	if p.fails == 0 {
		p.firstFail = now
	}
	p.fails++
	p.lastFail = now
	p.hostUp = r == reachRefused || r == reachAccepted
	p.nextProbe = now + t.tun.ProbeEvery
	if p.state == Alive {
		t.enter(now, p, Suspect, p.accuser)
	}
	if !p.hostUp && now >= p.nextTell {
		t.out.words = append(t.out.words, word{t.self, g.node, g.boot})
		p.nextTell = now + tellEvery
	}
}

// late reports whether the tick is overdue by more than a stall.
func (t *table) late(now time.Duration) bool {
	return t.lastTick != 0 && now-t.lastTick > t.tun.StallGap
}

// tick lets time pass: every tickEvery, or later when this process was not
// scheduled, which the table notices.
func (t *table) tick(now time.Duration) {
	gap := now - t.lastTick
	stalled := t.late(now)
	t.lastTick = now
	if stalled {
		t.stallEnd = now
	}
	for _, p := range t.sorted() {
		if p.doubt && stalled {
			p.fails = 0
			p.doubtAt += gap
			p.nextProbe = now
		}
		if p.doubt && !p.probing && now >= p.nextProbe && p.state != Dead && !p.operator {
			t.probe(now, p)
		}
		if p.state == Dead && !p.operator && now >= p.rejoinAt {
			t.out.rejoin = append(t.out.rejoin, target{p.meta.Node, p.meta.Boot, p.addr, now})
			p.rejoinPause = min(2*p.rejoinPause, 16*t.tun.RejoinEvery)
			p.rejoinAt = now + p.rejoinPause
		}
	}
}

// accuse puts p in doubt and has it probed at once.
func (t *table) accuse(now time.Duration, p *peer, s Source) {
	if p.state == Dead || p.state == Left {
		return
	}
	if !p.doubt {
		p.doubt, p.doubtAt, p.accuser = true, now, s
		p.fails, p.hostUp, p.seconds, p.nextTell = 0, false, nil, 0
		if !p.probing && !p.operator {
			t.probe(now, p)
		}
		return
	}
	if weak(p.accuser) && !weak(s) {
		p.accuser = s
	}
}

// weak tells the sources that are examined by memberlist's pace from those that
// the daemon brings.
func weak(s Source) bool { return s == SourceGossip || s == SourceProbe }

// clear ends the doubt about p; newer marks a lamd that came back with a newer
// session, which is told even when p was not in doubt.
func (t *table) clear(now time.Duration, p *peer, s Source, newer bool) {
	p.doubt = p.gossip // then it is watched until memberlist believes it, too
	p.doubtAt = now
	p.fails, p.hostUp, p.seconds, p.nextTell = 0, false, nil, 0
	p.nextProbe = now + t.tun.ProbeEvery
	if p.state != Alive || newer {
		t.enter(now, p, Alive, s)
	}
}

// probe asks the driver to probe p.
func (t *table) probe(now time.Duration, p *peer) {
	p.probing = true
	t.out.probes = append(t.out.probes, target{p.meta.Node, p.meta.Boot, p.addr, now})
}

// enter changes the state of p and tells it.
func (t *table) enter(now time.Duration, p *peer, k Kind, s Source) {
	p.state, p.source = k, s
	ev := Event{
		Kind: k, Node: p.meta.Node, Boot: p.meta.Boot, Session: p.meta.Session,
		Addr: p.addr, Meta: p.meta, Source: s,
	}
	switch k {
	case Suspect:
		ev.Doubt = now - p.doubtAt
	case Dead:
		if !p.doubt {
			p.doubtAt = now
		}
		ev.Doubt = now - p.doubtAt
		p.doubt = false
		p.rejoinPause = t.tun.RejoinEvery
		p.rejoinAt = now + p.rejoinPause
	}
	t.out.events = append(t.out.events, ev)
}
