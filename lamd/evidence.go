package lamd

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/membership"
	"github.com/lampause/lampause/scheduler"
)

// sourceOf classes the failure of a request to another daemon as evidence
// against its node; false when it says nothing of the node. Membership examines
// every accusation with probes of its own, so that a daemon which is only
// restarting or slow comes to no harm by it.
func sourceOf(err error) (membership.Source, bool) {
	var timeout net.Error
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "dial" && op.Timeout():
		return membership.SourceTimeout, true // it is a context.DeadlineExceeded, too
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "", false // the caller's own doing, or work that takes long
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPIPE),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return membership.SourceReset, true
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.ETIMEDOUT),
		errors.As(err, &timeout) && timeout.Timeout():
		return membership.SourceTimeout, true
	}
	return "", false
}

// accuse reports a failed request to a node.
func (p *peers) accuse(node job.NodeID, err error) {
	if s, ok := sourceOf(err); ok && p.onFailure != nil {
		p.onFailure(membership.Evidence{Node: node, Source: s, Detail: err.Error()})
	}
}

// silenceMax is how long a node with pods may ask for no lease before the
// leader has it examined: two renewals in a row did not come.
const silenceMax = 3 * leaseRenew

// roll remembers when each life of a node last asked for its leases, on behalf
// of a leader. It is safe for concurrent use.
type roll struct {
	mu    sync.Mutex // guards below
	heard map[scheduler.NodeRef]time.Time
}

// hear notes a request for leases.
func (r *roll) hear(ref scheduler.NodeRef, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.heard == nil {
		r.heard = map[scheduler.NodeRef]time.Time{}
	}
	r.heard[ref] = now
}

// silent returns the nodes with pods that have been silent for too long. A life
// that was never heard of is left to others: a new leader is not known to all
// at once. Lives that are over are forgotten.
func (r *roll) silent(st *scheduler.State, now time.Time) []scheduler.NodeRef {
	r.mu.Lock()
	defer r.mu.Unlock()
	busy := map[scheduler.NodeRef]bool{}
	for _, j := range st.Jobs {
		if j.State.Final() {
			continue
		}
		for _, p := range j.Pods {
			busy[scheduler.NodeRef{Node: p.Node, Boot: p.Boot}] = true
		}
	}
	var out []scheduler.NodeRef
	for ref, at := range r.heard {
		switch {
		case !st.IsAlive(ref):
			delete(r.heard, ref)
		case busy[ref] && now.Sub(at) > silenceMax:
			out = append(out, ref)
		}
	}
	return out
}

// watchRoll has membership examine nodes with pods that ask for no lease any
// more, until ctx ends. What the ranks on them may do is the lease's affair;
// this only makes the detection sooner than gossip's turn.
func (d *Daemon) watchRoll(ctx context.Context, r *roll) {
	tick := time.NewTicker(leaseRenew)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, ref := range r.silent(d.sched.State(), now) {
				d.members.Report(membership.Evidence{Node: ref.Node, Boot: ref.Boot, Source: membership.SourcePod, Detail: "its pods ask for no lease"})
			}
		}
	}
}
