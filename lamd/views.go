package lamd

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// nodesView renders the nodes for `lam nodes`. suspects and leader are the
// leader's volatile knowledge; voters maps nodes to their part in raft.
func nodesView(st *scheduler.State, suspects map[job.NodeID]bool, raft map[job.NodeID]string) []control.Node {
	out := []control.Node{}
	for _, n := range st.SortedNodes() {
		v := control.Node{
			Node: n.ID, Addr: n.Addr, State: string(n.State), Role: string(n.Role),
			Slots: n.Slots, Boot: n.Boot, Raft: raft[n.ID], Ranks: []string{}, Jobs: []job.ID{},
		}
		if n.State == scheduler.Alive && suspects[n.ID] {
			v.State = "suspect"
		}
		for _, id := range st.JobIDs() {
			addRanks(&v, st.Jobs[id], n)
		}
		out = append(out, v)
	}
	return out
}

// addRanks adds the ranks that a job has on a node.
func addRanks(v *control.Node, j *scheduler.Job, n scheduler.Node) {
	if j.State.Final() {
		return
	}
	for _, p := range j.Pods {
		if p.Node != n.ID || p.Boot != n.Boot {
			continue
		}
		for _, r := range p.Ranks {
			v.Ranks = append(v.Ranks, fmt.Sprintf("%d:%d", j.ID, r))
		}
		if !slices.Contains(v.Jobs, j.ID) {
			v.Jobs = append(v.Jobs, j.ID)
		}
	}
}

// jobView renders a line of `lam jobs`.
func jobView(st *scheduler.State, j *scheduler.Job) control.Job {
	v := control.Job{
		Job: j.ID, Name: j.Spec.Name, State: j.Shown(), Ranks: j.Spec.Ranks, Nodes: []job.NodeID{},
		Recoveries: j.Recoveries, Placement: j.Placement(), ExitCode: j.ExitCode, Protected: st.Protected(j),
	}
	if e := j.Newest(); e != nil {
		v.Epoch = e.Epoch
	}
	for _, p := range j.Pods {
		if p.Node != "" && !slices.Contains(v.Nodes, p.Node) {
			v.Nodes = append(v.Nodes, p.Node)
		}
	}
	return v
}

// detailView renders `lam job J`.
func detailView(st *scheduler.State, j *scheduler.Job) control.JobDetail {
	d := control.JobDetail{
		Job: jobView(st, j), Spec: j.Spec, Incarnation: j.Incarnation, Book: j.Book(),
		Epochs: []control.EpochInfo{}, Bills: []control.Bill{}, Reason: j.Reason, Exits: j.Exits,
	}
	if d.Reason == "" {
		d.Reason = j.Unprotected
	}
	d.Spec.Env = nil // environments hold secrets
	d.Spec.More = slices.Clone(d.Spec.More)
	for i := range d.Spec.More {
		d.Spec.More[i].Env = nil
	}
	for _, e := range j.Epochs {
		info := control.EpochInfo{
			Epoch: e.Epoch, Bytes: e.Bytes, NewBytes: e.NewBytes(), StallMS: e.StallMS,
			Time: time.UnixMilli(e.AtMS).UTC(), Replicas: map[string][]job.NodeID{},
		}
		for _, im := range e.Images {
			info.Replicas[fmt.Sprint(im.Pod)] = im.Holders
		}
		d.Epochs = append(d.Epochs, info)
	}
	for _, b := range j.Bills {
		d.Bills = append(d.Bills, control.Bill(b))
	}
	return d
}

// eventView renders a line of `lam events`.
func eventView(e scheduler.Event) control.Event {
	return control.Event{
		Seq: e.Seq, Time: time.UnixMilli(e.AtMS).UTC(), Event: e.Name,
		Job: e.Job, Epoch: e.Epoch, Node: e.Node, Data: e.Data,
	}
}

// endedView renders the end of a job. Message says what lampause has to say
// about an end that was not the program's own.
func endedView(j *scheduler.Job) control.Ended {
	var e control.Ended
	if j.ExitCode != nil {
		e.ExitCode = *j.ExitCode
	}
	if j.Reason != "" {
		e.Message = fmt.Sprintf("job %d (%s): %s", j.ID, j.Spec.Name, j.Reason)
	}
	if j.Recoveries > 0 {
		e.Summary = summary(j)
	}
	return e
}

// summary is the one line after recoveries: how many, what they cost.
func summary(j *scheduler.Job) string {
	var pause, lost float64
	var nodes, skipped []string
	for _, b := range j.Bills {
		pause += b.MS["total"]
		lost += b.MS["lost_work"]
		if b.Skipped != 0 {
			skipped = append(skipped, fmt.Sprintf("no intact image of epoch %d was left: went on from epoch %d", b.Skipped, b.Epoch))
		}
		if b.MS["detect"] == 0 {
			continue // a rank was killed, or the job restarted: no node was lost
		}
		for i, n := range b.Lost {
			if i < len(b.Spares) && b.Spares[i] == n {
				continue // rebuilt where it was
			}
			nodes = append(nodes, string(n))
		}
	}
	s := fmt.Sprintf("job %d (%s): %d recover", j.ID, j.Spec.Name, j.Recoveries)
	if j.Recoveries == 1 {
		s += "y"
	} else {
		s += "ies"
	}
	if len(nodes) > 0 {
		s += " after the loss of " + strings.Join(nodes, ", ")
	}
	s += fmt.Sprintf("; paused %.0f ms, repeated %.0f ms of work", pause, lost)
	return strings.Join(append([]string{s}, skipped...), "; ")
}
