package lamd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler/conduct"
)

// treeKind says what a part asks for, and so what its body is.
type treeKind string

// The kinds.
const (
	treePhase  treeKind = "phase"  // podapi.PhaseRequest
	treeStart  treeKind = "start"  // podapi.PodSpec
	treeKill   treeKind = "kill"   // killRequest
	treeCopy   treeKind = "copy"   // copyRequest
	treeSeal   treeKind = "seal"   // sealRequest
	treeFences treeKind = "fences" // nothing
)

// treeAsk is an action that may go through the tree, as it travels.
type treeAsk struct {
	node    job.NodeID
	ref     conduct.Ref
	job     job.ID
	timeout time.Duration
	kind    treeKind
	body    any
}

// askOf returns what an action asks of a node; false for actions that are no
// business of the tree. OpWrite is none: what follows a pod's write does not
// wait for the others. Nor are copies that are not urgent, for the same reason.
func askOf(act conduct.Action) (treeAsk, bool) {
	switch a := act.(type) {
	case conduct.Call:
		return treeAsk{a.Node, a.Ref, a.Job, a.Timeout, treePhase, a.Request}, a.Request.Op != podapi.OpWrite
	case conduct.StartPod:
		return treeAsk{a.Node, a.Ref, a.Job, a.Timeout, treeStart, a.Spec}, true
	case conduct.KillPod:
		return treeAsk{a.Node, a.Ref, a.Job, a.Timeout, treeKill, killOf(a)}, true
	case conduct.Copy:
		return treeAsk{a.To, a.Ref, a.Job, a.Timeout, treeCopy, copyOf(a)}, a.Urgent
	case conduct.Seal:
		r, err := sealOf(a)
		return treeAsk{a.Node, a.Ref, a.Job.ID, a.Timeout, treeSeal, r}, err == nil
	case conduct.PullFences:
		return treeAsk{a.Node, a.Ref, a.Job, a.Timeout, treeFences, struct{}{}}, true
	}
	return treeAsk{}, false
}

func killOf(a conduct.KillPod) killRequest {
	return killRequest{Job: a.Job, Pod: a.Pod, UpTo: a.UpTo, Drain: a.Drain}
}

func copyOf(a conduct.Copy) copyRequest {
	return copyRequest{Job: a.Job, Epoch: a.Epoch, Pod: a.Pod, From: a.From, Written: a.Written, Urgent: a.Urgent, Digests: a.Digests}
}

// sealOf makes the COMMITTED record out of the replicated one.
func sealOf(a conduct.Seal) (sealRequest, error) {
	record, err := json.Marshal(a.Job)
	if err != nil {
		return sealRequest{}, fmt.Errorf("encode job record: %w", err)
	}
	digests := make(map[job.PodIndex]string, len(a.Epoch.Images))
	for _, im := range a.Epoch.Images {
		digests[im.Pod] = im.Written.Digest
	}
	return sealRequest{Commit: image.Commit{
		Job: a.Job.ID, Epoch: a.Epoch.Epoch, RaftIndex: a.Epoch.Index,
		SetDigest: image.SetDigest(digests), Pods: digests, Record: record,
	}}, nil
}

// treeDone answers a treePart.
type treeDone struct {
	Ref    conduct.Ref     `json:"ref"`
	Status int             `json:"status"`         // HTTP
	Exit   int             `json:"exit,omitempty"` // of Error
	Reply  json.RawMessage `json:"reply,omitempty"`
	Error  string          `json:"error,omitempty"` // there is no reply
}

// err is the error of a part that was not carried out, nil for a reply.
func (d treeDone) err() error {
	if d.Error == "" {
		return nil
	}
	return &control.Error{Message: d.Error, Exit: d.Exit, Status: d.Status}
}

// doneOf turns the answer to an action's part into the action's Done.
func doneOf(act conduct.Action, a treeDone) conduct.Done {
	read := func(out any) error {
		if err := a.err(); err != nil {
			return err
		}
		if err := json.Unmarshal(a.Reply, out); err != nil {
			return fmt.Errorf("malformed answer: %w", err)
		}
		return nil
	}
	switch act := act.(type) {
	case conduct.Call:
		var r podapi.PhaseReply
		err := read(&r)
		return phaseDone(a.Ref, &r, a.Status, err)
	case conduct.Copy:
		var out copyReply
		err := read(&out)
		return copyDone(conduct.Done{Ref: a.Ref, Failure: failure(err)}, copyOf(act), out)
	case conduct.PullFences:
		var out []podapi.Fence
		err := read(&out)
		return conduct.Done{Ref: a.Ref, Failure: failure(err), Fences: out}
	}
	return conduct.Done{Ref: a.Ref, Failure: failure(a.err())}
}

// performer does parts on this node. The status is an HTTP status, with a reply
// unless there is an error.
type performer interface {
	perform(ctx context.Context, p treePart) (reply any, status int, err error)
}

// perform implements performer: each kind as the node API serves it.
func (n *nodeAPI) perform(ctx context.Context, p treePart) (any, int, error) {
	switch p.Kind {
	case treePhase:
		var in podapi.PhaseRequest
		if err := json.Unmarshal(p.Body, &in); err != nil {
			return nil, 0, badRequest("phase: " + err.Error())
		}
		return n.pods.phase(ctx, p.Job, in)
	case treeStart:
		return carryOut(ctx, p, n.start)
	case treeKill:
		return carryOut(ctx, p, n.kill)
	case treeSeal:
		return carryOut(ctx, p, n.seal)
	case treeCopy:
		var in copyRequest
		if err := json.Unmarshal(p.Body, &in); err != nil {
			return nil, 0, badRequest("copy: " + err.Error())
		}
		out, err := n.copy(ctx, in)
		return out, http.StatusOK, err
	case treeFences:
		out, err := n.pods.fences(ctx, p.Job)
		return out, http.StatusOK, err
	}
	return nil, 0, badRequest(fmt.Sprintf("part of kind %q", p.Kind))
}

// carryOut does a part whose answer says nothing.
func carryOut[T any](ctx context.Context, p treePart, do func(context.Context, T) error) (any, int, error) {
	var in T
	if err := json.Unmarshal(p.Body, &in); err != nil {
		return nil, 0, badRequest(fmt.Sprintf("%s: %v", p.Kind, err))
	}
	return struct{}{}, http.StatusOK, do(ctx, in)
}

// fences asks the pod of a job on this node for every PMI fence at which it
// arrived.
func (m *pods) fences(ctx context.Context, id job.ID) ([]podapi.Fence, error) {
	p, ok := m.get(id)
	if !ok {
		return nil, notFound(fmt.Sprintf("no pod of job %d", id))
	}
	var out []podapi.Fence
	if err := p.call(ctx, http.MethodGet, podapi.PathFences, nil, &out); err != nil {
		return nil, podDown(id, err)
	}
	return out, nil
}

// errorDone answers a part that failed, as writeError would.
func errorDone(ref conduct.Ref, err error) treeDone {
	d := treeDone{Ref: ref, Status: http.StatusInternalServerError, Exit: job.ExitInternal, Error: err.Error()}
	var e *control.Error
	switch {
	case errors.As(err, &e):
		d.Exit = e.Exit
		if e.Status != 0 {
			d.Status = e.Status
		}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		d.Status = http.StatusServiceUnavailable // as a request whose time is over
	}
	return d
}
