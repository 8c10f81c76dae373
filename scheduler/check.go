package scheduler

import (
	"fmt"
	"slices"

	"github.com/lampause/lampause/job"
)

// Check returns the first broken invariant of a state, nil when it is sound.
// It is cheap enough to be run after every command, and Step does so.
func Check(s *State) error {
	for id, j := range s.Jobs {
		if err := s.checkJob(j); err != nil {
			return fmt.Errorf("job %v: %w", id, err)
		}
	}
	return nil
}

func (s *State) checkJob(j *Job) error {
	if err := checkEpochs(j); err != nil {
		return err
	}
	switch {
	case (j.Recovery != nil) != (j.State == job.Recovering):
		return fmt.Errorf("state %s with recovery %v", j.State, j.Recovery)
	case j.State.Final() != (j.ExitCode != nil):
		return fmt.Errorf("state %s, exit code set: %t", j.State, j.ExitCode != nil)
	case j.Open != nil && j.State != job.Running:
		return fmt.Errorf("epoch %d open while %s", j.Open.Epoch, j.State)
	}
	if j.State.Final() {
		return nil
	}
	used := map[job.NodeID]bool{}
	for i, p := range j.Pods {
		switch {
		case int(p.Index) != i || len(p.Ranks) == 0:
			return fmt.Errorf("pod %d has index %d and %d ranks", i, p.Index, len(p.Ranks))
		case p.Node == "" && (j.Recovery == nil || !j.Recovery.Waiting):
			return fmt.Errorf("pod %d has no node", i)
		case p.Node != "" && used[p.Node]:
			return fmt.Errorf("two pods on node %s", p.Node)
		case p.Node != "" && !s.IsAlive(NodeRef{Node: p.Node, Boot: p.Boot}):
			return fmt.Errorf("pod %d on dead node %s", i, p.Node)
		case p.Built > j.Incarnation:
			return fmt.Errorf("pod %d built in incarnation %d of %d", i, p.Built, j.Incarnation)
		}
		used[p.Node] = true
	}
	return s.checkRecovery(j)
}

func checkEpochs(j *Job) error {
	last := job.Epoch(0)
	for _, e := range j.Epochs {
		switch {
		case e.Epoch <= last || e.Epoch > j.LastEpoch:
			return fmt.Errorf("epoch %d after %d, newest number %d", e.Epoch, last, j.LastEpoch)
		case len(e.Images) != len(j.Pods):
			return fmt.Errorf("epoch %d has %d images for %d pods", e.Epoch, len(e.Images), len(j.Pods))
		}
		last = e.Epoch
	}
	if j.Open != nil && (j.Open.Epoch <= last || j.Open.Epoch > j.LastEpoch) {
		return fmt.Errorf("open epoch %d after %d", j.Open.Epoch, last)
	}
	return nil
}

func (s *State) checkRecovery(j *Job) error {
	r := j.Recovery
	if r == nil {
		return nil
	}
	e := j.Find(r.Epoch)
	switch {
	case e == nil:
		return fmt.Errorf("recovery to epoch %d, which is not committed", r.Epoch)
	case r.Incarnation != j.Incarnation:
		return fmt.Errorf("recovery of incarnation %d in %d", r.Incarnation, j.Incarnation)
	case r.Waiting != slices.ContainsFunc(r.Lost, func(l LostPod) bool { return l.To == "" }):
		return fmt.Errorf("recovery waiting: %t, lost %v", r.Waiting, r.Lost)
	}
	for _, l := range r.Lost {
		p := j.Pods[l.Pod]
		switch {
		case p.Node != l.To:
			return fmt.Errorf("lost pod %d on %q, not %q", l.Pod, p.Node, l.To)
		case p.Built != r.Incarnation:
			return fmt.Errorf("lost pod %d built in %d, not %d", l.Pod, p.Built, r.Incarnation)
		case len(e.Images[l.Pod].Holders) == 0:
			return fmt.Errorf("lost pod %d without an image", l.Pod)
		}
	}
	return nil
}
