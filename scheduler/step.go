package scheduler

import (
	"fmt"
	"maps"
	"slices"

	"github.com/lampause/lampause/job"
)

// Step applies a command to a state: the whole of what the cluster agrees on
// happens here. It is deterministic, reads no clock and leaves s untouched; s
// may be nil for a new cluster. index is the raft index of the entry.
//
// The invariants of Check hold for every state that it returns: a command that
// would break one is refused as Broken, alike on every node.
//
// A command that does not fit changes nothing but Index and yields one
// ActRefuse. Applying a command twice has the effect of applying it once,
// except for BeginEpoch of another attempt.
func Step(s *State, index uint64, c Command) (*State, []Action) {
	t := &txn{s: s.clone(), at: c.AtMS, index: index, moved: map[job.NodeID]job.NodeID{}}
	r := t.apply(c)
	if r != nil {
		n := s.clone()
		n.Index = index
		return n, []Action{{Kind: ActRefuse, Refusal: r}}
	}
	t.s.Index = index
	if err := Check(t.s); err != nil {
		n := s.clone()
		n.Index = index
		return n, []Action{{Kind: ActRefuse, Refusal: refuse(Broken, job.ExitInternal, "refused, for it would break an invariant: %v", err)}}
	}
	return t.s, t.acts
}

// txn is one Step under way: a copy of the state that it may write to.
type txn struct {
	s     *State
	acts  []Action
	at    int64
	index uint64
	moved map[job.NodeID]job.NodeID // lost node -> the spare that takes its pods, over all jobs
}

func (t *txn) apply(c Command) *Refusal {
	switch {
	case c.Join != nil:
		return t.join(c.Join)
	case c.Leave != nil:
		return t.leave(c.Leave)
	case c.DeclareDead != nil:
		return t.declareDead(c.DeclareDead)
	case c.Submit != nil:
		return t.submit(c.Submit)
	case c.Restart != nil:
		return t.restart(c.Restart)
	case c.Started != nil:
		return t.started(c.Started)
	case c.Suspend != nil:
		return t.suspend(c.Suspend)
	case c.End != nil:
		return t.end(c.End)
	case c.Retire != nil:
		return t.retire(c.Retire)
	case c.BeginEpoch != nil:
		return t.beginEpoch(c.BeginEpoch)
	case c.Commit != nil:
		return t.commit(c.Commit)
	case c.Abandon != nil:
		return t.abandon(c.Abandon)
	case c.Collect != nil:
		return t.collect(c.Collect)
	case c.Replicated != nil:
		return t.replicated(c.Replicated)
	case c.Damaged != nil:
		return t.damaged(c.Damaged)
	case c.Recover != nil:
		return t.recoverPods(c.Recover)
	case c.Recovered != nil:
		return t.recovered(c.Recovered)
	case c.Note != nil:
		e := c.Note.Event
		t.event(e)
		return nil
	}
	return refuse(BadCommand, job.ExitInternal, "empty command")
}

// clone copies the maps of s; the records in them are shared until written.
func (s *State) clone() *State {
	if s == nil {
		return &State{Nodes: map[job.NodeID]Node{}, Jobs: map[job.ID]*Job{}, Keys: map[string]job.ID{}}
	}
	n := *s
	n.Nodes, n.Jobs, n.Keys = maps.Clone(s.Nodes), maps.Clone(s.Jobs), maps.Clone(s.Keys)
	if n.Nodes == nil {
		n.Nodes = map[job.NodeID]Node{}
	}
	if n.Jobs == nil {
		n.Jobs = map[job.ID]*Job{}
	}
	if n.Keys == nil {
		n.Keys = map[string]job.ID{}
	}
	return &n
}

// job returns a copy of a job that may be written to, already in the state;
// nil when there is none. Inner slices of Epochs[i] are still shared.
func (t *txn) job(id job.ID) *Job {
	old := t.s.Jobs[id]
	if old == nil {
		return nil
	}
	j := *old
	j.Pods = slices.Clone(old.Pods)
	j.Epochs = slices.Clone(old.Epochs)
	j.Bills = slices.Clone(old.Bills)
	t.s.Jobs[id] = &j
	return &j
}

// find is job, with the refusal for an unknown one.
func (t *txn) find(id job.ID) (*Job, *Refusal) {
	if j := t.job(id); j != nil {
		return j, nil
	}
	return nil, refuse(NoSuch, job.ExitUsage, "there is no job %v: `lam jobs` lists them", id)
}

// live is find for a job that has not ended and is in that incarnation (0 =
// any).
func (t *txn) live(id job.ID, inc job.Incarnation) (*Job, *Refusal) {
	j, r := t.find(id)
	switch {
	case r != nil:
		return nil, r
	case j.State.Final():
		return nil, refuse(Busy, job.ExitUsage, "job %v has ended", id)
	case inc != 0 && inc != j.Incarnation:
		return nil, refuse(Stale, job.ExitInternal, "job %v is in incarnation %d, not %d", id, j.Incarnation, inc)
	}
	return j, nil
}

// event records e and numbers it.
func (t *txn) event(e Event) {
	t.s.LastSeq++
	e.Seq, e.AtMS = t.s.LastSeq, t.at
	old := t.s.Events
	if len(old) >= maxEvents {
		old = old[len(old)-maxEvents+1:]
	}
	t.s.Events = append(slices.Clone(old), e)
	t.acts = append(t.acts, Action{Kind: ActEvent, Job: e.Job, Node: e.Node, Epoch: e.Epoch, Event: &e})
}

func (t *txn) changed(id job.ID) {
	t.acts = append(t.acts, Action{Kind: ActJob, Job: id})
}

func (t *txn) drop(id job.ID, e job.Epoch, nodes []job.NodeID) {
	for _, n := range nodes {
		if t.s.Nodes[n].State == Alive {
			t.acts = append(t.acts, Action{Kind: ActDrop, Job: id, Epoch: e, Node: n})
		}
	}
}

func refuse(code RefusalCode, exit int, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Exit: exit, Text: fmt.Sprintf(format, args...)}
}
