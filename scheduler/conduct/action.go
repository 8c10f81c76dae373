package conduct

import (
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// Action is something for the driver to do: Propose, StartPod, KillPod, Call,
// Copy, Seal, Drop, PullFences, Answer or FenceAnswer. Actions of one Step may
// be carried out in parallel, in any order.
type Action interface{ action() }

// Propose puts a command into the log. Done: success when it was applied,
// Refused with the text of a scheduler.Refusal, Unreachable when its fate is
// not known. The driver sends the Committed with the new state BEFORE Done.
type Propose struct {
	Ref     Ref
	Command scheduler.Command
	Timeout time.Duration
}

// StartPod builds a pod on Node: link, supervisor, pod-init and, unless
// Spec.Restore, the ranks. Done when that is so; FailedForGood with Exit when
// the program cannot be started. Success at once when a supervisor of the same
// incarnation is there already; one of an older incarnation is killed first.
// The driver fills in the directories and LinkReady of Spec.
type StartPod struct {
	Ref     Ref
	Job     job.ID
	Pod     job.PodIndex
	Node    job.NodeID
	Spec    podapi.PodSpec
	Timeout time.Duration
}

// KillPod makes an end of every supervisor and process of a pod on Node that
// was built in an incarnation up to and including UpTo. Done means that none
// of them exists any more: a positive fence. Success when there is none.
type KillPod struct {
	Ref     Ref
	Job     job.ID
	Pod     job.PodIndex
	Node    job.NodeID
	UpTo    job.Incarnation
	Drain   bool // the job ended: let the output be read first, as far as Timeout allows
	Timeout time.Duration
}

// Call sends Request to the supervisor of a pod.
type Call struct {
	Ref     Ref
	Job     job.ID
	Pod     job.PodIndex
	Node    job.NodeID
	Request podapi.PhaseRequest
	Timeout time.Duration
}

// Copy makes node To hold a verified, durable copy of a pod's image, fetched
// from any of From (which may contain To itself: then it is checked only).
// It serves replication and staging. Urgent copies belong to a recovery and
// are not paced.
type Copy struct {
	Ref     Ref
	Job     job.ID
	Epoch   job.Epoch
	Pod     job.PodIndex
	From    []job.NodeID
	To      job.NodeID
	Written podapi.Written
	Urgent  bool
	Digests bool // nobody survived: what the disks hold is checked by SHA-256
	Timeout time.Duration
}

// Seal makes a holder write the COMMITTED record of an epoch beside the
// images, with everything that a fresh cluster needs to restart the job. Job
// is the replicated record (immutable); Pods are the images held there.
type Seal struct {
	Ref     Ref
	Node    job.NodeID
	Job     *scheduler.Job
	Epoch   scheduler.Epoch
	Pods    []job.PodIndex
	Timeout time.Duration
}

// Drop lets a node delete the files of an epoch of a job, or of all of it
// (Epoch 0). Not answered; what is missed is swept with State.ImagesOn.
type Drop struct {
	Node  job.NodeID
	Job   job.ID
	Epoch job.Epoch
}

// PullFences asks a pod for all fences at which it ever arrived (Done.Fences):
// a new leader, or a new incarnation, must learn those again.
type PullFences struct {
	Ref     Ref
	Job     job.ID
	Pod     job.PodIndex
	Node    job.NodeID
	Timeout time.Duration
}

// Answer ends a Verb. Failure is nil on success.
type Answer struct {
	Ticket    Ticket
	Failure   *Failure
	Epoch     job.Epoch // VerbCheckpoint, VerbVacate
	Bytes     int64
	StallMS   float64
	Obstacles []string // VerbPreflight
}

// FenceAnswer ends Fences of these tickets. With Stale set they are answered
// 409: the pod posts again in its present incarnation.
type FenceAnswer struct {
	Job     job.ID
	Tickets []Ticket
	Reply   podapi.FenceReply
	Stale   bool
}

func (Propose) action()     {}
func (StartPod) action()    {}
func (KillPod) action()     {}
func (Call) action()        {}
func (Copy) action()        {}
func (Seal) action()        {}
func (Drop) action()        {}
func (PullFences) action()  {}
func (Answer) action()      {}
func (FenceAnswer) action() {}
