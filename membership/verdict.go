package membership

import "time"

// verdict says whether the evidence against p suffices, and which source
// decided.
func (t *table) verdict(now time.Duration, p *peer, isolated bool) (Source, bool) {
	switch {
	case !p.doubt || p.state == Dead || p.state == Left:
		return "", false
	case p.operator:
		return SourceOperator, true
	case p.fails == 0:
		return "", false // it answered since, or was not asked yet
	case isolated && now-p.doubtAt < t.tun.IsolationHold:
		return "", false
	case p.hostUp:
		// lamd restarts or hangs on a host that answers.
		return p.decider(), p.gossip && now-p.doubtAt >= t.tun.RestartGrace
	case p.gossip:
		return p.decider(), p.fails >= 2
	case !weak(p.accuser) || t.seconded(now, p):
		return p.decider(), p.fails >= 2 && p.lastFail-p.firstFail >= t.tun.ConfirmSpan
	}
	return SourceProbe, p.fails >= 3 && p.lastFail-p.firstFail >= t.tun.LocalAfter
}

// seconded reports whether enough others cannot reach p either: two, or the only
// other one there is.
func (t *table) seconded(now time.Duration, p *peer) bool {
	witnesses, n := 0, 0
	for name, w := range t.peers {
		if name == t.self || w == p || w.state != Alive {
			continue
		}
		witnesses++
		if at, ok := p.seconds[name]; ok && now-at <= tellLasts {
			n++
		}
	}
	return n > 0 && n >= min(2, witnesses)
}

// decider is the source to name when others agree with the accuser.
func (p *peer) decider() Source {
	if weak(p.accuser) {
		return SourceGossip
	}
	return p.accuser
}

// isolated reports whether more than half of the other members cannot be
// reached from here. With one other member there is nobody to compare with.
func (t *table) isolated() bool {
	others, lost := 0, 0
	for n, p := range t.peers {
		if n == t.self || p.state == Dead || p.state == Left {
			continue
		}
		others++
		if p.doubt && p.fails > 0 && !p.hostUp {
			lost++
		}
	}
	return others > 1 && 2*lost > others
}

// settle tells the verdicts that are due, in one batch. It waits up to
// BatchWindow for suspects that are still undecided, since what dies together
// is recovered together.
func (t *table) settle(now time.Duration) {
	isolated := t.isolated()
	var due []*peer
	var sources []Source
	undecided := false
	for _, p := range t.sorted() {
		s, ok := t.verdict(now, p, isolated)
		switch {
		case ok:
			due = append(due, p)
			sources = append(sources, s)
		case p.doubt && p.fails > 0 && !p.hostUp && p.state == Suspect:
			undecided = true
		}
	}
	if len(due) == 0 {
		t.dueSince = 0
		return
	}
	if t.dueSince == 0 {
		t.dueSince = max(now, 1)
	}
	if undecided && now-t.dueSince < t.tun.BatchWindow {
		return
	}
	t.dueSince = 0
	first := len(t.out.events)
	for i, p := range due {
		t.enter(now, p, Dead, sources[i])
	}
	for i := first; i < len(t.out.events)-1; i++ {
		t.out.events[i].More = true
	}
}
