package scheduler

import (
	"fmt"
	"slices"

	"github.com/lampause/lampause/job"
)

func (t *txn) submit(c *Submit) *Refusal {
	if id, ok := t.s.Keys[c.Key]; ok && c.Key != "" {
		t.changed(id) // repeated: answered with the same job
		return nil
	}
	spec := c.Spec
	if err := spec.Validate(); err != nil {
		return refuse(BadCommand, job.ExitUsage, "%v", err)
	}
	if r := t.s.admissible(&spec); r != nil {
		return r
	}
	pods, r := Place(t.s, &spec)
	if r != nil {
		return r
	}
	t.s.LastJob++
	id := t.s.LastJob
	j := &Job{ID: id, Key: c.Key, Spec: spec, State: job.Starting, Incarnation: 1}
	for i, p := range pods {
		j.Pods = append(j.Pods, newPod(id, job.PodIndex(i), p, t.s.Nodes[p.Node].Boot))
	}
	t.s.Jobs[id] = j
	if c.Key != "" {
		t.s.Keys[c.Key] = id
	}
	t.event(Event{Name: "job.submitted", Job: id, Data: map[string]any{"name": spec.Name, "ranks": spec.Ranks, "nodes": j.nodes()}})
	t.intend(id)
	t.changed(id)
	return nil
}

// admissible refuses what this cluster cannot promise.
func (s *State) admissible(spec *job.Spec) *Refusal {
	alive := s.AliveNodes()
	if spec.NoSpare == job.NoSpareShare {
		return refuse(BadCommand, job.ExitUsage, "--no-spare share is not available: use wait or abort")
	}
	if spec.OnFailure == job.OnFailurePause && spec.CkptInterval > 0 && len(alive) < 3 {
		return refuse(NoRoom, job.ExitNoNodes,
			"--on-failure pause needs 3 nodes to agree, and this cluster has %d: add a node or spare, or use --on-failure abort or --ckpt-interval off", len(alive))
	}
	pool := 0
	for _, n := range alive {
		if n.Role == Spare || slices.ContainsFunc(spec.Hosts, func(h job.HostSlots) bool { return h.Spare && h.Node == n.ID }) {
			pool++
		}
	}
	if spec.Spares > pool {
		return refuse(NoRoom, job.ExitNoNodes, "%d spares wanted but the pool has %d: ask for fewer, or boot with more (--spares %d)", spec.Spares, pool, spec.Spares)
	}
	return nil
}

func (t *txn) started(c *Started) *Refusal {
	j, r := t.live(c.Job, c.Incarnation)
	switch {
	case r != nil:
		return r
	case j.State == job.Running:
		return nil
	case j.State != job.Starting:
		return refuse(Busy, job.ExitInternal, "job %v is %s", c.Job, j.State)
	}
	j.State = job.Running
	t.event(Event{Name: "job.running", Job: j.ID})
	t.changed(j.ID)
	return nil
}

func (t *txn) suspend(c *Suspend) *Refusal {
	j, r := t.live(c.Job, 0)
	if r != nil {
		return r
	}
	if j.Suspended == c.On {
		return nil
	}
	j.Suspended = c.On
	name := "job.resumed"
	if c.On {
		name = "job.suspended"
	}
	t.event(Event{Name: name, Job: j.ID})
	t.changed(j.ID)
	return nil
}

func (t *txn) end(c *End) *Refusal {
	j, r := t.live(c.Job, c.Incarnation)
	if r != nil {
		return r
	}
	if c.Keep && j.Newest() == nil {
		return refuse(Busy, job.ExitUsage, "job %v has no committed epoch to keep", c.Job)
	}
	t.finish(j, c)
	t.poolChanged()
	return nil
}

// finish ends a job in a writable copy. Its record names the result; the
// conductor then takes its pods away and retires it.
func (t *txn) finish(j *Job, c *End) {
	t.voidRound(j, "the job ended")
	code := c.Code
	j.ExitCode, j.Reason, j.Exits, j.KeepImages = &code, c.Reason, c.Exits, c.Keep
	j.State, j.Recovery, j.Suspended = job.Done, nil, false
	if code != 0 {
		j.State = job.Failed
	}
	if !c.Keep {
		for _, e := range j.Epochs {
			t.dropEpoch(j, e)
		}
		j.Epochs = nil
	}
	data := map[string]any{"exit_code": code, "state": string(j.State), "recoveries": j.Recoveries}
	if c.Reason != "" {
		data["reason"] = c.Reason
	}
	t.event(Event{Name: "job.ended", Job: j.ID, Data: data})
	t.changed(j.ID)
}

func (t *txn) retire(c *Retire) *Refusal {
	j, r := t.find(c.Job)
	switch {
	case r != nil:
		return r
	case !j.State.Final():
		return refuse(Busy, job.ExitInternal, "job %v has not ended", c.Job)
	case j.Retired:
		return nil
	}
	j.Retired = true
	t.changed(j.ID)
	var ended []job.ID
	for _, id := range t.s.JobIDs() {
		if e := t.s.Jobs[id]; e.Retired && !e.KeepImages {
			ended = append(ended, id)
		}
	}
	for len(ended) > maxEnded {
		delete(t.s.Keys, t.s.Jobs[ended[0]].Key)
		delete(t.s.Jobs, ended[0])
		ended = ended[1:]
	}
	return nil
}

func (t *txn) restart(c *Restart) *Refusal {
	id := c.Job.ID
	j := t.job(id)
	if j == nil {
		var r *Refusal
		if j, r = t.adopt(&c.Job); r != nil {
			return r
		}
	}
	if !j.State.Final() {
		return refuse(Busy, job.ExitUsage, "job %v is %s: end it before restarting it", id, j.State)
	}
	if !j.Retired {
		return refuse(Busy, job.ExitUsage, "job %v is still being taken down: try again in a moment", id)
	}
	t.refind(j, c.Job.Epochs)
	want := c.Epoch
	if e := j.Whole(); want == 0 && e != nil {
		want = e.Epoch
	} else if want == 0 && j.Newest() != nil {
		want = j.Newest().Epoch // to name what is missing
	}
	e := j.Find(want)
	if e == nil {
		return refuse(NoSuch, job.ExitUsage, "job %v has no committed epoch %d that could be restarted", id, want)
	}
	rec := &Recovery{Incarnation: j.Incarnation + 1, Epoch: e.Epoch, Cause: "restart", Tries: 1}
	for i := range j.Pods {
		if len(e.Images[i].Holders) == 0 {
			return refuse(NoSuch, job.ExitNoNodes, "no intact image of %s at epoch %d was found", ranksText(j, []job.PodIndex{job.PodIndex(i)}), e.Epoch)
		}
		j.Pods[i].Node = ""
	}
	for i := range j.Pods {
		p := &j.Pods[i]
		n := t.s.restartNode(j, e, p.Index)
		if n == "" {
			return refuse(NoRoom, job.ExitNoNodes, "job %v needs %d nodes with %d free slots each: add nodes or end other jobs", id, len(j.Pods), len(p.Ranks))
		}
		p.Node, p.Boot, p.Built = n, t.s.Nodes[n].Boot, rec.Incarnation
		p.MAC = podMAC(id, p.Index, rec.Incarnation)
		rec.Lost = append(rec.Lost, LostPod{Pod: p.Index, From: n, To: n})
	}
	j.Epochs = slices.DeleteFunc(j.Epochs, func(o Epoch) bool { return o.Epoch > e.Epoch })
	j.State, j.Incarnation, j.Recovery = job.Recovering, rec.Incarnation, rec
	j.ExitCode, j.Reason, j.Exits, j.KeepImages, j.Retired, j.Kills = nil, "", nil, false, false, 0
	t.event(Event{Name: "job.restarted", Job: id, Epoch: e.Epoch, Data: map[string]any{"incarnation": j.Incarnation, "nodes": j.nodes()}})
	t.intend(id)
	t.changed(id)
	return nil
}

// adopt takes in a job that only its images remember.
func (t *txn) adopt(from *Job) (*Job, *Refusal) {
	switch {
	case from.ID == 0 || len(from.Pods) == 0 || len(from.Epochs) == 0:
		return nil, refuse(NoSuch, job.ExitUsage, "there is no job %v, and no image of it was found", from.ID)
	case from.Spec.Validate() != nil:
		return nil, refuse(BadCommand, job.ExitUsage, "job %v: its record is not valid: %v", from.ID, from.Spec.Validate())
	}
	code := job.ExitCheckpoint
	j := &Job{
		ID: from.ID, Spec: from.Spec, State: job.Failed, ExitCode: &code, Incarnation: from.Incarnation,
		LastEpoch: from.LastEpoch, Recoveries: from.Recoveries, Retired: true, KeepImages: true,
	}
	for i, p := range from.Pods {
		j.Pods = append(j.Pods, newPod(j.ID, job.PodIndex(i), job.PodPlacement{Ranks: p.Ranks}, 0))
	}
	for _, e := range from.Epochs {
		if len(e.Images) != len(j.Pods) {
			return nil, refuse(BadCommand, job.ExitUsage, "job %v: epoch %d has %d images for %d pods", j.ID, e.Epoch, len(e.Images), len(j.Pods))
		}
		e.Images = slices.Clone(e.Images)
		for i := range e.Images {
			e.Images[i].Holders = t.alive(e.Images[i].Holders)
		}
		j.Epochs = append(j.Epochs, e)
		j.LastEpoch = max(j.LastEpoch, e.Epoch)
	}
	t.s.Jobs[j.ID] = j
	t.s.LastJob = max(t.s.LastJob, j.ID)
	return j, nil
}

// restartNode chooses where a pod of a restarted job goes: a compute node that
// holds its image, any other, at last a spare.
func (s *State) restartNode(j *Job, e *Epoch, pod job.PodIndex) job.NodeID {
	best, score := job.NodeID(""), 0
	for _, n := range s.AliveNodes() {
		if slices.ContainsFunc(j.Pods, func(p Pod) bool { return p.Node == n.ID }) {
			continue
		}
		v := 1
		if n.Slots-s.ranksOn(n.ID) >= len(j.Pods[pod].Ranks) {
			v += 4
		} else if j.Spec.PPN == 0 && len(j.Spec.Hosts) == 0 {
			continue
		}
		if n.Role == Compute {
			v += 2
		}
		if slices.Contains(e.Images[pod].Holders, n.ID) {
			v++
		}
		if v > score {
			best, score = n.ID, v
		}
	}
	return best
}

// String names the job for people.
func (j *Job) String() string { return fmt.Sprintf("job %v (%s)", j.ID, j.Spec.Name) }
