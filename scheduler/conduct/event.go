package conduct

import (
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// Ref identifies a request of a Leader; unique within its life, never 0.
type Ref uint64

// Ticket identifies a question that the driver asks (a user's verb, a PMI
// fence). The driver chooses it; 0 means that nobody waits for the answer.
type Ticket uint64

// Event is something that a Leader is told: Committed, Tick, Done, Suspect,
// Cleared, Evidence, PodReport, PodGone, RollCall, Verb or Fence.
type Event interface{ event() }

// Committed brings the replicated state after the newest applied entry. It is
// the first event that a Leader gets, and comes after every change; skipping
// states in between is allowed, going back is not.
type Committed struct {
	State *scheduler.State
}

// Tick says that time went by.
type Tick struct{}

// Done answers the action with that Ref. Failure is nil on success.
type Done struct {
	Ref     Ref
	Failure *Failure
	Reply   *podapi.PhaseReply // of a Call; set on success, and with LostRanks possibly on failure
	Fences  []podapi.Fence     // of a PullFences: every fence at which the pod ever arrived
	Damaged []job.NodeID       // of a Copy: nodes in From that turned out not to have the image intact, also on success
}

// Failure is why a request failed. It implements error.
type Failure struct {
	Kind FailureKind
	Text string
	Exit int // FailedForGood of StartPod: exit code that the job should end with, 0 = none suggested
}

// Error implements error.
func (f *Failure) Error() string { return f.Text }

// FailureKind classes failures by what the conductor does about them.
type FailureKind int

// The classes.
const (
	Unreachable   FailureKind = iota + 1 // no answer, or no lamd: outcome unknown; repeated until the deadline
	Refused                              // nothing was changed (409, 422, scheduler.Refusal); not repeated
	RefusedNow                           // as Refused, but trying again soon may succeed (podapi.PhaseReply.Retry)
	FailedForGood                        // cannot be done there: the pod is gone, or the program is unknown
	NoIntactCopy                         // of a Copy: every node in From was asked, and none has the image intact (Done.Damaged)
)

// Suspect says that somebody doubts a node: gossip, a reset or timed out
// connection to its lamd, an operator. Repeating it is harmless.
type Suspect struct {
	Node   scheduler.NodeRef
	Source string  // "gossip", "pod-connection", ...; the first one is named in events
	AgeMS  float64 // since the last sign of life, as far as known
}

// Cleared says that a suspected node was heard again.
type Cleared struct {
	Node scheduler.NodeRef
}

// Evidence says that a life of a node is over as far as the informant can
// tell: gossip's verdict "dead", an operator, the local cluster. Certain means
// that its processes cannot run any more (the local cluster killed them, or
// the node came back with a higher boot): that is a positive fence.
type Evidence struct {
	Node    scheduler.NodeRef
	Source  string
	AgeMS   float64
	Certain bool
}

// PodReport passes on an event of a pod's stream. The driver reads the stream
// of every pod from the beginning when it becomes leader; the conductor drops
// what it has seen (by Seq) and what belongs to older incarnations.
type PodReport struct {
	Job   job.ID
	Pod   job.PodIndex
	Node  job.NodeID
	Event podapi.Event
}

// PodGone says that the lamd of a living node found the supervisor of a pod
// gone and every process of the pod dead.
type PodGone struct {
	Job         job.ID
	Pod         job.PodIndex
	Node        job.NodeID
	Incarnation job.Incarnation // in which that supervisor was built
	Text        string
}

// RollCall lists the pods that a living node has, as it says with every request
// for leases. It is a safety net: a PodGone that only a former leader heard is
// found out when a pod is missing for Config.Absence.
type RollCall struct {
	Node scheduler.NodeRef
	Pods []PodAt
}

// PodAt is a pod on a node; Built is the incarnation of its supervisor.
type PodAt struct {
	Job   job.ID
	Pod   job.PodIndex
	Built job.Incarnation
}

// VerbKind is what a user asks of a job.
type VerbKind string

// The verbs.
const (
	VerbCheckpoint VerbKind = "checkpoint"
	VerbSuspend    VerbKind = "suspend"
	VerbResume     VerbKind = "resume"
	VerbVacate     VerbKind = "vacate"    // checkpoint, then end with job.ExitCheckpoint and keep the images
	VerbKill       VerbKind = "kill"      // end with Code
	VerbPreflight  VerbKind = "preflight" // answer: Answer.Obstacles
)

// Verb is a user's request; an Answer with the same Ticket follows.
type Verb struct {
	Ticket Ticket
	Job    job.ID
	Kind   VerbKind
	Code   int    // VerbKill: exit code, e.g. 130 after Ctrl-C
	Reason string // VerbKill

	since time.Duration // when the leader heard of it
}

// Fence is a pod's arrival at a PMI fence; FenceAnswer follows with the same
// Ticket when every pod of the job has arrived.
type Fence struct {
	Ticket Ticket
	Fence  podapi.Fence
}

func (Committed) event() {}
func (Tick) event()      {}
func (Done) event()      {}
func (Suspect) event()   {}
func (Cleared) event()   {}
func (Evidence) event()  {}
func (PodReport) event() {}
func (PodGone) event()   {}
func (RollCall) event()  {}
func (Verb) event()      {}
func (Fence) event()     {}
