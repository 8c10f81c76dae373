package scheduler

import (
	"fmt"
	"slices"

	"github.com/lampause/lampause/job"
)

// target chooses the epoch that a recovery returns to. That is the newest one,
// of which only the lost pods need images: the others have it in memory. When
// an image of it is gone or damaged at all its holders, it is the newest older
// one of which every image is left; all pods are rebuilt then, for nobody keeps
// an older epoch in memory. A nil epoch means that there is none; rec is then
// what a return to the newest one would be.
func (t *txn) target(j *Job, l loss) (epoch *Epoch, rec *Recovery) {
	newest := j.Newest()
	rec = t.nextRecovery(j, newest.Epoch, l)
	if len(withoutImage(newest, rec)) == 0 {
		return newest, rec
	}
	older := j.Whole()
	if older == nil {
		return nil, rec
	}
	l.pods = allPods(j)
	rec = t.nextRecovery(j, older.Epoch, l)
	rec.Skipped = max(rec.Skipped, newest.Epoch)
	return older, rec
}

// fallBack gives up the committed epochs after the one that a recovery returns
// to: what comes next is another future.
func (t *txn) fallBack(j *Job, to *Epoch, l loss) {
	newest := j.Newest()
	if newest.Epoch == to.Epoch {
		return
	}
	var gone []job.PodIndex
	for _, im := range newest.Images {
		if len(im.Holders) == 0 {
			gone = append(gone, im.Pod)
		}
	}
	t.event(Event{Name: "recovery.fallback", Job: j.ID, Epoch: to.Epoch, Data: map[string]any{
		"skipped": newest.Epoch, "cause": l.cause, "without_image": ranksText(j, gone),
	}})
	keep := slices.IndexFunc(j.Epochs, func(e Epoch) bool { return e.Epoch == to.Epoch }) + 1
	for _, e := range j.Epochs[keep:] {
		t.dropEpoch(j, e)
	}
	j.Epochs = j.Epochs[:keep]
}

// withoutImage returns the lost pods of which no living node holds the image.
func withoutImage(epoch *Epoch, rec *Recovery) []job.PodIndex {
	var gone []job.PodIndex
	for _, lp := range rec.Lost {
		if len(epoch.Images[lp.Pod].Holders) == 0 {
			gone = append(gone, lp.Pod)
		}
	}
	return gone
}

// stop returns how a job ends that cannot go on: with a usable checkpoint when
// there is a committed epoch of which every pod's image has a holder.
func (t *txn) stop(j *Job, reason string) *End {
	e := j.Whole()
	if e == nil {
		newest := j.Newest()
		rec := &Recovery{}
		for _, p := range allPods(j) {
			rec.Lost = append(rec.Lost, LostPod{Pod: p})
		}
		return noImages(j, reason+";", withoutImage(newest, rec))
	}
	return &End{Code: job.ExitCheckpoint, Keep: true, Reason: fmt.Sprintf("%s; `lam restart %v` goes on from epoch %d", reason, j.ID, e.Epoch)}
}

// noImages returns how a job ends of which no living node holds the images of
// some pods. What there is of the others is kept: a lost node may come back with
// what is on its disk.
func noImages(j *Job, reason string, gone []job.PodIndex) *End {
	return &End{Code: job.ExitNoNodes, Keep: true, Reason: fmt.Sprintf(
		"%s no intact image of %s at epoch %d is left, nor a whole older epoch; if lost nodes come back with their disks, try `lam restart %v`",
		reason, ranksText(j, gone), j.Newest().Epoch, j.ID)}
}

// refind takes the holders of a job's images from what the stores were found to
// have: nodes that were lost may be back with their disks.
func (t *txn) refind(j *Job, found []Epoch) {
	for _, f := range found {
		i := slices.IndexFunc(j.Epochs, func(e Epoch) bool { return e.Epoch == f.Epoch && e.SetDigest == f.SetDigest })
		if i < 0 || len(f.Images) != len(j.Epochs[i].Images) {
			continue
		}
		for p := range f.Images {
			j.setHolders(i, p, t.alive(f.Images[p].Holders))
		}
	}
}

// alive returns those of the nodes that live.
func (t *txn) alive(nodes []job.NodeID) []job.NodeID {
	return slices.DeleteFunc(slices.Clone(nodes), func(n job.NodeID) bool { return t.s.Nodes[n].State != Alive })
}

// damaged takes nodes out of the replica set of an image that they do not hold
// intact any more. Recoveries that cannot do without it say so by a Recover.
func (t *txn) damaged(c *Damaged) *Refusal {
	j, r := t.find(c.Job)
	if r != nil {
		return r
	}
	if r := t.loseImages(j, c); r != nil {
		return r
	}
	t.needImages(c.Job, fmt.Sprintf("the image of %s at epoch %d is damaged", ranksText(j, []job.PodIndex{c.Pod}), c.Epoch))
	return nil
}

// loseImages is damaged without what follows from it.
func (t *txn) loseImages(j *Job, c *Damaged) *Refusal {
	i := slices.IndexFunc(j.Epochs, func(e Epoch) bool { return e.Epoch == c.Epoch })
	if i < 0 || int(c.Pod) < 0 || int(c.Pod) >= len(j.Epochs[i].Images) {
		return refuse(NoSuch, job.ExitInternal, "job %v has no image of pod %d at epoch %d", j.ID, c.Pod, c.Epoch)
	}
	held := j.Epochs[i].Images[c.Pod].Holders
	left := slices.DeleteFunc(slices.Clone(held), func(n job.NodeID) bool { return slices.Contains(c.Nodes, n) })
	if len(left) == len(held) {
		return nil
	}
	j.setHolders(i, int(c.Pod), left)
	for _, n := range held {
		if !slices.Contains(left, n) {
			t.event(Event{Name: "image.damaged", Job: j.ID, Epoch: c.Epoch, Node: n, Data: map[string]any{"pod": c.Pod}})
		}
	}
	t.changed(j.ID)
	return nil
}

// needImages begins the recovery of a job anew, from an older epoch, when a
// pod that is being rebuilt has no image left; without an older one it ends
// the job.
func (t *txn) needImages(id job.ID, cause string) {
	j := t.s.Jobs[id]
	if j.Recovery == nil || len(withoutImage(j.Find(j.Recovery.Epoch), j.Recovery)) == 0 {
		return
	}
	t.recover(loss{id: id, why: WhyRedo, cause: cause})
}
