package pause

import (
	"errors"
	"fmt"
	"strings"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
)

// Errors of the steps; match with errors.Is.
var (
	// ErrOrder says that a step is not legal in the pod's state.
	ErrOrder = errors.New("step out of order")
	// ErrUnknownEpoch says that there is nothing kept of the epoch asked for.
	ErrUnknownEpoch = errors.New("epoch is not kept here")
	// ErrBudget says that the copy would need more memory than is allowed.
	ErrBudget = errors.New("memory budget exceeded")
	// ErrLost says that a rank could not be put back and must be restored from
	// its image; Report.LostRanks names the ranks.
	ErrLost = errors.New("rank lost")
)

// Config is what a Pod is made with.
type Config struct {
	Job         job.ID
	Pod         job.PodIndex
	Node        job.NodeID
	Incarnation job.Incarnation

	Sys     *kernel.Sys     // nil: plain kernel calls
	Streams *stream.Streams // nil: TCP sockets are obstacles

	// Files says what a rollback does with regular files that the ranks have
	// open: "truncate" (default; offset and length back), "seek" (offset only),
	// "verify" (a file changed since is an error), "save" (a checkpoint keeps the
	// contents of files open for writing, a rollback puts them back). Report.Notes
	// has what was overwritten otherwise.
	Files string

	// Budget bounds the RAM copies of all ranks together, in bytes; 0 means
	// half of the memory that is available when a round begins.
	Budget int64

	// Backing says whether memory is copied in the stall or, from a fork, after
	// it; empty means BackingAuto.
	Backing Backing

	// NoTracking copies and puts back all memory every time, instead of what
	// was written since.
	NoTracking bool

	// Workers copy the memory of one process in parallel; 0 means 4 divided by
	// the number of processes, at least 1.
	Workers int

	Log zerolog.Logger
}

// Rank is a rank of the pod: the process that was started for it.
type Rank struct {
	Rank job.Rank
	PID  int // as the supervisor sees it
}

// External is a file that the supervisor gave to a rank and keeps the other
// end of: stdio, the PMI socket. Such descriptors are named in the image and
// not stored. It is recognised by device and inode, as fstat tells them.
type External struct {
	Name string // "stdin", "stdout", "stderr", "pmi"
	Rank job.Rank
	Dev  uint64
	Ino  uint64
}

// Report is what a step tells.
type Report struct {
	Marks     []podapi.Mark      // TCP ends: Freeze, CaptureSend, CaptureRecv, Stop
	TimesMS   map[string]float64 // parts of the step, for the bill
	Bytes     int64              // CaptureRecv: memory kept of the epoch; Rollback: memory put back
	Copied    int64              // CaptureRecv: memory copied for it, the rest had not changed
	Backing   string             // CaptureRecv: how the memory was kept, and why
	LostRanks []job.Rank         // Rollback: ranks that must be restored from their images
	Obstacles []string           // Preflight
	Unfit     []string           // Preflight: those that stand against a rollback as well: all but descriptors
	Notes     []string           // Rollback: files whose contents are not those of the epoch, one per line
}

// Extra is what the supervisor adds to a manifest: state of its own at the
// epoch.
type Extra struct {
	Stdio []image.StdioCount
	PMI   []byte
}

// Refusal is the error of a round that cannot be carried out. The ranks run as
// before, or are frozen as before.
type Refusal struct {
	Obstacles []string // at least one, each a line for people
	Retry     bool     // a later round may succeed
}

// Error names the first obstacle and counts the others.
func (r *Refusal) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "pause: refused: %s", r.Obstacles[0])
	if n := len(r.Obstacles) - 1; n > 0 {
		fmt.Fprintf(&b, " (and %d more)", n)
	}
	return b.String()
}
