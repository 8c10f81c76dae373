package pod

import (
	"context"
	"errors"
	"os"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// errRetry marks a refusal of the engine that may not be repeated soon: a
// connection is being set up, a rank is about to end.
var errRetry = errors.New("trying again may succeed")

// member is a rank as the engine sees it.
type member struct {
	rank  job.Rank
	outer int // process number of the supervisor's pid namespace; 0: ended, or not built yet
	inner int // process number in the pod
	// given are the descriptors that come from the supervisor, by name
	// ("stdin", "stdout", "stderr", "pmi"). They are not stored in an image
	// but made anew.
	given map[string]*os.File
}

// engine captures and puts back the ranks of a pod. It is driven by phases,
// one operation at a time; the order is podapi's. An operation that fails
// leaves the ranks as they were, unless it says otherwise.
type engine interface {
	// freeze stops all ranks for a checkpoint of epoch e; reply: Marks.
	// Expected errors: errRetry, wrapped; the ranks run on.
	freeze(ctx context.Context, e job.Epoch, ranks []member) (podapi.PhaseReply, error)
	// captureSend copies send queues and starts to copy memory; reply: Marks.
	captureSend(ctx context.Context) (podapi.PhaseReply, error)
	// captureRecv copies receive queues and ends the copy of memory; reply:
	// Marks, Bytes.
	captureRecv(ctx context.Context) (podapi.PhaseReply, error)
	// resume lets the ranks go on; what was captured stays for write.
	// peers are the marks of the other ends.
	resume(ctx context.Context, peers []podapi.Mark) (podapi.PhaseReply, error)
	// write stores what was captured as epoch e. It runs while the ranks do,
	// and ends early when ctx does.
	write(ctx context.Context, e job.Epoch, extra *side) (podapi.Written, error)
	// commit makes what was captured the state to return to.
	commit(ctx context.Context, e job.Epoch) error
	// abandon lets the ranks go on if they are frozen and forgets what was
	// captured since the last commit.
	abandon(ctx context.Context, e job.Epoch) error

	// stop freezes all ranks for a recovery, whatever they do; reply: Marks,
	// and LostRanks that are gone.
	stop(ctx context.Context, ranks []member) (podapi.PhaseReply, error)
	// rollback sets stopped ranks back to the newest commit; reply: LostRanks
	// that could not be put back, with an error.
	rollback(ctx context.Context, q podapi.PhaseRequest) (podapi.PhaseReply, error)
	// restore rebuilds ranks from the image of an epoch; the new process
	// numbers are set in the returned members.
	restore(ctx context.Context, q podapi.PhaseRequest, ranks []member) (podapi.PhaseReply, []member, *side, error)
	// release lets rolled back or restored ranks go on; with stopped they stand
	// still, as by SIGSTOP, and execute nothing before.
	release(ctx context.Context, stopped bool) (podapi.PhaseReply, error)

	// prepare makes room for the next copy of memory ahead of a freeze, so that
	// the stall does not pay for it. The ranks run.
	prepare(ctx context.Context, ranks []member) error
	// preflight names what of the ranks cannot be checkpointed; reply:
	// Obstacles.
	preflight(ctx context.Context, ranks []member) (podapi.PhaseReply, error)
	// close lets go of every process, frozen copies included, so that the pod
	// can end.
	close() error
}
