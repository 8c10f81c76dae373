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

// treeOps is the kind of messages that carry what nodes are asked to do.
const treeOps = "ops"

// fanout carries what many nodes are asked to do along a tree whose root is the
// leader: each node passes the message on to its children, does its own part,
// and answers for its subtree. Jobs on few nodes are not its business. It is safe
// for concurrent use and keeps no state but the number of the last message.
type fanout struct {
	self  job.NodeID
	arity int // jobs on more nodes than that go through the tree; 0 = tree.Arity
	local performer
	link  treeLink
	log   zerolog.Logger
	last  atomic.Uint64
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

// treeKey tells which actions of a step may travel together.
type treeKey struct {
	job     job.ID
	kind    treeKind
	op      podapi.Op // of a phase
	timeout time.Duration
}

func keyOf(a treeAsk) treeKey {
	k := treeKey{job: a.job, kind: a.kind, timeout: a.timeout}
	if q, ok := a.body.(podapi.PhaseRequest); ok {
		k.op = q.Op
	}
	return k
}

// split takes the actions that are to go through the tree out of those of one
// step; the rest remains. A nil fanout takes none.
func (f *fanout) split(acts []conduct.Action) (rest []conduct.Action, batches [][]conduct.Action) {
	if f == nil || len(acts) <= f.width() {
		return acts, nil
	}
	groups := map[treeKey][]conduct.Action{}
	on := map[treeKey]map[job.NodeID]bool{}
	var order []treeKey
	for _, a := range acts {
		ask, ok := askOf(a)
		if !ok {
			rest = append(rest, a)
			continue
		}
		k := keyOf(ask)
		if on[k] == nil {
			on[k] = map[job.NodeID]bool{}
			order = append(order, k)
		}
		groups[k] = append(groups[k], a)
		on[k][ask.node] = true
	}
	for _, k := range order {
		if len(on[k]) > f.width() {
			batches = append(batches, groups[k])
		} else {
			rest = append(rest, groups[k]...)
		}
	}
	return rest, batches
}

func (f *fanout) width() int { return cmp.Or(f.arity, tree.Arity) }

// call sends a batch that split made, and returns a Done for every call of it.
// It returns when the last node has answered or was given up, at the latest
// when the calls' time is over.
func (f *fanout) call(ctx context.Context, acts []conduct.Action) []conduct.Done {
	start := time.Now()
	asks := make([]treeAsk, len(acts))
	for i, a := range acts {
		asks[i], _ = askOf(a) // split took only those that have one
	}
	ctx, cancel := context.WithTimeout(ctx, asks[0].timeout)
	defer cancel()
	reply, err := f.broadcast(ctx, asks)
	answered := map[conduct.Ref]treeDone{}
	for node, a := range reply.Answers {
		if d, derr := donesOf(a); derr != nil {
			f.log.Error().Err(derr).Str("to", string(node)).Msg("answer through the tree")
		} else {
			for _, one := range d {
				answered[one.Ref] = one
			}
		}
	}
	out := make([]conduct.Done, 0, len(acts))
	for i, ask := range asks {
		if d, ok := answered[ask.ref]; ok {
			out = append(out, doneOf(acts[i], d))
			continue
		}
		text := fmt.Sprintf("node %s was not reached through the tree", ask.node)
		if err != nil {
			text = err.Error()
		}
		out = append(out, conduct.Done{Ref: ask.ref, Failure: &conduct.Failure{Kind: conduct.Unreachable, Text: text}})
	}
	k := keyOf(asks[0])
	f.log.Debug().Err(err).Uint64("job", uint64(k.job)).Str("kind", string(k.kind)).Str("op", string(k.op)).
		Int("parts", len(asks)).Int("answered", len(answered)).
		Int("missing", len(reply.Missing)).Dur("dur_ms", time.Since(start)).Msg("went through the tree")
	return out
}

// broadcast sends what is asked along the tree of the nodes, this one first.
func (f *fanout) broadcast(ctx context.Context, asks []treeAsk) (tree.Reply, error) {
	nodes := []job.NodeID{f.self}
	for _, a := range asks {
		if a.node != f.self {
			nodes = append(nodes, a.node)
		}
	}
	slices.Sort(nodes[1:])
	nodes = slices.Compact(nodes)
	payload, err := packAsks(asks)
	if err != nil {
		return tree.Reply{}, err
	}
	v := tree.View{Nodes: nodes, Arity: f.width()}
	return tree.Broadcast(ctx, f, f.perform, v, f.self, f.last.Add(1), treeOps, payload)
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

// perform is the handler of messages: what this node is asked for, in parallel.
func (f *fanout) perform(ctx context.Context, m tree.Message) (json.RawMessage, error) {
	if m.Kind != treeOps {
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
	reply, status, err := f.local.perform(ctx, p)
	if err != nil {
		return errorDone(p.Ref, err)
	}
	b, err := json.Marshal(reply)
	if err != nil {
		return errorDone(p.Ref, fmt.Errorf("encode answer: %w", err))
	}
	return treeDone{Ref: p.Ref, Status: status, Reply: b}
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
