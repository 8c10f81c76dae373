package scheduler

import (
	"slices"

	"github.com/lampause/lampause/job"
)

func (t *txn) join(c *Join) *Refusal {
	if !job.ValidNode(c.Node) || c.Boot == 0 || c.Slots < 0 {
		return refuse(BadCommand, job.ExitConfig, "join of node %q with boot %d and %d slots: not valid", c.Node, c.Boot, c.Slots)
	}
	old, known := t.s.Nodes[c.Node]
	if known {
		lowest := old.Boot
		if old.State == Dead {
			lowest++
		}
		if c.Boot < lowest {
			return &Refusal{
				Code: StaleBoot, Boot: lowest, Exit: job.ExitConfig,
				Text: "node " + string(c.Node) + ": that life of it was declared dead; kill its pods and join as a new one",
			}
		}
		if old.State == Alive && c.Boot > old.Boot {
			t.die([]NodeRef{{Node: c.Node, Boot: old.Boot}}, 0, "returned with a new boot")
			old = t.s.Nodes[c.Node]
		}
	}
	n := Node{ID: c.Node, Addr: c.Addr, Boot: c.Boot, Session: c.Session, Role: c.Role, Slots: c.Slots, State: Alive}
	if n.Role == "" {
		n.Role = Compute
	}
	if known {
		n.Role = old.Role
	}
	t.s.Nodes[c.Node] = n
	t.s.LastJob = max(t.s.LastJob, c.LastJob)
	if known && old.State == Alive && old.Boot == c.Boot {
		if old.Session != c.Session {
			t.event(Event{Name: "node.session", Node: c.Node, Data: map[string]any{"session": c.Session}})
		}
		return nil
	}
	t.newView()
	t.event(Event{Name: "node.joined", Node: c.Node, Data: map[string]any{"boot": c.Boot, "role": string(n.Role), "slots": n.Slots, "view": t.s.View}})
	t.poolChanged()
	return nil
}

func (t *txn) leave(c *Leave) *Refusal {
	n, ok := t.s.Nodes[c.Node]
	switch {
	case !ok:
		return refuse(NoSuch, job.ExitUsage, "there is no node %q: `lam nodes` lists them", c.Node)
	case n.State != Alive:
		return nil
	}
	for _, id := range t.s.JobIDs() {
		for _, p := range t.s.Jobs[id].Pods {
			if !t.s.Jobs[id].State.Final() && p.Node == c.Node {
				return refuse(Busy, job.ExitUsage, "node %s holds ranks of job %v: vacate or end it first", c.Node, id)
			}
		}
	}
	if id := t.s.soleHolder(c.Node); id != 0 {
		return refuse(Busy, job.ExitUsage, "node %s holds the only image of some ranks of job %v: try again after its next checkpoint", c.Node, id)
	}
	n.State = Left
	t.s.Nodes[c.Node] = n
	t.loseHolders([]job.NodeID{c.Node})
	t.newView()
	t.event(Event{Name: "node.left", Node: c.Node, Data: map[string]any{"view": t.s.View}})
	t.poolChanged()
	return nil
}

func (t *txn) declareDead(c *DeclareDead) *Refusal {
	var dead []NodeRef
	for _, r := range c.Nodes {
		if t.s.IsAlive(r) {
			dead = append(dead, r)
		}
	}
	if len(dead) == 0 {
		return refuse(Stale, job.ExitUsage, "none of those nodes is alive")
	}
	t.die(dead, c.DetectMS, c.Source)
	t.newView()
	t.poolChanged()
	return nil
}

// die ends lives of nodes and starts what follows from that for every job, in
// one go: a rack that fails is one recovery.
func (t *txn) die(dead []NodeRef, detectMS float64, source string) {
	names := make([]job.NodeID, len(dead))
	for i, r := range dead {
		names[i] = r.Node
		n := t.s.Nodes[r.Node]
		n.State = Dead
		t.s.Nodes[r.Node] = n
		t.event(Event{Name: "node.dead", Node: r.Node, Data: map[string]any{"boot": r.Boot, "detect_ms": detectMS, "source": source}})
	}
	t.loseHolders(names)
	for _, id := range t.s.JobIDs() {
		old := t.s.Jobs[id]
		if old.State.Final() {
			continue
		}
		var lost []job.PodIndex
		var refs []NodeRef
		for _, p := range old.Pods {
			r := NodeRef{Node: p.Node, Boot: p.Boot}
			if slices.Contains(dead, r) {
				lost = append(lost, p.Index)
				refs = append(refs, r)
			}
		}
		switch {
		case len(lost) == 0 && old.Recovery != nil:
			t.needImages(id, "lost "+names2text(dead))
		case len(lost) > 0:
			t.recover(loss{id: id, pods: lost, dead: refs, why: WhyLost, cause: "lost " + names2text(refs), detectMS: detectMS})
		}
	}
}

// soleHolder returns a job of which only that node holds some image of the
// newest epoch, 0 when there is none.
func (s *State) soleHolder(node job.NodeID) job.ID {
	for _, id := range s.JobIDs() {
		e := s.Jobs[id].Newest()
		if e == nil {
			continue
		}
		for _, im := range e.Images {
			if len(im.Holders) == 1 && im.Holders[0] == node {
				return id
			}
		}
	}
	return 0
}

// loseHolders takes nodes out of all replica sets.
func (t *txn) loseHolders(nodes []job.NodeID) {
	for _, id := range t.s.JobIDs() {
		var j *Job
		for ei := range t.s.Jobs[id].Epochs {
			for ii, im := range t.s.Jobs[id].Epochs[ei].Images {
				left := slices.DeleteFunc(slices.Clone(im.Holders), func(h job.NodeID) bool { return slices.Contains(nodes, h) })
				if len(left) == len(im.Holders) {
					continue
				}
				if j == nil {
					j = t.job(id)
				}
				j.setHolders(ei, ii, left)
			}
		}
		if j != nil {
			t.changed(id)
		}
	}
}

// setHolders replaces a replica set in a job that may be written to.
func (j *Job) setHolders(epoch, image int, holders []job.NodeID) {
	images := slices.Clone(j.Epochs[epoch].Images)
	images[image].Holders = holders
	j.Epochs[epoch].Images = images
}

func (t *txn) newView() {
	t.s.View++
	t.acts = append(t.acts, Action{Kind: ActView})
}

// poolChanged gives waiting recoveries their spares and chooses anew the
// spares that pods are meant for.
func (t *txn) poolChanged() {
	for _, id := range t.s.JobIDs() {
		j := t.s.Jobs[id]
		if j.State == job.Recovering && j.Recovery.Waiting {
			t.resumeWaiting(id)
		}
	}
	for _, id := range t.s.JobIDs() {
		t.intend(id)
	}
}

// intend gives every pod of a job the spare that would take it over: first
// target of its replicas. A choice is kept as long as it holds.
func (t *txn) intend(id job.ID) {
	old := t.s.Jobs[id]
	if old.State.Final() {
		return
	}
	pool := t.s.spares(old)
	next, j := 0, (*Job)(nil)
	for i, p := range old.Pods {
		want := p.Intended
		if !slices.Contains(pool, want) {
			want = ""
			if len(pool) > 0 {
				want = pool[next%len(pool)]
			}
		}
		next++
		if want != p.Intended {
			if j == nil {
				j = t.job(id)
			}
			j.Pods[i].Intended = want
		}
	}
	if j != nil {
		t.changed(id)
	}
}

// spares returns the living spares, those named in the job's host list first.
func (s *State) spares(j *Job) []job.NodeID {
	var own, others []job.NodeID
	for _, n := range s.AliveNodes() {
		named := slices.ContainsFunc(j.Spec.Hosts, func(h job.HostSlots) bool { return h.Spare && h.Node == n.ID })
		switch {
		case slices.ContainsFunc(j.Pods, func(p Pod) bool { return p.Node == n.ID }):
		case s.ranksOn(n.ID) > 0:
		case named:
			own = append(own, n.ID)
		case n.Role == Spare:
			others = append(others, n.ID)
		}
	}
	return append(own, others...)
}

// ranksOn counts the ranks of jobs that have not ended on a node.
func (s *State) ranksOn(node job.NodeID) int {
	n := 0
	for _, j := range s.Jobs {
		if j.State.Final() {
			continue
		}
		for _, p := range j.Pods {
			if p.Node == node {
				n += len(p.Ranks)
			}
		}
	}
	return n
}
