package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/lampause/lampause/job"
)

// WhyLost is the class of losses of nodes; it never stands in a Recover.
const WhyLost Why = "lost"

// loss is what a recovery has to deal with.
type loss struct {
	id       job.ID
	pods     []job.PodIndex // lost just now
	move     []job.PodIndex // of these, to be put elsewhere although their node lives
	dead     []NodeRef
	why      Why
	cause    string
	detectMS float64
}

func (t *txn) recoverPods(c *Recover) *Refusal {
	j, r := t.live(c.Job, c.Incarnation)
	if r != nil {
		return r
	}
	if j.Newest() == nil {
		return refuse(Busy, job.ExitNoNodes, "job %v has no committed epoch to return to", c.Job)
	}
	if len(c.Pods) == 0 && j.Recovery == nil {
		return refuse(Stale, job.ExitInternal, "job %v is not recovering", c.Job)
	}
	for _, p := range c.Pods {
		if int(p) < 0 || int(p) >= len(j.Pods) {
			return refuse(BadCommand, job.ExitInternal, "job %v has no pod %d", c.Job, p)
		}
	}
	switch c.Why {
	case WhyKilled:
		if j.Kills++; j.Kills > maxKills {
			t.finish(j, &End{Code: job.ExitCheckpoint, Keep: true, Reason: fmt.Sprintf("ranks were killed %d times since the newest checkpoint: %s", maxKills, c.Cause)})
			return nil
		}
	case WhyCrash:
		j.Crashes++
	}
	if d := c.Damaged; d != nil {
		if r := t.loseImages(j, d); r != nil {
			return r
		}
	}
	t.recover(loss{id: c.Job, pods: c.Pods, move: c.Move, why: c.Why, cause: c.Cause})
	t.poolChanged()
	return nil
}

// recover begins a recovery, or ends the job where the promise ends. It is
// the only place where an incarnation rises.
func (t *txn) recover(l loss) {
	j := t.job(l.id)
	if j.Newest() == nil {
		t.finish(j, &End{Code: job.ExitNoNodes, Reason: t.lostText(j, l) + ": the job had no checkpoint yet"})
		return
	}
	if l.why == WhyLost && j.Spec.OnFailure == job.OnFailureAbort {
		t.finish(j, t.stop(j, t.lostText(j, l)+" (--on-failure abort)"))
		return
	}
	if j.Spec.OnFailure == job.OnFailureRestart {
		l.pods = allPods(j)
	}
	epoch, rec := t.target(j, l)
	if rec.Tries > maxTries {
		t.finish(j, t.stop(j, fmt.Sprintf("%d recoveries in a row did not get through, last cause: %s", maxTries, l.cause)))
		return
	}
	if epoch == nil {
		gone := withoutImage(j.Newest(), rec)
		t.finish(j, noImages(j, t.lostText(j, l)+":", gone))
		return
	}
	t.fallBack(j, epoch, l)
	nodes, moved, pods := maps.Clone(t.s.Nodes), maps.Clone(t.moved), slices.Clone(j.Pods)
	t.placeLost(j, epoch, rec, l)
	if rec.Waiting && j.Spec.NoSpare == job.NoSpareAbort {
		t.s.Nodes, t.moved, j.Pods = nodes, moved, pods
		t.finish(j, t.stop(j, t.lostText(j, l)+" and there is no spare (--no-spare abort)"))
		return
	}
	t.voidRound(j, "a recovery began: "+l.cause)
	j.Incarnation, j.State, j.Recovery = rec.Incarnation, job.Recovering, rec
	for _, lp := range rec.Lost {
		p := &j.Pods[lp.Pod]
		p.Node, p.Boot, p.Built = lp.To, t.s.Nodes[lp.To].Boot, rec.Incarnation
		p.MAC = podMAC(j.ID, p.Index, rec.Incarnation)
	}
	name := "recovery.begun"
	if rec.Waiting {
		name = "recovery.waiting"
	}
	t.event(Event{Name: name, Job: j.ID, Epoch: rec.Epoch, Data: map[string]any{
		"incarnation": rec.Incarnation, "cause": l.cause, "lost": ranksText(j, rec.LostPods()), "to": targetsText(rec),
	}})
	t.changed(j.ID)
}

// nextRecovery merges new losses with those of a recovery that was under way:
// a pod that was being rebuilt and was not released is built again.
func (t *txn) nextRecovery(j *Job, epoch job.Epoch, l loss) *Recovery {
	rec := &Recovery{Incarnation: j.Incarnation + 1, Epoch: epoch, Cause: l.cause, DetectMS: l.detectMS, Tries: 1}
	pods := slices.Clone(l.pods)
	from := map[job.PodIndex]job.NodeID{}
	if old := j.Recovery; old != nil {
		rec.Tries = old.Tries + 1
		if old.Waiting || l.why == WhyRedo && len(l.pods) == 0 {
			rec.Tries = old.Tries
		}
		rec.DetectMS = max(rec.DetectMS, old.DetectMS)
		rec.Skipped = old.Skipped
		for _, lp := range old.Lost {
			pods = append(pods, lp.Pod)
			from[lp.Pod] = lp.From
		}
		rec.Old = slices.Clone(old.Old)
	}
	slices.Sort(pods)
	for _, p := range slices.Compact(pods) {
		lp := LostPod{Pod: p, From: j.Pods[p].Node}
		if f, ok := from[p]; ok {
			lp.From = f
		}
		rec.Lost = append(rec.Lost, lp)
		was := OldPod{Pod: p, Place: NodeRef{Node: j.Pods[p].Node, Boot: j.Pods[p].Boot}}
		if was.Place.Node != "" && !slices.Contains(rec.Old, was) {
			rec.Old = append(rec.Old, was)
		}
	}
	return rec
}

// placeLost decides where the lost pods are rebuilt: on their own node when
// it lives, else on a spare. All pods of one lost node, of whatever job, go to
// the same spare, which becomes a compute node; the lost node's place in the
// pool is then open to it when it returns.
func (t *txn) placeLost(j *Job, epoch *Epoch, rec *Recovery, l loss) {
	for i := range rec.Lost {
		lp := &rec.Lost[i]
		p := &j.Pods[lp.Pod]
		here := NodeRef{Node: p.Node, Boot: p.Boot}
		moving := slices.Contains(l.move, lp.Pod)
		if t.s.IsAlive(here) && !moving {
			lp.To = p.Node
			continue
		}
		origin := p.Node
		if origin == "" {
			origin = lp.From
		}
		avoid := job.NodeID("")
		if moving {
			avoid = p.Node
		}
		lp.To = t.chooseSpare(j, epoch, rec, lost{pod: lp.Pod, origin: origin, avoid: avoid})
		switch {
		case lp.To != "":
			t.takeSpare(lp.To, origin)
		case moving && t.s.IsAlive(here):
			lp.To = p.Node // nowhere else to go: once more in place
			continue
		default:
			rec.Waiting = true
		}
		p.Node = ""
	}
}

func (t *txn) takeSpare(spare, origin job.NodeID) {
	t.moved[origin] = spare
	n := t.s.Nodes[spare]
	if n.Role != Spare {
		return
	}
	n.Role = Compute
	t.s.Nodes[spare] = n
	if o, ok := t.s.Nodes[origin]; ok && o.State != Alive {
		o.Role = Spare
		t.s.Nodes[origin] = o
	}
}

// lost is a pod in want of a node: where it was, and where it must not go.
type lost struct {
	pod           job.PodIndex
	origin, avoid job.NodeID
}

// chooseSpare picks the node for a lost pod: the one that took another job's
// pods of the same lost node, the intended spare, a spare that holds the
// image, any spare, at last a compute node without ranks. "" when none is left.
func (t *txn) chooseSpare(j *Job, epoch *Epoch, rec *Recovery, l lost) job.NodeID {
	free := func(n job.NodeID) bool {
		if n == "" || n == l.avoid || t.s.Nodes[n].State != Alive {
			return false
		}
		for _, p := range j.Pods {
			if p.Node == n {
				return false
			}
		}
		return !slices.ContainsFunc(rec.Lost, func(o LostPod) bool { return o.To == n })
	}
	if n := t.moved[l.origin]; free(n) {
		return n
	}
	var pool []job.NodeID
	for _, n := range t.s.spares(j) {
		if free(n) {
			pool = append(pool, n)
		}
	}
	if in := j.Pods[l.pod].Intended; slices.Contains(pool, in) {
		return in
	}
	for _, n := range pool {
		if slices.Contains(epoch.Images[l.pod].Holders, n) {
			return n
		}
	}
	if len(pool) > 0 {
		return pool[0]
	}
	for _, n := range t.s.AliveNodes() {
		if free(n.ID) && t.s.ranksOn(n.ID) == 0 && n.Slots > 0 {
			return n.ID
		}
	}
	return ""
}

// resumeWaiting tries again to place the pods of a waiting recovery; without
// success nothing changes.
func (t *txn) resumeWaiting(id job.ID) {
	j := t.s.Jobs[id]
	probe := &txn{s: t.s.clone(), moved: map[job.NodeID]job.NodeID{}}
	pj := probe.job(id)
	rec := probe.nextRecovery(pj, j.Recovery.Epoch, loss{why: WhyRedo})
	probe.placeLost(pj, j.Find(j.Recovery.Epoch), rec, loss{})
	if count(rec.Lost, placed) == count(j.Recovery.Lost, placed) {
		return
	}
	t.recover(loss{id: id, why: WhyRedo, cause: j.Recovery.Cause})
}

func placed(l LostPod) bool { return l.To != "" }

func count(ls []LostPod, f func(LostPod) bool) int {
	n := 0
	for _, l := range ls {
		if f(l) {
			n++
		}
	}
	return n
}

func (t *txn) recovered(c *Recovered) *Refusal {
	j, r := t.live(c.Job, c.Incarnation)
	switch {
	case r != nil:
		return r
	case j.State != job.Recovering:
		return refuse(Busy, job.ExitInternal, "job %v is not recovering", c.Job)
	case j.Recovery.Waiting:
		return refuse(Busy, job.ExitInternal, "job %v waits for a spare", c.Job)
	}
	rec := j.Recovery
	bill := Bill{Incarnation: rec.Incarnation, Epoch: rec.Epoch, MS: c.MS, Skipped: rec.Skipped, Cause: rec.Cause, AtMS: t.at}
	for _, lp := range rec.Lost {
		bill.Lost = append(bill.Lost, lp.From)
		bill.Spares = append(bill.Spares, lp.To)
	}
	j.Bills = append(j.Bills, bill)
	if len(j.Bills) > maxBills {
		j.Bills = j.Bills[len(j.Bills)-maxBills:]
	}
	j.Recoveries++
	j.State, j.Recovery = job.Running, nil
	data := map[string]any{"incarnation": rec.Incarnation, "lost": bill.Lost, "spares": bill.Spares}
	for k, v := range c.MS {
		data[k+"_ms"] = v
	}
	if len(c.Notes) > 0 {
		data["notes"] = c.Notes
	}
	t.event(Event{Name: "recovery.done", Job: j.ID, Epoch: rec.Epoch, Data: data})
	t.changed(j.ID)
	return nil
}

func allPods(j *Job) []job.PodIndex {
	out := make([]job.PodIndex, len(j.Pods))
	for i := range out {
		out[i] = job.PodIndex(i)
	}
	return out
}

// lostText names nodes and ranks of a loss for people.
func (t *txn) lostText(j *Job, l loss) string {
	if len(l.pods) == 0 {
		return l.cause
	}
	if len(l.dead) == 0 {
		return fmt.Sprintf("lost %s (%s)", ranksText(j, l.pods), l.cause)
	}
	return fmt.Sprintf("lost %s with %s", names2text(l.dead), ranksText(j, l.pods))
}

func names2text(refs []NodeRef) string {
	names := make([]string, len(refs))
	for i, r := range refs {
		names[i] = string(r.Node)
	}
	word := "node "
	if len(names) > 1 {
		word = "nodes "
	}
	return word + strings.Join(names, ", ")
}

// ranksText names the ranks of pods, with runs shortened: "ranks 2, 4-7".
func ranksText(j *Job, pods []job.PodIndex) string {
	var ranks []int
	for _, p := range pods {
		for _, r := range j.Pods[p].Ranks {
			ranks = append(ranks, int(r))
		}
	}
	slices.Sort(ranks)
	var parts []string
	for i := 0; i < len(ranks); {
		k := i
		for k+1 < len(ranks) && ranks[k+1] == ranks[k]+1 {
			k++
		}
		if k == i {
			parts = append(parts, fmt.Sprint(ranks[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", ranks[i], ranks[k]))
		}
		i = k + 1
	}
	word := "rank "
	if len(ranks) > 1 {
		word = "ranks "
	}
	return word + strings.Join(parts, ", ")
}

func targetsText(r *Recovery) string {
	var parts []string
	for _, lp := range r.Lost {
		to := string(lp.To)
		if to == "" {
			to = "?"
		}
		parts = append(parts, fmt.Sprintf("pod %d: %s->%s", lp.Pod, lp.From, to))
	}
	return strings.Join(parts, ", ")
}
