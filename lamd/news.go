package lamd

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// news tells waiters that the replicated state has changed. Safe for
// concurrent use.
type news struct {
	mu      sync.Mutex // guards below
	index   uint64     // of the newest state seen
	changed chan struct{}
}

func newNews() *news { return &news{changed: make(chan struct{})} }

// after returns a channel that is closed once the state is newer than index.
func (n *news) after(index uint64) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.index > index {
		ch := make(chan struct{})
		close(ch)
		return ch
	}
	return n.changed
}

// follow passes on the scheduler's updates until ctx ends.
func (n *news) follow(ctx context.Context, s *scheduler.Scheduler) error {
	w := s.Watch()
	defer w.Close()
	n.reach(s.State().Index)
	for {
		u, err := w.Next(ctx)
		if err != nil {
			return err
		}
		n.reach(u.State.Index)
	}
}

func (n *news) reach(index uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if index > n.index {
		n.index = index
		close(n.changed)
		n.changed = make(chan struct{})
	}
}

// leaderFinder asks other daemons who leads, for nodes that raft does not
// tell.
type leaderFinder struct {
	self  job.NodeID
	told  func() bool // raft knows: no need to ask
	nodes func() []job.NodeID
	peers *peers

	mu   sync.Mutex // guards below
	last job.NodeID
}

// findEvery is how often a node without word from raft asks around.
const findEvery = 500 * time.Millisecond

// found returns the leader that was last heard of.
func (f *leaderFinder) found() (job.NodeID, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last, f.last != ""
}

// run asks around until ctx ends.
func (f *leaderFinder) run(ctx context.Context) error {
	for ctx.Err() == nil {
		var id job.NodeID
		if !f.told() {
			id = f.ask(ctx)
		}
		f.mu.Lock()
		f.last = id
		f.mu.Unlock()
		pause(ctx, findEvery)
	}
	return ctx.Err()
}

// ask returns the first answer that names a leader.
func (f *leaderFinder) ask(ctx context.Context) job.NodeID {
	for _, n := range f.nodes() {
		if n == f.self {
			continue
		}
		var id job.NodeID
		call, cancel := context.WithTimeout(ctx, leaseTimeout)
		err := f.peers.call(call, n, http.MethodGet, "/v1/leader", nil, &id)
		cancel()
		if err == nil && id != "" {
			return id
		}
	}
	return ""
}
