package scheduler

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lampause/lampause/job"
)

// TestRandomHistories applies random commands, most of them sensible, and
// checks after each one what may never happen. A failing seed replays exactly.
func TestRandomHistories(t *testing.T) {
	seeds := 2000
	if testing.Short() {
		seeds = 300
	}
	defer debug.SetGCPercent(debug.SetGCPercent(1000))
	var next, commits, recoveries, ended atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed := int(next.Add(1)) - 1; seed < seeds && !t.Failed(); seed = int(next.Add(1)) - 1 {
				h := &history{rnd: rand.New(rand.NewPCG(uint64(seed), 7))} //nolint:gosec // a test
				for range 120 {
					if err := h.step(); err != nil {
						t.Errorf("seed %d: %v\n%s", seed, err, h.story())
						return
					}
				}
				commits.Add(int64(h.commits))
				recoveries.Add(int64(h.recoveries))
				ended.Add(int64(h.ended))
			}
		})
	}
	wg.Wait()
	t.Logf("%d seeds: %d commits, %d recoveries, %d ends", seeds, commits.Load(), recoveries.Load(), ended.Load())
	if commits.Load() == 0 || recoveries.Load() == 0 || ended.Load() == 0 {
		t.Error("the histories do not reach everything")
	}
}

type history struct {
	rnd                        *rand.Rand
	st                         *State
	index                      uint64
	log                        []Command
	commits, recoveries, ended int
}

// story tells the commands so far, one a line.
func (h *history) story() string {
	var b strings.Builder
	for _, c := range h.log {
		raw, err := json.Marshal(c)
		fmt.Fprintf(&b, "%s%v\n", raw, err)
	}
	return b.String()
}

// step applies one command. Every tenth one goes through JSON, as in the log,
// and what it must leave alone is compared.
func (h *history) step() error {
	c := h.command()
	h.log = append(h.log, c)
	back, pure := c, h.rnd.IntN(10) == 0
	var before []byte
	if pure {
		raw, err := json.Marshal(c)
		if err != nil {
			return err
		}
		back = Command{}
		if err := json.Unmarshal(raw, &back); err != nil {
			return err
		}
		if before, err = json.Marshal(h.st); err != nil {
			return err
		}
	}
	old := h.st
	h.index++
	next, acts := Step(old, h.index, back)
	if len(acts) == 1 && acts[0].Refusal != nil && acts[0].Refusal.Code == Broken {
		return acts[0].Refusal
	}
	if pure {
		if after, err := json.Marshal(old); err != nil || string(after) != string(before) {
			return fmt.Errorf("the old state was changed (%v)", err) //nolint:errorlint // mostly nil
		}
	}
	h.st = next
	if err := Check(next); err != nil {
		return err
	}
	if old == nil {
		return nil
	}
	return h.transition(old, next, c, acts)
}

// transition checks what may not happen between two states.
func (h *history) transition(old, next *State, c Command, acts []Action) error {
	if next.View < old.View || next.LastJob < old.LastJob || next.LastSeq < old.LastSeq {
		return fmt.Errorf("a counter went back")
	}
	for id, j := range next.Jobs {
		o := old.Jobs[id]
		if o == nil {
			continue
		}
		switch {
		case j.Incarnation < o.Incarnation || j.Incarnation > o.Incarnation+2:
			return fmt.Errorf("job %v: incarnation %d after %d", id, j.Incarnation, o.Incarnation)
		case j.LastEpoch < o.LastEpoch:
			return fmt.Errorf("job %v: epoch number %d after %d", id, j.LastEpoch, o.LastEpoch)
		case o.State.Final() && !j.State.Final() && c.Restart == nil:
			return fmt.Errorf("job %v rose from %s to %s", id, o.State, j.State)
		case o.Recovery != nil && j.Newest() != nil && j.Newest().Epoch > o.Newest().Epoch:
			return fmt.Errorf("job %v: committed while recovering", id)
		case o.Recovery != nil && j.Recovery != nil && j.Incarnation == o.Incarnation && j.Recovery.Epoch != o.Recovery.Epoch:
			return fmt.Errorf("job %v: a recovery changed its epoch", id)
		}
		if j.Newest() != nil && (o.Newest() == nil || j.Newest().Epoch > o.Newest().Epoch) && c.Restart == nil {
			h.commits++
			if o.Open == nil || o.Open.Epoch != j.Newest().Epoch {
				return fmt.Errorf("job %v: committed epoch %d, which was not open", id, j.Newest().Epoch)
			}
		}
		if j.Recovery != nil && j.Incarnation > o.Incarnation {
			h.recoveries++
			if err := usedOnce(next, j); err != nil {
				return err
			}
		}
		if j.State.Final() && !o.State.Final() {
			h.ended++
		}
	}
	for _, a := range acts {
		if a.Kind == ActDrop && slices.Contains(next.ImagesOn(a.Node, a.Job), a.Epoch) && next.Jobs[a.Job].Find(a.Epoch) != nil {
			return fmt.Errorf("job %v: epoch %d dropped on %s, and still recorded", a.Job, a.Epoch, a.Node)
		}
	}
	return nil
}

// usedOnce checks that every lost pod has a node of its own, and that none
// that took over is still offered as a spare.
func usedOnce(s *State, j *Job) error {
	seen := map[job.NodeID]bool{}
	for _, l := range j.Recovery.Lost {
		if l.To == "" {
			continue
		}
		if seen[l.To] {
			return fmt.Errorf("%v: node %s used twice", j, l.To)
		}
		seen[l.To] = true
		for _, o := range s.Jobs {
			if slices.Contains(s.spares(o), l.To) {
				return fmt.Errorf("%v: node %s is in use and offered to job %v", j, l.To, o.ID)
			}
		}
	}
	return nil
}

func (h *history) command() Command {
	if h.st == nil || len(h.st.Nodes) < 3 {
		return Command{Join: h.join()}
	}
	alive := h.st.AliveNodes()
	ids := h.st.JobIDs()
	if r := h.rnd.IntN(100); r < 8 || len(ids) == 0 {
		if r < 3 || len(alive) < 3 {
			return Command{Join: h.join()}
		}
		return Command{Submit: &Submit{Key: fmt.Sprint(h.rnd.IntN(40)), Spec: h.spec()}}
	} else if r < 13 && len(alive) > 0 {
		c := &DeclareDead{DetectMS: 1}
		for range 1 + h.rnd.IntN(2) {
			n := alive[h.rnd.IntN(len(alive))]
			c.Nodes = append(c.Nodes, NodeRef{Node: n.ID, Boot: n.Boot})
		}
		return Command{DeclareDead: c}
	} else if r < 14 && len(alive) > 0 {
		return Command{Leave: &Leave{Node: alive[h.rnd.IntN(len(alive))].ID}}
	} else if r < 20 {
		return Command{Join: h.join()}
	}
	return h.jobCommand(h.st.Jobs[ids[h.rnd.IntN(len(ids))]])
}

func (h *history) join() *Join {
	id := job.NodeID(fmt.Sprintf("n%d", 1+h.rnd.IntN(6)))
	j := &Join{Node: id, Boot: 1, Session: uint64(h.rnd.IntN(3)), Slots: 1 + h.rnd.IntN(3), Role: Compute}
	if h.rnd.IntN(3) == 0 {
		j.Role = Spare
	}
	if h.st != nil {
		if n, ok := h.st.Nodes[id]; ok {
			j.Boot = n.Boot + job.Boot(h.rnd.IntN(2))
		}
	}
	return j
}

func (h *history) spec() job.Spec {
	s := testSpec(args{"n": fmt.Sprint(1 + h.rnd.IntN(6))})
	s.NoSpare = []string{job.NoSpareWait, job.NoSpareAbort}[h.rnd.IntN(2)]
	s.OnFailure = []string{job.OnFailurePause, job.OnFailurePause, job.OnFailurePause, job.OnFailureRestart, job.OnFailureAbort}[h.rnd.IntN(5)]
	s.MapBy = []string{job.MapByBlock, job.MapByNode}[h.rnd.IntN(2)]
	return s
}

func (h *history) jobCommand(j *Job) Command {
	inc := j.Incarnation
	if h.rnd.IntN(20) == 0 {
		inc--
	}
	pod := job.PodIndex(h.rnd.IntN(len(j.Pods)))
	switch h.rnd.IntN(16) {
	case 0, 1, 2:
		return Command{Started: &Started{Job: j.ID, Incarnation: inc}}
	case 3, 4:
		return Command{BeginEpoch: &BeginEpoch{Job: j.ID, Incarnation: inc, Term: 1, Attempt: h.rnd.Uint64N(1000)}}
	case 5, 6, 7, 8:
		return Command{Commit: h.commit(j, inc)}
	case 9:
		return Command{Abandon: &Abandon{Job: j.ID, Epoch: j.LastEpoch}}
	case 10:
		return Command{Collect: &Collect{Job: j.ID, Before: j.LastEpoch}}
	case 11:
		c := &Recover{Job: j.ID, Incarnation: inc, Why: WhyKilled, Pods: []job.PodIndex{pod}}
		if h.rnd.IntN(3) == 0 {
			c.Why, c.Move = WhyRedo, []job.PodIndex{pod}
		}
		return Command{Recover: c}
	case 12, 13:
		return Command{Recovered: &Recovered{Job: j.ID, Incarnation: inc}}
	case 14:
		if h.rnd.IntN(4) > 0 {
			alive := h.st.AliveNodes()
			if len(alive) == 0 {
				return Command{Note: &Note{}}
			}
			n := alive[h.rnd.IntN(len(alive))]
			return Command{Replicated: &Replicated{Job: j.ID, Epoch: j.LastEpoch, Pod: pod, Node: NodeRef{Node: n.ID, Boot: n.Boot}}}
		}
		return Command{End: &End{Job: j.ID, Code: h.rnd.IntN(2), Keep: h.rnd.IntN(2) == 0}}
	}
	if j.State.Final() && h.rnd.IntN(2) == 0 {
		return Command{Restart: &Restart{Job: Job{ID: j.ID}}}
	}
	return Command{Retire: &Retire{Job: j.ID}}
}

func (h *history) commit(j *Job, inc job.Incarnation) *Commit {
	c := &Commit{Job: j.ID, Incarnation: inc, Epoch: j.LastEpoch}
	all := h.st.AliveNodes()
	for i := range j.Pods {
		im := PodImage{Pod: job.PodIndex(i), Holders: []job.NodeID{j.Pods[i].Node}}
		if len(all) > 0 {
			im.Holders = append(im.Holders, all[h.rnd.IntN(len(all))].ID)
		}
		c.Images = append(c.Images, im)
	}
	return c
}
