package lamd

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/membership/tree"
	"github.com/lampause/lampause/scheduler/conduct"
)

// treePhase is the kind of messages that carry an op to the pods of a job.
const treePhase = "phase"

// fanout carries an op to many nodes along a tree whose root is the leader:
// each node passes the message on to its children, does its own part, and
// answers for its subtree. Jobs on few nodes are not its business. It is safe
// for concurrent use and keeps no state but the number of the last message.
type fanout struct {
	self  job.NodeID
	arity int // jobs on more nodes than that go through the tree; 0 = tree.Arity
	local phaser
	link  treeLink
	log   zerolog.Logger
	last  atomic.Uint64
}

// phaser does an op at a pod of this node. The status is an HTTP status, with a
// reply unless there is an error.
type phaser interface {
	phase(context.Context, job.ID, podapi.PhaseRequest) (*podapi.PhaseReply, int, error)
}

// treeLink takes a message to another node, where fanout.relay works on it, and
// returns what that gathered. Errors mean that the node was not reached.
type treeLink interface {
	send(ctx context.Context, to job.NodeID, in treeRequest) (tree.Reply, error)
}

// treeRequest is the body of POST /v1/tree. Nodes share no clock: the time that
// is left travels as a duration and shrinks a little at every hop.
type treeRequest struct {
	Message   tree.Message `json:"message"`
	TimeoutMS int64        `json:"timeout_ms"`
}

// treeDone answers a treePart.
type treeDone struct {
	Ref    conduct.Ref        `json:"ref"`
	Status int                `json:"status"` // HTTP
	Reply  *podapi.PhaseReply `json:"reply,omitempty"`
	Error  string             `json:"error,omitempty"` // there is no reply: the pod could not be asked
}

// treeKey tells which calls of a step may travel together.
type treeKey struct {
	job     job.ID
	op      podapi.Op
	timeout time.Duration
}

// split takes the calls that are to go through the tree out of the actions of
// one step; the rest remains. A nil fanout takes none, nor is OpWrite taken:
// what follows a pod's write does not wait for the others.
func (f *fanout) split(acts []conduct.Action) (rest []conduct.Action, batches [][]conduct.Call) {
	if f == nil || len(acts) <= f.width() {
		return acts, nil
	}
	groups := map[treeKey][]conduct.Call{}
	on := map[treeKey]map[job.NodeID]bool{}
	for _, a := range acts {
		c, ok := a.(conduct.Call)
		if !ok {
			continue
		}
		k := keyOf(c)
		groups[k] = append(groups[k], c)
		if on[k] == nil {
			on[k] = map[job.NodeID]bool{}
		}
		on[k][c.Node] = true
	}
	wide := func(k treeKey) bool { return k.op != podapi.OpWrite && len(on[k]) > f.width() }
	for _, a := range acts {
		if c, ok := a.(conduct.Call); !ok || !wide(keyOf(c)) {
			rest = append(rest, a)
		}
	}
	for k, calls := range groups {
		if wide(k) {
			batches = append(batches, calls)
		}
	}
	return rest, batches
}

func keyOf(c conduct.Call) treeKey { return treeKey{c.Job, c.Request.Op, c.Timeout} }

func (f *fanout) width() int { return cmp.Or(f.arity, tree.Arity) }

// call sends a batch that split made, and returns a Done for every call of it.
// It returns when the last node has answered or was given up, at the latest
// when the calls' time is over.
func (f *fanout) call(ctx context.Context, calls []conduct.Call) []conduct.Done {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, calls[0].Timeout)
	defer cancel()
	reply, err := f.broadcast(ctx, calls)
	answered := map[conduct.Ref]conduct.Done{}
	for node, a := range reply.Answers {
		if d, derr := donesOf(a); derr != nil {
			f.log.Error().Err(derr).Str("to", string(node)).Msg("answer through the tree")
		} else {
			for _, one := range d {
				answered[one.Ref] = phaseDone(one.Ref, one.Reply, one.Status, one.err())
			}
		}
	}
	out := make([]conduct.Done, 0, len(calls))
	for _, c := range calls {
		d, ok := answered[c.Ref]
		if !ok {
			text := fmt.Sprintf("node %s was not reached through the tree", c.Node)
			if err != nil {
				text = err.Error()
			}
			d = conduct.Done{Ref: c.Ref, Failure: &conduct.Failure{Kind: conduct.Unreachable, Text: text}}
		}
		out = append(out, d)
	}
	f.log.Debug().Err(err).Uint64("job", uint64(calls[0].Job)).Str("op", string(calls[0].Request.Op)).
		Uint64("epoch", uint64(calls[0].Request.Epoch)).Int("pods", len(calls)).Int("answered", len(answered)).
		Int("missing", len(reply.Missing)).Dur("dur_ms", time.Since(start)).Msg("op went through the tree")
	return out
}

// broadcast sends the calls along the tree of their nodes, this one first.
func (f *fanout) broadcast(ctx context.Context, calls []conduct.Call) (tree.Reply, error) {
	nodes := []job.NodeID{f.self}
	for _, c := range calls {
		if c.Node != f.self {
			nodes = append(nodes, c.Node)
		}
	}
	slices.Sort(nodes[1:])
	nodes = slices.Compact(nodes)
	payload, err := packCalls(calls)
	if err != nil {
		return tree.Reply{}, err
	}
	v := tree.View{Nodes: nodes, Arity: f.width()}
	return tree.Broadcast(ctx, f, f.perform, v, f.self, f.last.Add(1), treePhase, payload)
}

// relay works on a message of another node: it does this node's part, passes
// the message on, and gathers the answers.
func (f *fanout) relay(ctx context.Context, in treeRequest) (tree.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(in.TimeoutMS)*time.Millisecond)
	defer cancel()
	return tree.Relay(ctx, f, f.perform, f.self, in.Message)
}

// hopReserve is how much earlier a node's subtree must have answered than the
// node itself, so that what it gathered still arrives when one of them hangs. A
// hop takes a tenth of the time that is left at most.
const hopReserve = 200 * time.Millisecond

// Send implements tree.Sender. The receiver gets only what its interval needs.
func (f *fanout) Send(ctx context.Context, to job.NodeID, m tree.Message) (tree.Reply, error) {
	if err := ctx.Err(); err != nil {
		return tree.Reply{}, err
	}
	at, ok := ctx.Deadline()
	if !ok {
		return tree.Reply{}, fmt.Errorf("message of the tree to %s without a deadline", to)
	}
	left := time.Until(at)
	left -= min(hopReserve, left/10)
	var err error
	if m.Payload, err = prune(m); err != nil {
		return tree.Reply{}, err
	}
	r, err := f.link.send(ctx, to, treeRequest{Message: m, TimeoutMS: left.Milliseconds()})
	if err != nil {
		f.log.Debug().Err(err).Str("to", string(to)).Msg("node not reached through the tree")
	}
	return r, err
}

// perform is the handler of messages: this node's part, its pods in parallel.
func (f *fanout) perform(ctx context.Context, m tree.Message) (json.RawMessage, error) {
	if m.Kind != treePhase {
		return nil, fmt.Errorf("message of kind %q", m.Kind)
	}
	parts, err := unpackParts(m.Payload, f.self)
	if err != nil {
		return nil, err
	}
	out := make([]treeDone, len(parts))
	each(len(parts), func(i int) { out[i] = f.performOne(ctx, parts[i]) })
	return json.Marshal(out)
}

func (f *fanout) performOne(ctx context.Context, p treePart) treeDone {
	reply, status, err := f.local.phase(ctx, p.Job, p.Request)
	d := treeDone{Ref: p.Ref, Status: status, Reply: reply}
	if err != nil {
		d.Status, d.Reply, d.Error = statusOf(err), nil, err.Error()
	}
	return d
}

// donesOf decodes one node's answer.
func donesOf(a tree.Answer) ([]treeDone, error) {
	if a.Error != "" {
		return nil, fmt.Errorf("node refused the message: %s", a.Error)
	}
	var out []treeDone
	if err := json.Unmarshal(a.Payload, &out); err != nil {
		return nil, fmt.Errorf("malformed answer: %w", err)
	}
	return out, nil
}

// phaseDone is the Done of an op that was answered with status and reply, or
// that could not be asked for.
func phaseDone(ref conduct.Ref, reply *podapi.PhaseReply, status int, err error) conduct.Done {
	d := conduct.Done{Ref: ref, Reply: reply}
	switch {
	case err != nil:
		d.Reply, d.Failure = nil, failure(err)
	case reply == nil:
		d.Failure = &conduct.Failure{Kind: conduct.Unreachable, Text: "an answer without a reply"}
	case status == http.StatusOK:
	default:
		kind := failureKind(status)
		if kind == conduct.Refused && reply.Retry {
			kind = conduct.RefusedNow
		}
		d.Failure = &conduct.Failure{Kind: kind, Text: reply.Error}
	}
	return d
}
