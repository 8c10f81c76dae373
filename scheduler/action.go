package scheduler

import (
	"errors"

	"github.com/lampause/lampause/job"
)

// ActionKind is what an Action is about.
type ActionKind string

// The kinds.
const (
	ActRefuse ActionKind = "refuse" // the command changed nothing; Refusal says why
	ActEvent  ActionKind = "event"  // Event happened
	ActView   ActionKind = "view"   // the members changed; State.View is their new number
	ActJob    ActionKind = "job"    // the record of Job changed
	ActDrop   ActionKind = "drop"   // Node may delete the files of Epoch of Job; 0 = all of the job
)

// Action is a consequence of a command, in the order in which it follows.
// Every node that applies the log sees the same actions.
type Action struct {
	Kind    ActionKind `json:"kind"`
	Job     job.ID     `json:"job,omitempty"`
	Node    job.NodeID `json:"node,omitempty"`
	Epoch   job.Epoch  `json:"epoch,omitempty"`
	Event   *Event     `json:"event,omitempty"`
	Refusal *Refusal   `json:"refusal,omitempty"`
}

// Refusal is why a command was refused. It implements error. Exit is the exit
// code that the command line should end with.
type Refusal struct {
	Code RefusalCode `json:"code"`
	Text string      `json:"text"`
	Exit int         `json:"exit"`
	Boot job.Boot    `json:"boot,omitempty"` // StaleBoot: the lowest boot that may join
}

// RefusalCode classes refusals.
type RefusalCode string

// The classes.
const (
	BadCommand RefusalCode = "bad"        // malformed
	NoSuch     RefusalCode = "no-such"    // unknown job, node or epoch
	StaleBoot  RefusalCode = "stale-boot" // that boot was declared dead
	NoRoom     RefusalCode = "no-room"    // not enough nodes or slots
	Stale      RefusalCode = "stale"      // of another incarnation or round
	Busy       RefusalCode = "busy"       // not in this state of the job
	Broken     RefusalCode = "broken"     // would break an invariant: a fault of the scheduler
)

// Error implements error.
func (r *Refusal) Error() string { return r.Text }

// AsRefusal returns the Refusal in err's chain, nil when there is none.
func AsRefusal(err error) *Refusal {
	var r *Refusal
	if errors.As(err, &r) {
		return r
	}
	return nil
}
