package scheduler

import (
	"github.com/lampause/lampause/job"
)

// Command is one entry of the log: exactly one of the pointers is set. AtMS is
// the wall clock of the proposer in Unix milliseconds, shown to people and
// never used for a decision.
type Command struct {
	AtMS int64 `json:"at_ms,omitempty"`

	Join        *Join        `json:"join,omitempty"`
	Leave       *Leave       `json:"leave,omitempty"`
	DeclareDead *DeclareDead `json:"declare_dead,omitempty"`

	Submit  *Submit  `json:"submit,omitempty"`
	Restart *Restart `json:"restart,omitempty"`
	Started *Started `json:"started,omitempty"`
	Suspend *Suspend `json:"suspend,omitempty"`
	End     *End     `json:"end,omitempty"`
	Retire  *Retire  `json:"retire,omitempty"`

	BeginEpoch *BeginEpoch `json:"begin_epoch,omitempty"`
	Commit     *Commit     `json:"commit,omitempty"`
	Abandon    *Abandon    `json:"abandon,omitempty"`
	Collect    *Collect    `json:"collect,omitempty"`
	Replicated *Replicated `json:"replicated,omitempty"`
	Damaged    *Damaged    `json:"damaged,omitempty"`

	Recover   *Recover   `json:"recover,omitempty"`
	Recovered *Recovered `json:"recovered,omitempty"`

	Note *Note `json:"note,omitempty"`
}

// Join adds a node, or says that its lamd started again (higher Session) or
// that the node did (higher Boot: the pods of its former boot are lost).
// Refused with StaleBoot when the log declared that boot dead; the node must
// kill its pods and join with a higher boot. Role counts only for a node that
// the log does not know; afterwards the log keeps it.
type Join struct {
	Node    job.NodeID `json:"node"`
	Addr    string     `json:"addr"`
	Boot    job.Boot   `json:"boot"`
	Session uint64     `json:"session"`
	Role    Role       `json:"role"`
	Slots   int        `json:"slots"`

	// LastJob is the highest job number that the node's image store knows: a
	// fresh log over old images must not give it out again.
	LastJob job.ID `json:"last_job,omitempty"`
}

// Leave takes a node without pods out of the view.
type Leave struct {
	Node job.NodeID `json:"node"`
}

// DeclareDead ends lives of nodes, all at once, and in the same entry starts
// the recovery (or the end) of every job that had pods there. Lives that are
// not alive any more are passed over, so repeating it is harmless.
type DeclareDead struct {
	Nodes    []NodeRef `json:"nodes"`
	DetectMS float64   `json:"detect_ms"`        // from the last sign of life
	Source   string    `json:"source,omitempty"` // what told first
}

// Submit places and starts a job. Key identifies the request, so that a
// repeated one is answered with the same job.
type Submit struct {
	Key  string   `json:"key"`
	Spec job.Spec `json:"spec"`
}

// Restart brings an ended job back from a committed epoch, on whatever nodes
// are alive. On a cluster whose log does not know the job (a fresh one), Job
// is what the COMMITTED records of the images say: the job's id, spec, pods
// with ranks, incarnation, and one epoch with the holders found. Otherwise
// only Job.ID is used.
type Restart struct {
	Job   Job       `json:"job"`
	Epoch job.Epoch `json:"epoch"` // 0 = the newest
}

// Started says that all pods of a launch run their ranks.
type Started struct {
	Job         job.ID          `json:"job"`
	Incarnation job.Incarnation `json:"incarnation"`
}

// Suspend records the user's wish that a job stands still (or goes on).
type Suspend struct {
	Job job.ID `json:"job"`
	On  bool   `json:"on"`
}

// End ends a job. Code 0 makes it DONE, any other FAILED. Keep keeps its
// newest epoch, for Restart. Incarnation 0 fits every incarnation.
type End struct {
	Job         job.ID          `json:"job"`
	Incarnation job.Incarnation `json:"incarnation"`
	Code        int             `json:"code"`
	Reason      string          `json:"reason,omitempty"`
	Exits       []job.Exit      `json:"exits,omitempty"`
	Keep        bool            `json:"keep,omitempty"`
}

// Retire says that the pods of an ended job are gone and its images dropped.
type Retire struct {
	Job job.ID `json:"job"`
}

// BeginEpoch gives out the next epoch number and opens a round. The number is
// used up even if nothing comes of it.
type BeginEpoch struct {
	Job         job.ID          `json:"job"`
	Incarnation job.Incarnation `json:"incarnation"`
	Term        uint64          `json:"term"`
	Attempt     uint64          `json:"attempt"`
}

// Commit makes an open epoch the one that recoveries return to: every image
// is durable on its holders. Refused while recovering.
type Commit struct {
	Job         job.ID             `json:"job"`
	Incarnation job.Incarnation    `json:"incarnation"`
	Epoch       job.Epoch          `json:"epoch"`
	Images      []PodImage         `json:"images"`
	SetDigest   string             `json:"set_digest"`
	StallMS     float64            `json:"stall_ms"`
	TimesMS     map[string]float64 `json:"times_ms,omitempty"`
	Backing     string             `json:"backing,omitempty"` // how memory was kept, and why: for the event
}

// Abandon gives up an open epoch.
type Abandon struct {
	Job    job.ID    `json:"job"`
	Epoch  job.Epoch `json:"epoch"`
	Reason string    `json:"reason"`
}

// Collect removes the committed epochs before Before from the record; only
// then may their files be deleted. Refused while a recovery pins one of them.
type Collect struct {
	Job    job.ID    `json:"job"`
	Before job.Epoch `json:"before"`
}

// Replicated says that a node holds a verified copy of a pod's image.
type Replicated struct {
	Job   job.ID       `json:"job"`
	Epoch job.Epoch    `json:"epoch"`
	Pod   job.PodIndex `json:"pod"`
	Node  NodeRef      `json:"node"`
}

// Damaged says that nodes do not hold an image any more that the record says
// they hold: it is gone, or not what was written.
type Damaged struct {
	Job   job.ID       `json:"job"`
	Epoch job.Epoch    `json:"epoch"`
	Pod   job.PodIndex `json:"pod"`
	Nodes []job.NodeID `json:"nodes"`
}

// Recover starts a recovery for losses that are not losses of nodes: Pods are
// rebuilt on their own node, Move on another one. Incarnation must be the
// job's present one, so that one loss starts one recovery.
type Recover struct {
	Job         job.ID          `json:"job"`
	Incarnation job.Incarnation `json:"incarnation"`
	Pods        []job.PodIndex  `json:"pods"`
	Move        []job.PodIndex  `json:"move,omitempty"`
	Cause       string          `json:"cause"`
	Why         Why             `json:"why"`
	Damaged     *Damaged        `json:"damaged,omitempty"` // what it fell over; its Job is not read
}

// Why classes the reason of a Recover, for the budgets.
type Why string

// The classes.
const (
	WhyKilled Why = "killed" // a rank or pod was killed on a living node: bounded between commits
	WhyCrash  Why = "crash"  // the program crashed: bounded by Spec.CrashRetries
	WhyRedo   Why = "redo"   // a recovery failed half-way, or its leader was lost
)

// Recovered says that all pods were released.
type Recovered struct {
	Job         job.ID             `json:"job"`
	Incarnation job.Incarnation    `json:"incarnation"`
	MS          map[string]float64 `json:"ms"`
	Notes       []string           `json:"notes,omitempty"` // what is not as it was, for people
}

// Note records an event that changes nothing.
type Note struct {
	Event Event `json:"event"`
}
