package conduct

import (
	"time"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// Leader is the volatile half of a raft leader for one term: the guard of the
// nodes and a conductor for every job. See the package comment.
type Leader struct {
	cfg  Config
	term uint64
}

// NewLeader returns a Leader for a term. The first event must be Committed,
// with a state that holds every entry of earlier terms (after a raft barrier).
func NewLeader(cfg Config, term uint64, now time.Duration) *Leader {
	return &Leader{cfg: cfg.withDefaults(), term: term}
}

// Step takes an event and returns what is to be done.
func (l *Leader) Step(now time.Duration, ev Event) []Action { return nil }

// Next returns when a Tick is due; ok is false when none is.
func (l *Leader) Next() (at time.Duration, ok bool) { return 0, false }

// Renew answers a node's request to renew the leases of its pods: true grants
// Config.Lease from the moment at which the supervisor sent its request.
//
// Precondition: this node was confirmed as the leader (Scheduler.Confirm)
// after the request arrived; otherwise an old leader could grant a lease that
// the new one does not wait for.
func (l *Leader) Renew(now time.Duration, node scheduler.NodeRef) bool { return true }

// Suspects returns the nodes that are under suspicion, for display.
func (l *Leader) Suspects() []job.NodeID { return nil }
