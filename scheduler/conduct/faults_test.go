package conduct

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// crash ends a node: its machine stops, or (cut) nobody reaches it any more.
func (w *world) crash(id job.NodeID, cut bool) {
	n := w.nodes[id]
	if !n.up || n.cut {
		return
	}
	w.logf("FAULT %s crash cut=%t", id, cut)
	boot := n.boot
	if cut {
		n.cut = true
	} else {
		n.up = false
		if n.pod != nil {
			w.killPod(n.pod)
		}
	}
	w.gossip(n, boot)
	w.checkLeader()
}

// gossip tells whoever leads what it sees of a silent node.
func (w *world) gossip(n *wnode, boot job.Boot) {
	if w.chance(w.lazy) {
		return // it happens that nobody says a word
	}
	ref := scheduler.NodeRef{Node: n.id, Boot: boot}
	gone := func() bool { return n.boot == boot && (!n.up || n.cut) }
	w.after(w.delay(200, 400), func() {
		if gone() {
			w.toLeaders(Suspect{Node: ref, Source: "gossip"})
		}
	})
	var verdict func()
	verdict = func() {
		if !gone() || !w.st.IsAlive(ref) {
			return
		}
		w.toLeaders(Evidence{Node: ref, Source: "gossip", AgeMS: 1000, Certain: !n.up && w.chance(0.3)})
		w.after(time.Second, verdict) // a new leader has to be told again
	}
	w.after(w.delay(800, 1200), verdict)
}

// checkLeader has a new leader elected when the present one is lost.
func (w *world) checkLeader() {
	for _, l := range w.leaders {
		if !l.node.up || !l.node.lamd {
			l.over = true // its memory is gone
		}
	}
	if n := len(w.leaders); n > 0 && !w.leaders[n-1].ruling() {
		l := w.leaders[n-1]
		w.after(w.delay(1200, 3000), func() {
			if w.term == l.term {
				w.elect()
			}
		})
	}
}

// revive brings a node back, with a new boot when the machine had stopped.
func (w *world) revive(id job.NodeID) {
	n := w.nodes[id]
	switch {
	case !n.up:
		n.up, n.lamd, n.cut = true, true, false
		n.boot++
		n.run++
		n.killed = 0
		w.logf("FAULT %s revived with boot %d", id, n.boot)
		if sn := w.st.Nodes[id]; n.boot <= sn.Boot {
			n.boot = sn.Boot + 1
		}
		w.apply(scheduler.Command{Join: &scheduler.Join{Node: id, Addr: "10.0.0.1", Boot: n.boot, Session: 1, Slots: 2}})
		w.toLeaders(nil)
	case n.cut:
		n.cut = false
		w.logf("FAULT %s reachable again", id)
		w.toLeaders(Cleared{Node: scheduler.NodeRef{Node: id, Boot: n.boot}})
		w.reconcile()
	}
}

// kill ends the pod of a job on some node, or a rank in it.
func (w *world) kill(id job.NodeID, what string) {
	n := w.nodes[id]
	p := n.pod
	if !n.up || p == nil || !p.runs() || p.ended {
		return
	}
	w.logf("FAULT %s on %s", what, id)
	switch what {
	case "pod":
		w.killPod(p)
		ev := PodGone{Job: 1, Pod: p.spec.Placement.Pod, Node: id, Incarnation: p.spec.Incarnation, Text: "supervisor ended"}
		if l := w.leader(); l != nil && w.reach(l.node, id) != nil && !w.chance(4*w.lazy) {
			l.step(ev) // else the roll calls will tell
		}
	case "rank":
		p.settle(w.now)
		p.ended = true
		w.emit(p, "exit", &job.Exit{Rank: p.spec.Placement.Ranks[0], Signal: 9})
	case "segv":
		p.settle(w.now)
		p.ended = true
		w.emit(p, "exit", &job.Exit{Rank: p.spec.Placement.Ranks[0], Signal: 11})
	}
}

// restartLamd makes a node's lamd deaf for a moment; a leader there is lost.
func (w *world) restartLamd(id job.NodeID) {
	n := w.nodes[id]
	if !n.up || !n.lamd {
		return
	}
	w.logf("FAULT lamd of %s restarts", id)
	n.lamd = false
	n.run++
	n.killed = 0
	w.checkLeader()
	w.after(w.delay(100, 1500), func() { n.lamd = n.up })
}

// falseAlarm has gossip call a living node dead.
func (w *world) falseAlarm(id job.NodeID) {
	n := w.nodes[id]
	if n.up && !n.cut {
		w.logf("FAULT false alarm about %s", id)
		w.toLeaders(Evidence{Node: scheduler.NodeRef{Node: id, Boot: n.boot}, Source: "mistake"})
	}
}

// user asks something of the leader, if there is one; see verdict.
func (w *world) user(v Verb) {
	l := w.leader()
	if l == nil {
		return
	}
	w.ticket++
	v.Ticket, v.Job = w.ticket, 1
	w.asked[v.Ticket] = l
	l.step(v)
}

// wake resumes the job, however often that takes.
func (w *world) wake() {
	j := w.st.Jobs[1]
	if j.State.Final() {
		return
	}
	if j.Suspended {
		w.user(Verb{Kind: VerbResume})
	}
	w.after(5*time.Second, w.wake)
}

// ended reports whether the job is over and put away.
func (w *world) ended() bool { return w.st.Jobs[1] != nil && w.st.Jobs[1].Retired }

// fault draws one fault, or a wish of the user.
func (w *world) fault() {
	id := job.NodeID(fmt.Sprintf("n%d", 1+w.rnd.IntN(len(w.nodes))))
	switch w.rnd.IntN(16) {
	case 0, 1, 2:
		w.crash(id, false)
		if w.rnd.IntN(8) == 0 { // two at once
			w.crash(job.NodeID(fmt.Sprintf("n%d", 1+w.rnd.IntN(len(w.nodes)))), w.rnd.IntN(2) == 0)
		}
	case 3, 4:
		w.crash(id, true)
		if w.rnd.IntN(3) == 0 { // for a moment
			w.after(w.delay(100, 4000), func() { w.revive(id) })
		}
	case 5:
		w.kill(id, "pod")
	case 6:
		w.kill(id, "rank")
	case 7:
		w.restartLamd(id)
	case 8:
		if w.rnd.IntN(4) == 0 {
			w.falseAlarm(id)
		}
	case 9:
		if l := w.leader(); l != nil {
			w.restartLamd(l.node.id)
		}
	case 10:
		w.wish(id)
	case 11:
		w.damage(id)
	default:
		w.revive(id)
	}
}

// wish draws something that a user or his program does.
func (w *world) wish(id job.NodeID) {
	switch w.rnd.IntN(8) {
	case 0:
		w.kill(id, "segv")
	case 1, 2:
		w.user(Verb{Kind: VerbSuspend})
		w.after(w.delay(100, 9000), func() { w.wake() })
	case 3:
		w.user(Verb{Kind: VerbVacate})
	}
	w.user(Verb{Kind: VerbCheckpoint})
}

// damage spoils some image on a node's disk.
func (w *world) damage(id job.NodeID) {
	n := w.nodes[id]
	keys := slices.SortedFunc(maps.Keys(n.images), func(a, b imageKey) int {
		return cmp.Or(cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.pod, b.pod))
	})
	if len(keys) == 0 {
		return
	}
	key := keys[w.rnd.IntN(len(keys))]
	w.logf("FAULT image of epoch %d pod %d on %s is damaged", key.epoch, key.pod, id)
	im := n.images[key]
	im.bad = true
	n.images[key] = im
}

// again restarts a job that ended and can go on, as long as the user cares.
func (w *world) again() {
	j := w.st.Jobs[1]
	if w.restarts > 0 && j.Retired && j.KeepImages {
		if r := w.apply(scheduler.Command{Restart: &scheduler.Restart{Job: scheduler.Job{ID: 1}}}); r == nil {
			w.restarts--
			w.restarted++
			w.logf("USER restart")
			w.toLeaders(nil)
		} else if w.calm {
			w.restarts = 0
		}
	}
}
