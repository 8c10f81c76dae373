package conduct

import (
	"fmt"
	"slices"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// elect makes a node that reaches the majority the leader of a new term.
func (w *world) elect() {
	for _, n := range w.sorted() {
		if n.up && n.lamd && !n.cut {
			w.term++
			l := &wleader{w: w, node: n, term: w.term, core: NewLeader(Config{Pair: pairAll}, w.term, w.now), read: map[*wpod]int{}}
			w.leaders = append(w.leaders, l)
			w.logf("%s leads in term %d", n.id, w.term)
			l.step(Committed{State: w.st})
			l.poll()
			return
		}
	}
	w.after(time.Second, w.elect)
}

func pairAll(m map[job.PodIndex][]podapi.Mark) (map[job.PodIndex][]podapi.Mark, error) { return m, nil }

// leader returns the one that can use the log, nil when there is none.
func (w *world) leader() *wleader {
	if n := len(w.leaders); n > 0 && !w.leaders[n-1].over && w.leaders[n-1].ruling() {
		return w.leaders[n-1]
	}
	return nil
}

func (l *wleader) ruling() bool {
	return !l.over && l.term == l.w.term && l.node.up && l.node.lamd && !l.node.cut
}

// toLeaders shows the newest state, and an event unless nil, to those who can
// see it.
func (w *world) toLeaders(ev Event) {
	if l := w.leader(); l != nil {
		l.step(Committed{State: w.st})
		if ev != nil {
			l.step(ev)
		}
	}
}

func (l *wleader) step(ev Event) {
	if l.over || !l.node.up || !l.node.lamd {
		return
	}
	for _, a := range l.core.Step(l.w.now, ev) {
		l.w.perform(l, a)
	}
	l.w.audit(l.core)
	at, ok := l.core.Next()
	if ok && at <= l.w.now {
		l.w.fail("term %d: next tick at %v is not in the future", l.term, at)
		return
	}
	if ok && (l.timer <= l.w.now || at < l.timer) {
		l.timer = at
		l.w.after(at-l.w.now, func() {
			if l.timer == at {
				l.step(Tick{})
			}
		})
	}
}

// poll reads the event streams of all pods, renews leases, and tells the
// leader what gossip knows; over and over.
func (l *wleader) poll() {
	w := l.w
	if l.over || !l.node.up || !l.node.lamd {
		return
	}
	if !l.ruling() {
		// A leader without a majority knows it soon.
		w.after(time.Second, func() { l.over = true })
		return
	}
	for _, n := range w.sorted() {
		if w.reach(l.node, n.id) == nil {
			continue
		}
		if n.pod == nil && len(w.st.PodsOn(n.id, n.boot)) == 0 {
			continue // it has no leases to ask for
		}
		call := RollCall{Node: scheduler.NodeRef{Node: n.id, Boot: n.boot}}
		if p := n.pod; p != nil {
			l.readEvents(p)
			w.renew(l, p)
			call.Pods = append(call.Pods, PodAt{Job: p.spec.Job, Pod: p.spec.Placement.Pod, Built: p.spec.Incarnation})
		}
		l.step(call)
	}
	w.after(w.delay(200, 300), l.poll)
}

func (l *wleader) readEvents(p *wpod) {
	for i := l.read[p]; i < len(p.events); i++ {
		l.step(PodReport{Job: p.spec.Job, Pod: p.spec.Placement.Pod, Node: p.node.id, Event: p.events[i]})
	}
	l.read[p] = len(p.events)
}

// renew is a pod's request, through its lamd, for a longer lease.
func (w *world) renew(l *wleader, p *wpod) {
	sent := w.now
	ref := scheduler.NodeRef{Node: p.node.id, Boot: p.node.boot}
	w.after(w.delay(1, 30), func() {
		// The leader is confirmed by a majority between request and answer.
		if !l.ruling() || w.reach(l.node, p.node.id) == nil || !l.core.Renew(w.now, ref) {
			return
		}
		w.after(w.delay(1, 30), func() {
			if w.reach(l.node, p.node.id) == nil || p.dead {
				return
			}
			p.settle(w.now)
			p.lease = max(p.lease, sent+2*time.Second)
		})
	})
}

// perform carries out an action of a leader.
func (w *world) perform(l *wleader, a Action) {
	w.logAction(l, a)
	w.actions++
	if w.onAction != nil {
		w.onAction()
	}
	switch a := a.(type) {
	case Propose:
		w.propose(l, a)
	case StartPod:
		w.ask(l, a.Ref, a.Node, a.Timeout, 10, 60, func(n *wnode) Done { return w.startPod(n, a) })
	case KillPod:
		w.ask(l, a.Ref, a.Node, a.Timeout, 1, 30, func(n *wnode) Done {
			if p := n.pod; p != nil && p.spec.Placement.Pod == a.Pod && p.spec.Incarnation <= a.UpTo {
				w.killPod(p)
			}
			n.killed = max(n.killed, a.UpTo)
			return Done{}
		})
	case Call:
		w.ask(l, a.Ref, a.Node, a.Timeout, 1, opTime(a.Request.Op), func(n *wnode) Done {
			p := n.pod
			if p == nil || p.spec.Placement.Pod != a.Pod {
				return Done{Failure: &Failure{Kind: FailedForGood, Text: "no such pod"}}
			}
			return w.phase(p, a.Request)
		})
	case Copy:
		w.ask(l, a.Ref, a.To, a.Timeout, 5, 200, func(n *wnode) Done { return w.copyImage(n, a) })
	case Seal:
		w.ask(l, a.Ref, a.Node, a.Timeout, 1, 10, func(n *wnode) Done { return w.seal(n, a) })
	case Drop:
		if n := w.reach(l.node, a.Node); n != nil {
			w.drop(n, a)
		}
	case PullFences:
		w.ask(l, a.Ref, a.Node, a.Timeout, 1, 10, func(n *wnode) Done { return w.pullFences(n, a) })
	case FenceAnswer:
		w.fenceAnswer(l, a)
	case Answer:
		w.answers = append(w.answers, a)
		delete(w.asked, a.Ticket)
	}
}

// pullFences tells at which fences a pod ever arrived.
func (w *world) pullFences(n *wnode, a PullFences) Done {
	p := n.pod
	if p == nil || p.spec.Placement.Pod != a.Pod || p.state == "empty" {
		return Done{Failure: &Failure{Kind: RefusedNow, Text: "not now"}}
	}
	var d Done
	last := p.passed
	if p.waits {
		last++
	}
	for seq := 1; seq <= last; seq++ {
		d.Fences = append(d.Fences, p.fence(seq))
	}
	return d
}

func (p *wpod) fence(seq int) podapi.Fence {
	key := fmt.Sprintf("p%d", p.spec.Placement.Pod)
	return podapi.Fence{Header: p.head, Pod: p.spec.Placement.Pod, Seq: seq, Puts: map[string]string{key: fmt.Sprint(seq)}}
}

// fenceAnswer lets those through who waited, or makes them post again.
func (w *world) fenceAnswer(l *wleader, a FenceAnswer) {
	for _, t := range a.Tickets {
		p := w.posts[t]
		delete(w.posts, t)
		w.after(w.delay(1, 10), func() {
			if p == nil || p.dead || p.asked != t || w.reach(l.node, p.node.id) == nil {
				return
			}
			p.asked = 0
			if a.Stale || !p.waits || p.turn.inc != w.st.Jobs[a.Job].Incarnation || a.Reply.Seq != p.passed+1 {
				return
			}
			if len(a.Reply.Puts) != len(w.st.Jobs[p.spec.Job].Pods) {
				w.fail("fence %d answered with %d puts", a.Reply.Seq, len(a.Reply.Puts))
			}
			p.settle(w.now)
			p.passed, p.waits = p.passed+1, false
		})
	}
}

// fences is how many PMI fences a rank passes on its way, evenly spread.
const fences = 4

// atFence brings a pod to its next fence when it is due, and posts there.
func (w *world) atFence(p *wpod) {
	if p.passed < fences && !p.waits && p.computing(w.now) && p.progress >= w.work*time.Duration(p.passed)/fences {
		p.waits = true
	}
	l := w.leader()
	if !p.waits || !p.runs() || l == nil || w.reach(l.node, p.node.id) == nil {
		return
	}
	if q := w.posts[p.asked]; p.asked != 0 && q == p && w.now < p.posted+2*time.Second {
		return
	}
	w.ticket++
	p.asked, p.posted = w.ticket, w.now
	w.posts[w.ticket] = p
	l.step(Fence{Ticket: w.ticket, Fence: p.fence(p.passed + 1)})
}

func opTime(op podapi.Op) int {
	switch op {
	case podapi.OpWrite:
		return 400
	case podapi.OpRestore, podapi.OpRollback:
		return 150
	}
	return 15
}

// ask sends a request to a node. The request or its answer may be lost.
func (w *world) ask(l *wleader, ref Ref, node job.NodeID, timeout time.Duration, lo, hi int, do func(*wnode) Done) {
	lost := func(text string) {
		w.after(min(timeout, w.delay(5, 300)), func() {
			l.step(Done{Ref: ref, Failure: &Failure{Kind: Unreachable, Text: text}})
		})
	}
	half := w.delay(lo, hi) / 2
	w.straggle(l, node, half, do)
	w.after(half, func() {
		n := w.reach(l.node, node)
		if n == nil || w.chance(w.lazy) {
			lost("no route to " + string(node))
			return
		}
		d := do(n)
		d.Ref = ref
		w.after(half, func() {
			if w.reach(l.node, node) == nil || w.chance(w.lazy) {
				if !w.chance(0.1) { // else the leader does not even hear that
					lost("answer of " + string(node) + " lost")
				}
				return
			}
			l.step(d)
		})
	})
}

// straggle lets a request arrive once more: a network repeats and delays, and
// what was sent to a lamd that runs on is carried out however late it comes.
func (w *world) straggle(l *wleader, node job.NodeID, half time.Duration, do func(*wnode) Done) {
	if !w.chance(w.stray) {
		return
	}
	run := w.nodes[node].run
	w.after(half+w.delay(0, 20_000), func() {
		if n := w.reach(l.node, node); n != nil && n.run == run {
			w.logf("an old request comes to %s", node)
			do(n)
		}
	})
}

func (w *world) propose(l *wleader, a Propose) {
	w.after(w.delay(1, 10), func() {
		if !l.ruling() || w.chance(w.lazy) {
			w.after(w.delay(50, 500), func() {
				l.step(Done{Ref: a.Ref, Failure: &Failure{Kind: Unreachable, Text: "not applied in time"}})
			})
			return
		}
		r := w.apply(a.Command)
		if w.chance(w.lazy) { // applied, and nobody knows
			w.after(w.delay(50, 500), func() {
				l.step(Committed{State: w.st})
				l.step(Done{Ref: a.Ref, Failure: &Failure{Kind: Unreachable, Text: "outcome not known"}})
			})
			return
		}
		d := Done{Ref: a.Ref}
		if r != nil {
			d.Failure = &Failure{Kind: Refused, Text: r.Text, Exit: r.Exit}
		}
		l.step(Committed{State: w.st})
		l.step(d)
	})
}

func (w *world) startPod(n *wnode, a StartPod) Done {
	if a.Spec.Boot != n.boot || a.Spec.Incarnation <= n.killed {
		return Done{Failure: &Failure{Kind: Refused, Exit: job.ExitNoNodes, Text: "that pod ended"}}
	}
	if p := n.pod; p != nil {
		if p.spec.Incarnation == a.Spec.Incarnation && p.spec.Placement.Pod == a.Pod {
			return Done{}
		}
		if p.spec.Incarnation > a.Spec.Incarnation {
			return Done{Failure: &Failure{Kind: Refused, Text: "a newer pod is there"}}
		}
		w.killPod(p)
	}
	p := &wpod{
		spec: a.Spec, node: n, head: a.Spec.Header, state: "running", since: w.now,
		lease: w.now + time.Duration(a.Spec.LeaseMS)*time.Millisecond, taken: map[job.Epoch]wimage{},
		turn: turn{inc: a.Spec.Incarnation}, void: turn{inc: a.Spec.Incarnation}, done: map[podapi.Op]bool{},
	}
	if a.Spec.Restore {
		p.state = "empty"
	}
	n.pod = p
	w.watchWork(p)
	return Done{}
}

// watchWork lets the ranks of a pod exit when they have computed enough.
func (w *world) watchWork(p *wpod) {
	if p.dead || !p.node.up {
		return
	}
	p.settle(w.now)
	if w.now > p.lease+10*time.Second {
		w.killPod(p) // as a supervisor does that nobody renews
		return
	}
	w.atFence(p)
	if p.computing(w.now) && !p.waits && p.progress >= w.work {
		p.ended, p.progress = true, w.work
		for _, r := range p.spec.Placement.Ranks {
			w.emit(p, "exit", &job.Exit{Rank: r})
		}
	}
	w.after(200*time.Millisecond, func() { w.watchWork(p) })
}

func (w *world) emit(p *wpod, kind string, x *job.Exit) {
	ev := podapi.Event{Seq: uint64(len(p.events) + 1), Incarnation: p.head.Incarnation, Kind: kind, Exit: x}
	if x != nil {
		ev.Rank = x.Rank
	}
	p.events = append(p.events, ev)
}

// copyImage brings an image to a node, checked from end to end.
func (w *world) copyImage(n *wnode, a Copy) Done {
	key := imageKey{a.Epoch, a.Pod}
	if im, ok := n.images[key]; ok && !im.bad {
		return Done{}
	}
	var d Done
	for _, f := range a.From {
		src := w.reach(n, f)
		if src == nil {
			continue
		}
		if im, ok := src.images[key]; ok && !im.bad {
			n.images[key] = im
			return d
		}
		d.Damaged = append(d.Damaged, f)
	}
	d.Failure = &Failure{Kind: Unreachable, Text: fmt.Sprintf("no image of pod %d on %v", a.Pod, a.From)}
	if len(d.Damaged) == len(a.From) {
		d.Failure.Kind = NoIntactCopy
	}
	return d
}

func (w *world) drop(n *wnode, a Drop) {
	for key := range n.images {
		if a.Epoch == 0 || key.epoch == a.Epoch {
			w.unlink(n, key)
		}
	}
}

// unlink deletes an image, which may be only when the log does not count on it.
func (w *world) unlink(n *wnode, key imageKey) {
	if e := w.st.Jobs[1].Find(key.epoch); e != nil && slices.Contains(e.Images[key.pod].Holders, n.id) {
		w.fail("image of epoch %d pod %d dropped on %s, and the log counts on it", key.epoch, key.pod, n.id)
	}
	delete(n.images, key)
}

// seal writes the COMMITTED record.
func (w *world) seal(n *wnode, a Seal) Done {
	if !w.law.committed[a.Epoch.Epoch] {
		w.fail("epoch %d sealed on %s, and never committed", a.Epoch.Epoch, n.id)
	}
	for _, p := range a.Pods {
		if _, ok := n.images[imageKey{a.Epoch.Epoch, p}]; !ok {
			w.logf("no image of epoch %d pod %d on %s to seal", a.Epoch.Epoch, p, n.id)
			return conflict("no image to seal")
		}
	}
	n.sealed[a.Epoch.Epoch] = true
	return Done{}
}
