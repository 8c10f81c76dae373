package membership

import (
	"net/netip"
	"time"

	"github.com/lampause/lampause/job"
)

// Kind is the state of a member as this node sees it, and the kind of an Event.
type Kind string

// The states of a member. Suspect members are being probed; Dead is a
// suggestion to the agreed log; Left members said good-bye.
const (
	Alive   Kind = "alive"
	Suspect Kind = "suspect"
	Dead    Kind = "dead"
	Left    Kind = "left"
)

// Source says where evidence about a member came from.
type Source string

// The sources, fastest first. SourceOperator and SourceBoot are certain and
// need no second opinion; all others are accusations that the Cluster examines
// with probes of its own.
const (
	SourceOperator Source = "operator" // a person said so
	SourceBoot     Source = "boot"     // the node came back with a newer boot
	SourceReset    Source = "reset"    // a connection to it was reset or refused
	SourcePod      Source = "pod"      // the pods on it vanished
	SourceTimeout  Source = "timeout"  // a request to it got no answer in time
	SourceProbe    Source = "probe"    // our own pings and dials
	SourceGossip   Source = "gossip"   // memberlist, and what other members told it
)

// Member is what is known about one boot of one node. It is a value: copies
// share nothing.
type Member struct {
	Meta
	State  Kind
	Source Source // of the last change of State

	// Accused is when the first evidence came that led to State, for suspect and
	// dead members; zero for others. It has a monotonic reading: use time.Since.
	Accused time.Time
}

// Event is a change of a member's state. Events of one member come in order.
type Event struct {
	Kind    Kind
	Node    job.NodeID
	Boot    job.Boot
	Session uint64
	Addr    netip.AddrPort // of its gossip port
	Meta    Meta
	Source  Source

	// Doubt is, for Suspect and Dead, the time from the first evidence to this
	// event; 0 otherwise.
	Doubt time.Duration

	// More is set on all but the last Dead event of one batch: several nodes
	// that died together (a rack) are one recovery.
	More bool
}

// Evidence is an accusation that the daemon brings: the fast sources. Boot 0
// means the boot that is current when the evidence is weighed; evidence about
// an older boot is ignored.
type Evidence struct {
	Node   job.NodeID
	Boot   job.Boot
	Source Source
	Detail string // for the log only
}
