package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/lampause/lampause/job"
)

// transport is what raft uses of a raft.NetworkTransport.
type transport interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// witness is raft's transport and remembers the newest request of a leader that
// every follower answered: that is what a confirmation rests on. Requests and
// questions are numbered by one counter, so that no clock is needed to tell
// which came first. Safe for concurrent use.
//
// Only raft.Transport.AppendEntries is watched, which carries all heartbeats;
// what the pipelines carry besides is not needed.
type witness struct {
	transport

	mu    sync.Mutex
	count uint64 // requests sent and questions asked so far
	heard map[raft.ServerID]testimony
}

// testimony is a request that a follower answered.
type testimony struct {
	term uint64 // of the request; the follower was in no later one
	sent uint64 // number of the request
}

func newWitness(t transport) *witness {
	return &witness{transport: t, heard: map[raft.ServerID]testimony{}}
}

// number numbers a request or a question.
func (w *witness) number() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count++
	return w.count
}

// AppendEntries implements raft.Transport.
func (w *witness) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	sent := w.number()
	if err := w.transport.AppendEntries(id, target, args, resp); err != nil {
		return err
	}
	if resp.Term == args.Term {
		w.note(id, testimony{args.Term, sent})
	}
	return nil
}

func (w *witness) note(id raft.ServerID, t testimony) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.sent > w.heard[id].sent {
		w.heard[id] = t
	}
}

// majority reports whether most of the voters, self among them or not, were in
// term after a question was asked. Whoever leads a later term was elected by
// one of them, and so after the question.
func (w *witness) majority(voters []Peer, self job.NodeID, term, question uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, v := range voters {
		t := w.heard[raft.ServerID(v.ID)]
		if v.ID == self || t.term == term && t.sent > question {
			n++
		}
	}
	return n > len(voters)/2
}

// confirmation is the answer to a Confirm.
type confirmation struct {
	term uint64
	err  error
}

// Confirm asks a majority whether this node is still the leader, and returns
// its term. When it succeeds, no other node had become the leader of a later
// term by the time of the call: most voters answered a request of this leader's
// term that was sent after it. Calls at the same time share one question.
//
// Expected errors: *ErrNotLeader, ErrUnknownOutcome.
func (s *Scheduler) Confirm(ctx context.Context) (uint64, error) {
	answer := make(chan confirmation, 1)
	select {
	case s.confirm <- answer:
	case <-ctx.Done():
		return 0, fmt.Errorf("scheduler: confirm: %w: %w", ErrUnknownOutcome, context.Cause(ctx))
	}
	select {
	case c := <-answer:
		if c.err != nil {
			return 0, fmt.Errorf("scheduler: confirm: %w", s.leaderError(c.err))
		}
		return c.term, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("scheduler: confirm: %w: %w", ErrUnknownOutcome, context.Cause(ctx))
	}
}

// serveConfirm answers all waiting calls of Confirm with one question at a
// time.
func (s *Scheduler) serveConfirm(ctx context.Context) {
	for {
		var batch []chan confirmation
		select {
		case <-ctx.Done():
			return
		case c := <-s.confirm:
			batch = append(batch, c)
		}
		for more := true; more; {
			select {
			case c := <-s.confirm:
				batch = append(batch, c)
			default:
				more = false
			}
		}
		term, err := s.question(ctx)
		for _, c := range batch {
			c <- confirmation{term, err}
		}
	}
}

// errNotConfirmed is in the chain when a majority answered raft, but nothing
// that was sent after the question.
var errNotConfirmed = errors.New("no majority answered in time")

// question is one confirmation. raft.VerifyLeader makes raft send heartbeats at
// once. It is content with answers to what was under way already, log entries
// included, and is asked again until the answers are to newer requests; on a
// quiet leader the first ones are.
func (s *Scheduler) question(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.Heartbeat, errNotConfirmed)
	defer cancel()
	term := s.raft.CurrentTerm()
	asked := s.witness.number()
	for {
		if err := s.wait(ctx, s.raft.VerifyLeader()); err != nil {
			return 0, err
		}
		voters, err := s.voters()
		if err != nil {
			return 0, err
		}
		if s.witness.majority(voters, s.cfg.ID, term, asked) {
			if s.raft.CurrentTerm() != term {
				return 0, raft.ErrNotLeader
			}
			return term, nil
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
}
