package conduct

import (
	"maps"
	"slices"
	"time"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// Leader is the volatile half of a raft leader for one term: the guard of the
// nodes and a conductor for every job. See the package comment.
type Leader struct {
	cfg     Config
	term    uint64
	now     time.Duration
	start   time.Duration
	st      *scheduler.State
	guard   *guard
	jobs    map[job.ID]*conductor
	ids     []job.ID // of jobs, ascending
	calls   []*call  // ascending Ref
	lastRef Ref
	attempt uint64        // numbers checkpoint rounds and recoveries of this term
	decided time.Duration // when the newest DeclareDead or Recover was proposed
	out     []Action
}

// attemptsPerTerm keeps the attempts of later terms above those of earlier
// ones: pods order rounds by incarnation and attempt.
const attemptsPerTerm = 1_000_000

// NewLeader returns a Leader for a term. The first event must be Committed,
// with a state that holds every entry of earlier terms (after a raft barrier).
func NewLeader(cfg Config, term uint64, now time.Duration) *Leader {
	l := &Leader{cfg: cfg.withDefaults(), term: term, attempt: term * attemptsPerTerm, now: now, start: now, jobs: map[job.ID]*conductor{}}
	l.guard = newGuard(l)
	return l
}

// Step takes an event and returns what is to be done. Events before the first
// Committed are dropped.
func (l *Leader) Step(now time.Duration, ev Event) []Action {
	l.now = max(now, l.now)
	if c, ok := ev.(Committed); ok {
		l.committed(c.State)
	}
	if l.st == nil {
		return nil
	}
	switch ev := ev.(type) {
	case Done:
		l.complete(ev)
	case Suspect:
		l.guard.suspect(ev)
	case Cleared:
		l.guard.cleared(ev.Node)
	case Evidence:
		l.guard.evidence(ev)
	case PodReport:
		if c := l.jobs[ev.Job]; c != nil {
			c.report(ev)
		}
	case PodGone:
		if c := l.jobs[ev.Job]; c != nil {
			c.podGone(ev)
		}
	case RollCall:
		for _, id := range l.ids {
			l.jobs[id].rollCall(ev)
		}
	case Verb:
		l.verb(ev)
	case Fence:
		l.fence(ev)
	}
	l.tick()
	out := l.out
	l.out = nil
	return out
}

// tick runs whatever is due.
func (l *Leader) tick() {
	l.tickCalls()
	l.guard.tick()
	for _, id := range l.ids {
		if c := l.jobs[id]; c != nil {
			c.tick()
		}
	}
}

// Next returns when a Tick is due; ok is false when none is.
func (l *Leader) Next() (at time.Duration, ok bool) {
	var d deadline
	l.nextCall(&d)
	l.guard.next(&d)
	for _, c := range l.jobs {
		c.next(&d)
	}
	return d.at, d.set
}

// deadline is the earliest of the times it was given.
type deadline struct {
	at  time.Duration
	set bool
}

func (d *deadline) by(at time.Duration) {
	if !d.set || at < d.at {
		d.at, d.set = at, true
	}
}

// committed takes over a newer state and lets every job look at it.
func (l *Leader) committed(st *scheduler.State) {
	first := l.st == nil
	if !first && st.Index < l.st.Index {
		return
	}
	l.st = st
	l.guard.committed()
	for _, id := range st.JobIDs() {
		j := st.Jobs[id]
		c := l.jobs[id]
		if c == nil {
			if j.Retired {
				continue
			}
			c = newConductor(l, id, first)
			l.lead(id, c)
		}
		c.committed(j)
	}
	for _, id := range l.ids {
		if j := st.Jobs[id]; j == nil || j.Retired {
			l.jobs[id].dismiss()
			l.lead(id, nil)
		}
	}
	l.dropGone()
}

// lead takes a conductor in, or, when it is nil, forgets the one that there is.
// The list of ids is made anew: somebody may be walking over the old one.
func (l *Leader) lead(id job.ID, c *conductor) {
	if c != nil {
		l.jobs[id] = c
	} else {
		delete(l.jobs, id)
	}
	l.ids = slices.Sorted(maps.Keys(l.jobs))
}

func (l *Leader) emit(a Action) { l.out = append(l.out, a) }

// Renew answers a node's request to renew the leases of its pods: true grants
// Config.Lease from the moment at which the supervisor sent its request.
//
// Precondition: this node was confirmed as the leader (Scheduler.Confirm)
// after the request arrived; otherwise an old leader could grant a lease that
// the new one does not wait for.
func (l *Leader) Renew(now time.Duration, node scheduler.NodeRef) bool {
	l.now = max(now, l.now)
	return l.st != nil && l.guard.renew(node)
}

// Suspects returns the nodes that are under suspicion, for display, in the
// order of their names.
func (l *Leader) Suspects() []job.NodeID {
	var out []job.NodeID
	for ref := range l.guard.doubts {
		if l.st != nil && l.st.IsAlive(ref) {
			out = append(out, ref.Node)
		}
	}
	slices.Sort(out)
	return out
}
