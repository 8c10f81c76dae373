package scheduler

import (
	"slices"

	"github.com/lampause/lampause/job"
)

func (t *txn) beginEpoch(c *BeginEpoch) *Refusal {
	j, r := t.live(c.Job, c.Incarnation)
	switch {
	case r != nil:
		return r
	case j.State != job.Running:
		return refuse(Busy, job.ExitUsage, "job %v is %s: no checkpoint now", c.Job, j.State)
	case j.Open != nil && j.Open.Term == c.Term && j.Open.Attempt == c.Attempt:
		return nil
	case j.Open != nil:
		return refuse(Busy, job.ExitInternal, "job %v: the round of epoch %d is still open", c.Job, j.Open.Epoch)
	}
	j.LastEpoch++
	j.Open = &OpenEpoch{Epoch: j.LastEpoch, Term: c.Term, Attempt: c.Attempt}
	t.changed(j.ID)
	return nil
}

func (t *txn) commit(c *Commit) *Refusal {
	j, r := t.live(c.Job, c.Incarnation)
	if r != nil {
		return r
	}
	if n := j.Newest(); n != nil && n.Epoch == c.Epoch {
		return nil // repeated
	}
	switch {
	case j.State != job.Running:
		return refuse(Busy, job.ExitInternal, "job %v is %s: epoch %d cannot be committed", c.Job, j.State, c.Epoch)
	case j.Open == nil || j.Open.Epoch != c.Epoch:
		return refuse(Stale, job.ExitInternal, "job %v: epoch %d is not open", c.Job, c.Epoch)
	case len(c.Images) != len(j.Pods):
		return refuse(BadCommand, job.ExitInternal, "job %v: %d images for %d pods", c.Job, len(c.Images), len(j.Pods))
	}
	e := Epoch{
		Epoch: c.Epoch, Incarnation: c.Incarnation, Attempt: j.Open.Attempt, Index: t.index, AtMS: t.at,
		SetDigest: c.SetDigest, StallMS: c.StallMS, TimesMS: c.TimesMS,
	}
	for i, im := range c.Images {
		if int(im.Pod) != i {
			return refuse(BadCommand, job.ExitInternal, "job %v: image %d is of pod %d", c.Job, i, im.Pod)
		}
		var held []job.NodeID
		for _, n := range im.Holders {
			if t.s.Nodes[n].State == Alive && !slices.Contains(held, n) {
				held = append(held, n)
			}
		}
		im.Holders = held
		if len(im.Holders) == 0 {
			return refuse(Stale, job.ExitInternal, "job %v: no living node holds the image of pod %d at epoch %d", c.Job, i, c.Epoch)
		}
		e.Images = append(e.Images, im)
		e.Bytes += im.Bytes
	}
	j.Epochs = append(j.Epochs, e)
	j.Open, j.Kills, j.Unprotected = nil, 0, ""
	data := map[string]any{"stall_ms": c.StallMS, "bytes": e.Bytes, "replicas": fewest(e.Images)}
	for k, v := range c.TimesMS {
		data[k+"_ms"] = v
	}
	if n := e.NewBytes(); n > 0 {
		data["new_bytes"] = n
	}
	if c.Backing != "" {
		data["backing"] = c.Backing
	}
	t.event(Event{Name: "checkpoint.committed", Job: j.ID, Epoch: c.Epoch, Data: data})
	t.changed(j.ID)
	return nil
}

// fewest returns the smallest number of holders over the images of an epoch.
func fewest(images []PodImage) int {
	n := len(images[0].Holders)
	for _, im := range images {
		n = min(n, len(im.Holders))
	}
	return n
}

func (t *txn) abandon(c *Abandon) *Refusal {
	j, r := t.find(c.Job)
	switch {
	case r != nil:
		return r
	case j.Open == nil || j.Open.Epoch != c.Epoch:
		return refuse(Stale, job.ExitInternal, "job %v: epoch %d is not open", c.Job, c.Epoch)
	}
	t.voidRound(j, c.Reason)
	t.changed(j.ID)
	return nil
}

// voidRound gives up the open round of a job, if there is one.
func (t *txn) voidRound(j *Job, reason string) {
	if j.Open == nil {
		return
	}
	e := j.Open.Epoch
	j.Open, j.Unprotected = nil, reason
	t.event(Event{Name: "checkpoint.abandoned", Job: j.ID, Epoch: e, Data: map[string]any{"reason": reason}})
	t.drop(j.ID, e, j.nodes())
}

// nodes returns the nodes that the job's pods are on.
func (j *Job) nodes() []job.NodeID {
	var out []job.NodeID
	for _, p := range j.Pods {
		if p.Node != "" && !slices.Contains(out, p.Node) {
			out = append(out, p.Node)
		}
	}
	return out
}

func (t *txn) collect(c *Collect) *Refusal {
	j, r := t.find(c.Job)
	switch {
	case r != nil:
		return r
	case j.Newest() == nil || c.Before > j.Newest().Epoch:
		return refuse(Stale, job.ExitInternal, "job %v: the newest epoch is never collected", c.Job)
	case j.Recovery != nil && j.Recovery.Epoch < c.Before:
		return refuse(Busy, job.ExitInternal, "job %v: a recovery returns to epoch %d", c.Job, j.Recovery.Epoch)
	}
	var kept []Epoch
	for _, e := range j.Epochs {
		if e.Epoch >= c.Before {
			kept = append(kept, e)
			continue
		}
		t.dropEpoch(j, e)
	}
	if len(kept) != len(j.Epochs) {
		j.Epochs = kept
		t.changed(j.ID)
	}
	return nil
}

// dropEpoch lets go of the files of an epoch wherever they may be.
func (t *txn) dropEpoch(j *Job, e Epoch) {
	nodes := j.nodes()
	for _, im := range e.Images {
		for _, h := range im.Holders {
			if !slices.Contains(nodes, h) {
				nodes = append(nodes, h)
			}
		}
	}
	t.drop(j.ID, e.Epoch, nodes)
}

func (t *txn) replicated(c *Replicated) *Refusal {
	j, r := t.find(c.Job)
	if r != nil {
		return r
	}
	i := slices.IndexFunc(j.Epochs, func(e Epoch) bool { return e.Epoch == c.Epoch })
	switch {
	case i < 0 || int(c.Pod) < 0 || int(c.Pod) >= len(j.Epochs[i].Images):
		return refuse(NoSuch, job.ExitInternal, "job %v has no image of pod %d at epoch %d", c.Job, c.Pod, c.Epoch)
	case !t.s.IsAlive(c.Node):
		return refuse(Stale, job.ExitInternal, "node %s is not alive", c.Node.Node)
	}
	held := j.Epochs[i].Images[c.Pod].Holders
	if slices.Contains(held, c.Node.Node) {
		return nil
	}
	j.setHolders(i, int(c.Pod), append(slices.Clone(held), c.Node.Node))
	t.event(Event{Name: "replica.made", Job: j.ID, Epoch: c.Epoch, Node: c.Node.Node, Data: map[string]any{"pod": c.Pod}})
	t.changed(j.ID)
	return nil
}
