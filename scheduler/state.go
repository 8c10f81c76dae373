package scheduler

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// State is the replicated state after the entry Index. It is immutable: Step
// copies what it changes. The zero value is the state of a new cluster.
type State struct {
	Index   uint64              `json:"index"` // raft index of the last applied command
	View    job.ViewID          `json:"view"`  // number of the agreed list of members
	Nodes   map[job.NodeID]Node `json:"nodes"`
	Jobs    map[job.ID]*Job     `json:"jobs"`
	LastJob job.ID              `json:"last_job"` // newest id given, never used again
	Events  []Event             `json:"events"`   // the newest maxEvents, ascending Seq
	LastSeq uint64              `json:"last_seq"` // Seq of the newest event
	Keys    map[string]job.ID   `json:"keys"`     // Submit.Key of the jobs still known
}

// NodeState says what the log thinks of a node.
type NodeState string

// The states of a node. Suspicion is not a state here: gossip suggests, the
// log decides.
const (
	Alive NodeState = "alive"
	Dead  NodeState = "dead" // declared by the log; returns only with a higher boot
	Left  NodeState = "left" // took its leave, without pods
)

// Role says whether a node gets ranks at launch.
type Role string

// The roles of a node. A spare that takes over lost pods becomes a compute
// node, and the node that it replaced becomes a spare when it returns.
const (
	Compute Role = "compute"
	Spare   Role = "spare"
)

// Node is a member of the cluster, past or present.
type Node struct {
	ID      job.NodeID `json:"id"`
	Addr    string     `json:"addr"` // IP of the node
	Boot    job.Boot   `json:"boot"`
	Session uint64     `json:"session"` // rises at every start of lamd
	Role    Role       `json:"role"`
	Slots   int        `json:"slots"`
	State   NodeState  `json:"state"`
}

// NodeRef names one life of a node.
type NodeRef struct {
	Node job.NodeID `json:"node"`
	Boot job.Boot   `json:"boot"`
}

// Job is everything agreed about one job. Records of ended jobs are kept until
// maxEnded newer ones have ended.
type Job struct {
	ID          job.ID          `json:"id"`
	Key         string          `json:"key,omitempty"` // of the submission
	Spec        job.Spec        `json:"spec"`
	State       job.State       `json:"state"` // STARTING RUNNING RECOVERING DONE FAILED; see Shown
	Incarnation job.Incarnation `json:"incarnation"`
	Pods        []Pod           `json:"pods"` // index = PodIndex
	Suspended   bool            `json:"suspended,omitempty"`

	LastEpoch job.Epoch  `json:"last_epoch"`     // newest number given, also to abandoned rounds
	Open      *OpenEpoch `json:"open,omitempty"` // the round under way
	Epochs    []Epoch    `json:"epochs"`         // committed and not collected, ascending

	Recovery   *Recovery `json:"recovery,omitempty"` // set exactly while State is RECOVERING
	Recoveries int       `json:"recoveries"`         // completed ones
	Bills      []Bill    `json:"bills"`              // of the newest maxBills recoveries
	Kills      int       `json:"kills"`              // recoveries since the newest commit that one pod alone caused
	Crashes    int       `json:"crashes"`            // crash retries used

	Unprotected string     `json:"unprotected,omitempty"` // why the newest round failed, "" when it did not
	ExitCode    *int       `json:"exit_code,omitempty"`   // set when the job ended
	Reason      string     `json:"reason,omitempty"`      // why it ended, when not by itself
	Exits       []job.Exit `json:"exits,omitempty"`
	KeepImages  bool       `json:"keep_images,omitempty"` // ended, and can be restarted
	Retired     bool       `json:"retired,omitempty"`     // ended, its pods are gone and its images dropped unless kept
}

// Pod is where a pod of a job is and what it is called.
type Pod struct {
	Index    job.PodIndex    `json:"pod"`
	Node     job.NodeID      `json:"node"` // "" while a recovery waits for a spare
	Boot     job.Boot        `json:"boot"` // of Node, when the pod was put there
	Ranks    []job.Rank      `json:"ranks"`
	IP       netip.Addr      `json:"ip"`
	MAC      string          `json:"mac"`
	Hostname string          `json:"hostname"`
	Built    job.Incarnation `json:"built"`              // in which the pod was last built
	Intended job.NodeID      `json:"intended,omitempty"` // the spare meant for it, first target of its replicas
}

// OpenEpoch is a checkpoint round under way. Term and Attempt identify the
// round of the leader that opened it.
type OpenEpoch struct {
	Epoch   job.Epoch `json:"epoch"`
	Term    uint64    `json:"term"`
	Attempt uint64    `json:"attempt"`
}

// Epoch is a committed checkpoint.
type Epoch struct {
	Epoch       job.Epoch          `json:"epoch"`
	Incarnation job.Incarnation    `json:"incarnation"` // in which it was taken
	Attempt     uint64             `json:"attempt"`     // round in which it was taken
	Index       uint64             `json:"index"`       // raft index of the commit
	AtMS        int64              `json:"at_ms"`       // wall clock of the leader, for people only
	SetDigest   string             `json:"set_digest"`  // over the digests of all pods' images
	Images      []PodImage         `json:"images"`      // index = PodIndex
	Bytes       int64              `json:"bytes"`
	StallMS     float64            `json:"stall_ms"`
	TimesMS     map[string]float64 `json:"times_ms,omitempty"`
}

// NewBytes is how much of the images was written for this epoch; the others of
// Bytes are in files that it shares with earlier ones. 0 when not known.
func (e *Epoch) NewBytes() (n int64) {
	for _, im := range e.Images {
		n += im.Written.NewBytes
	}
	return n
}

// PodImage is the stored state of one pod at an epoch and who holds it.
type PodImage struct {
	Pod     job.PodIndex   `json:"pod"`
	Written podapi.Written `json:"written"`
	Bytes   int64          `json:"bytes"`
	Holders []job.NodeID   `json:"holders"` // alive when last looked at; a declared death removes a node
}

// Recovery is an agreed return to Epoch. It is replaced by another one, of a
// higher incarnation and with all losses so far, when something else fails
// before it is done.
type Recovery struct {
	Incarnation job.Incarnation `json:"incarnation"` // equals the job's
	Epoch       job.Epoch       `json:"epoch"`       // pinned: not collected before the recovery is done
	Lost        []LostPod       `json:"lost"`        // pods to be rebuilt, ascending
	Old         []OldPod        `json:"old"`         // former builds of them, to be fenced before the release
	Waiting     bool            `json:"waiting"`     // some lost pod has no node yet
	Cause       string          `json:"cause"`       // for people
	Tries       int             `json:"tries"`       // recoveries begun since the job last ran
	DetectMS    float64         `json:"detect_ms"`
	Skipped     job.Epoch       `json:"skipped,omitempty"` // newest committed epoch that had to be given up, 0 = none
}

// LostPod is a pod that a recovery rebuilds.
type LostPod struct {
	Pod  job.PodIndex `json:"pod"`
	From job.NodeID   `json:"from"` // where it was when the job last ran
	To   job.NodeID   `json:"to"`   // "" while waiting; From when rebuilt in place
}

// OldPod is a place where a former build of a lost pod may still be. Before
// the release every one must be known dead: killed by the lamd of that life of
// the node, or its node fenced.
type OldPod struct {
	Pod   job.PodIndex `json:"pod"`
	Place NodeRef      `json:"place"`
}

// Bill is what a recovery cost, in milliseconds by phase: detect agree fence
// stop rollback restore rewire refill total lost_work.
type Bill struct {
	Incarnation job.Incarnation    `json:"incarnation"`
	Epoch       job.Epoch          `json:"epoch"`
	Lost        []job.NodeID       `json:"lost"`
	Spares      []job.NodeID       `json:"spares"`
	MS          map[string]float64 `json:"ms"`
	Skipped     job.Epoch          `json:"skipped,omitempty"` // newer epoch of which no intact image was left
	Cause       string             `json:"cause,omitempty"`
	AtMS        int64              `json:"at_ms,omitempty"` // wall clock of the leader at its end, for people only
}

// Event is something that happened, as data. See docs/events.md for names.
type Event struct {
	Seq   uint64         `json:"seq"`
	AtMS  int64          `json:"at_ms"` // wall clock of the proposer, for people only
	Name  string         `json:"event"`
	Job   job.ID         `json:"job,omitempty"`
	Epoch job.Epoch      `json:"epoch,omitempty"`
	Node  job.NodeID     `json:"node,omitempty"`
	Data  map[string]any `json:"data,omitempty"`
}

// Bounds of what the state remembers.
const (
	maxEvents = 1024
	maxEnded  = 64
	maxBills  = 32
	maxTries  = 8 // recoveries begun in a row before the job is stopped
	maxKills  = 5 // in-place recoveries between two commits
)

// Shown returns the state of a job as `lam jobs` shows it.
func (j *Job) Shown() job.State {
	switch {
	case j.State != job.Running:
		return j.State
	case j.Suspended:
		return job.Suspended
	case j.Open != nil:
		return job.Checkpointing
	}
	return job.Running
}

// Newest returns the newest committed epoch, nil when there is none.
func (j *Job) Newest() *Epoch {
	if len(j.Epochs) == 0 {
		return nil
	}
	return &j.Epochs[len(j.Epochs)-1]
}

// Whole returns the newest committed epoch of which every image has a holder,
// nil when there is none.
func (j *Job) Whole() *Epoch {
	for i := len(j.Epochs) - 1; i >= 0; i-- {
		if j.Epochs[i].whole() {
			return &j.Epochs[i]
		}
	}
	return nil
}

func (e *Epoch) whole() bool {
	return !slices.ContainsFunc(e.Images, func(im PodImage) bool { return len(im.Holders) == 0 })
}

// Find returns the committed epoch e, nil when there is none of that number.
func (j *Job) Find(e job.Epoch) *Epoch {
	for i := range j.Epochs {
		if j.Epochs[i].Epoch == e {
			return &j.Epochs[i]
		}
	}
	return nil
}

// Placement returns where the pods are. Pods without a node are included.
func (j *Job) Placement() []job.PodPlacement {
	out := make([]job.PodPlacement, len(j.Pods))
	for i, p := range j.Pods {
		out[i] = job.PodPlacement{Pod: p.Index, Node: p.Node, Ranks: slices.Clone(p.Ranks)}
	}
	return out
}

// Book returns the address book of all pods.
func (j *Job) Book() []job.PodAddress {
	out := make([]job.PodAddress, len(j.Pods))
	for i, p := range j.Pods {
		out[i] = job.PodAddress{Pod: p.Index, IP: p.IP, MAC: p.MAC, Hostname: p.Hostname}
	}
	return out
}

// Protected says how safe a job is: "NO" without a committed epoch, "AT_RISK"
// when some image has fewer living holders than asked for, otherwise "YES".
func (s *State) Protected(j *Job) string {
	e := j.Newest()
	if e == nil {
		return "NO"
	}
	for _, im := range e.Images {
		if len(im.Holders) < j.Spec.Replicas {
			return "AT_RISK"
		}
	}
	return "YES"
}

// LostPods returns the indices of the pods that r rebuilds.
func (r *Recovery) LostPods() []job.PodIndex {
	out := make([]job.PodIndex, len(r.Lost))
	for i, l := range r.Lost {
		out[i] = l.Pod
	}
	return out
}

// IsLost reports whether r rebuilds pod p.
func (r *Recovery) IsLost(p job.PodIndex) bool {
	return slices.ContainsFunc(r.Lost, func(l LostPod) bool { return l.Pod == p })
}

// PodsOn returns the pods that should be on a node, by job, with the oldest
// incarnation in which a supervisor there may have been built. lamd kills
// every pod of its node that is not in it, at its start and whenever the state
// changes: that is how the pods of ended and moved jobs die on nodes that no
// leader could reach.
func (s *State) PodsOn(node job.NodeID, boot job.Boot) map[job.ID]Pod {
	out := map[job.ID]Pod{}
	for id, j := range s.Jobs {
		if j.State.Final() {
			continue
		}
		for _, p := range j.Pods {
			if p.Node == node && p.Boot == boot {
				out[id] = p
			}
		}
	}
	return out
}

// ImagesOn returns the epochs of a job whose files a node may keep. lamd
// deletes the others, except that it keeps files of epochs newer than every
// one given so far (LastEpoch): those belong to a round it has not heard of.
func (s *State) ImagesOn(node job.NodeID, id job.ID) []job.Epoch {
	j := s.Jobs[id]
	if j == nil {
		return nil
	}
	var out []job.Epoch
	for _, e := range j.Epochs {
		if slices.ContainsFunc(e.Images, func(im PodImage) bool { return slices.Contains(im.Holders, node) }) {
			out = append(out, e.Epoch)
		}
	}
	if j.Open != nil {
		out = append(out, j.Open.Epoch)
	}
	return out
}

// AliveNodes returns the living nodes in the order of their names, n2 before n10.
func (s *State) AliveNodes() []Node {
	var out []Node
	for _, n := range s.Nodes {
		if n.State == Alive {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b Node) int { return compareNames(string(a.ID), string(b.ID)) })
	return out
}

// IsAlive reports whether the log holds that life of a node for alive.
func (s *State) IsAlive(r NodeRef) bool {
	n, ok := s.Nodes[r.Node]
	return ok && n.State == Alive && n.Boot == r.Boot
}

// JobIDs returns the ids of all known jobs, ascending.
func (s *State) JobIDs() []job.ID { return slices.Sorted(maps.Keys(s.Jobs)) }
