// Package job is the vocabulary of lampause: the small types that every other
// package speaks. It depends on the standard library only and holds no
// behaviour beyond formatting and validation.
//
// Words (see docs/ARCHITECTURE.md): a node is a host that runs one lamd; a job
// is an MPI program with ranks 0..N-1; a pod holds the ranks of one job on one
// node; an epoch numbers a coordinated checkpoint of a job; an incarnation
// numbers the lives of a job and rises at every recovery.
package job

import (
	"fmt"
	"net/netip"
	"strconv"
)

// NodeID is the stable name of a node ("n1"). It does not change when the
// node starts anew; Boot does.
type NodeID string

// Boot is the incarnation of a node. It rises only when the node really
// started anew or when the log declared it dead.
type Boot uint64

// ID names a job. IDs are given by the scheduler and never used again.
type ID uint64

// String returns the decimal form, as users type it.
func (id ID) String() string { return strconv.FormatUint(uint64(id), 10) }

// ParseID parses what String printed.
//
// Expected errors: one that names the text, when it is not a positive number.
func ParseID(s string) (ID, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("job id %q: not a positive number", s)
	}
	return ID(n), nil
}

// Rank is the number of a process in MPI_COMM_WORLD, counted from 0.
type Rank int

// PodIndex numbers the pods of one job, counted from 0. A pod keeps its index,
// virtual address and hostname when it is rebuilt on another node.
type PodIndex int

// Epoch numbers a coordinated checkpoint of one job, counted from 1; 0 means
// none. A number is never used again, also not after an abandoned round.
type Epoch uint64

// Incarnation numbers the lives of a job, counted from 1. It rises at every
// recovery; ranks of an older incarnation must never compute again.
type Incarnation uint64

// ViewID numbers the agreed lists of members, counted from 1.
type ViewID uint64

// MaxNameLen bounds node and job names, in bytes.
const MaxNameLen = 64

// ValidNode reports whether id can name a node: 1 to MaxNameLen letters,
// digits, dots, dashes or underscores. Node names become file names.
func ValidNode(id NodeID) bool {
	if len(id) == 0 || len(id) > MaxNameLen || id[0] == '.' || id[0] == '-' {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '.' || c == '-' || c == '_':
		default:
			return false
		}
	}
	return true
}

// State is what `lam jobs` shows of a job.
type State string

// The states of a job. DONE and FAILED are final.
const (
	Starting      State = "STARTING"
	Running       State = "RUNNING"
	Checkpointing State = "CHECKPOINTING"
	Recovering    State = "RECOVERING"
	Suspended     State = "SUSPENDED"
	Done          State = "DONE"
	Failed        State = "FAILED"
)

// Final reports whether a job in state s will never run again.
func (s State) Final() bool { return s == Done || s == Failed }

// PodPlacement says where one pod of a job is and which ranks it holds.
type PodPlacement struct {
	Pod   PodIndex `json:"pod"`
	Node  NodeID   `json:"node"`
	Ranks []Rank   `json:"ranks"` // ascending, never empty
}

// PodAddress is a line of a job's address book. IP and Hostname belong to
// (job, pod) and move with it; MAC changes with the incarnation in which the
// pod was last built, so that a stale pod completes no handshake.
type PodAddress struct {
	Pod      PodIndex   `json:"pod"`
	IP       netip.Addr `json:"ip"`
	MAC      string     `json:"mac"` // aa:bb:cc:dd:ee:ff
	Hostname string     `json:"hostname"`
}

// Exit is how a rank ended.
type Exit struct {
	Rank   Rank `json:"rank"`
	Code   int  `json:"code"`           // exit status, 0 when Signal is set
	Signal int  `json:"signal"`         // terminating signal, 0 for none
	Core   bool `json:"core,omitempty"` // the kernel wrote a core file
}

// Status returns the shell's view of the exit: the code, or 128 + signal.
func (e Exit) Status() int {
	if e.Signal != 0 {
		return 128 + e.Signal
	}
	return e.Code
}

// Exit codes of lampause's own commands (docs/cli.md); they follow
// sysexits.h where that has a word.
const (
	ExitUsage      = 64 // wrong usage, or an unknown program
	ExitNoNodes    = 69 // no nodes or slots, or a node was lost and not replaced
	ExitInternal   = 70 // a fault of lampause itself
	ExitCheckpoint = 75 // stopped, and a usable checkpoint is kept
	ExitPermission = 77 // not permitted, or not executable
	ExitConfig     = 78 // host file, or a stale or used runtime directory
)
