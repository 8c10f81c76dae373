package pause

import (
	"context"
	"fmt"
	"sync"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
)

// Pod checkpoints and rolls back the ranks of one pod. Make one with New, tell
// it the ranks with SetRanks, Close it when the ranks are gone.
type Pod struct {
	cfg Config

	mu        sync.Mutex // held during a step; guards the fields below
	state     State
	group     *group                // the processes
	draft     *snapshot             // of state.Draft
	committed *snapshot             // of state.Committed
	round     *round                // of the stall under way
	back      *stream.Restored      // the sockets, between Rollback and Release
	reports   map[podapi.Op]*Report // last answer of each op
	written   *podapi.Written       // answer of the last Write
	stamps    stamps                // of files that ranks write
}

// New returns a pod without ranks.
func New(cfg Config) *Pod {
	return &Pod{cfg: cfg, state: State{Phase: Running}, group: newGroup(cfg), reports: map[podapi.Op]*Report{}}
}

// SetRanks says which processes are the ranks, and which files they were given
// from outside. Descendants of a rank belong to it. It replaces what was said
// before; call it when the ranks were started or rebuilt.
func (p *Pod) SetRanks(ranks []Rank, externals []External) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.group.setRanks(ranks, externals)
}

// State returns where the pod stands.
func (p *Pod) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// Prepare makes room for the next copy ahead of a round, so that the stall
// does not pay for page faults: call it after MPI_Init and after each commit.
// It changes nothing else.
//
// Expected errors: ErrBudget.
func (p *Pod) Prepare(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.group.prepare(ctx); err != nil {
		return err
	}
	return p.group.prefill(ctx, p.committed)
}

// Preflight stops the ranks for a moment and reports every obstacle to a
// checkpoint, by name.
func (p *Pod) Preflight(ctx context.Context) (*Report, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state.Phase != Running {
		return nil, fmt.Errorf("pause: preflight in phase %s: %w", p.state.Phase, ErrOrder)
	}
	return p.preflight(ctx)
}

// Freeze begins a checkpoint: every rank is stopped. Report.Marks has the TCP
// ends, without sequence numbers.
//
// Expected errors: ErrOrder; *Refusal; ErrBudget. The ranks run on then.
func (p *Pod) Freeze(ctx context.Context, epoch job.Epoch) (*Report, error) {
	return p.do(ctx, Event{podapi.OpFreeze, epoch}, args{})
}

// CaptureSend captures send queues, threads, mappings and descriptors, and
// starts to copy memory. Call it when every pod of the job is frozen.
//
// Expected errors: ErrOrder; *Refusal. The pod stays frozen; Abandon it.
func (p *Pod) CaptureSend(ctx context.Context, epoch job.Epoch) (*Report, error) {
	return p.do(ctx, Event{podapi.OpCaptureSend, epoch}, args{})
}

// CaptureRecv captures receive queues and waits for the copy of memory. Call
// it when every pod has captured its send queues.
//
// Expected errors: as of CaptureSend.
func (p *Pod) CaptureRecv(ctx context.Context, epoch job.Epoch) (*Report, error) {
	return p.do(ctx, Event{podapi.OpCaptureRecv, epoch}, args{})
}

// Resume lets the ranks go on. peers are the marks of the other ends of this
// pod's connections.
//
// Expected errors: ErrOrder; *Refusal when the marks do not fit (the ranks run
// all the same; Abandon the epoch).
func (p *Pod) Resume(ctx context.Context, epoch job.Epoch, peers []podapi.Mark) (*Report, error) {
	return p.do(ctx, Event{podapi.OpResume, epoch}, args{peers: peers})
}

// ResumeStopped is Resume, but leaves the processes stopped as by SIGSTOP: they
// execute nothing that the image does not know. What they were stopped with is
// not part of it.
//
// Expected errors: those of Resume.
func (p *Pod) ResumeStopped(ctx context.Context, epoch job.Epoch, peers []podapi.Mark) (*Report, error) {
	return p.do(ctx, Event{podapi.OpResume, epoch}, args{peers: peers, stopped: true})
}

// Write stores the image of the draft in dir, durably, while the ranks run.
// Where the image of the committed epoch is in dir too, memory that was not
// written since is shared with that and not written again.
//
// Expected errors: ErrOrder; those of image.Writer (disk full, ...).
func (p *Pod) Write(ctx context.Context, epoch job.Epoch, dir *image.JobDir, o image.Options, x Extra) (*podapi.Written, error) {
	return p.write(ctx, epoch, x, dir, o)
}

// Commit says that the log committed the epoch: what is kept of the one before
// is dropped.
//
// Expected errors: ErrUnknownEpoch.
func (p *Pod) Commit(ctx context.Context, epoch job.Epoch) error {
	_, err := p.do(ctx, Event{podapi.OpCommit, epoch}, args{})
	return err
}

// Abandon gives the epoch up: frozen ranks run on, the copy is dropped. It may
// be called in any phase, also for an epoch that never began.
//
// Expected errors: ErrOrder for a committed epoch.
func (p *Pod) Abandon(ctx context.Context, epoch job.Epoch) error {
	_, err := p.do(ctx, Event{podapi.OpAbandon, epoch}, args{})
	return err
}

// Stop begins a recovery: every rank is stopped, a round under way is given
// up. Report.Marks has the live TCP ends; Report.LostRanks has ranks that are
// gone.
func (p *Pod) Stop(ctx context.Context) (*Report, error) {
	return p.do(ctx, Event{Op: podapi.OpStop}, args{})
}

// Rollback puts every rank back to the epoch and leaves it frozen. generation
// numbers the recoveries of the job (its incarnation): every pod of the job
// must be given the same, and never one twice.
//
// Expected errors: ErrOrder; ErrUnknownEpoch; ErrLost, with the ranks in
// Report.LostRanks, the others being whole.
func (p *Pod) Rollback(ctx context.Context, epoch job.Epoch, generation uint64) (*Report, error) {
	return p.do(ctx, Event{podapi.OpRollback, epoch}, args{generation: generation})
}

// Release refills the connections and lets the ranks go on. Call it when every
// pod of the job is rolled back or rebuilt, and after the fence.
func (p *Pod) Release(ctx context.Context) (*Report, error) {
	p.mu.Lock()
	at := p.state.At
	p.mu.Unlock()
	return p.do(ctx, Event{podapi.OpRelease, at}, args{})
}

// ReleaseStopped is Release, but leaves the processes stopped as by SIGSTOP:
// they execute nothing before somebody sends SIGCONT.
//
// Expected errors: those of Release.
func (p *Pod) ReleaseStopped(ctx context.Context) (*Report, error) {
	p.mu.Lock()
	at := p.state.At
	p.mu.Unlock()
	return p.do(ctx, Event{podapi.OpRelease, at}, args{stopped: true})
}

// Adopt takes over a pod whose ranks were rebuilt by migrate/ from the image
// that r reads, so that a second loss finds them as survivors. r belongs to the
// Pod from now on. rec is what the connections are now (stream.Restored.Record),
// nil when that is not known: then every connection is made anew.
// Call SetRanks first, and Adopt before or after the ranks were released, but
// before the next step.
//
// Expected errors: ErrOrder.
func (p *Pod) Adopt(ctx context.Context, r *image.Reader, rec *stream.Record) error {
	_, err := p.do(ctx, Event{opAdopt, r.Manifest().Epoch}, args{reader: r, record: rec})
	return err
}

// Suspend freezes the ranks until Continue.
func (p *Pod) Suspend(ctx context.Context) error {
	_, err := p.do(ctx, Event{Op: podapi.OpSuspend}, args{})
	return err
}

// Continue ends Suspend.
func (p *Pod) Continue(ctx context.Context) error {
	_, err := p.do(ctx, Event{Op: podapi.OpContinue}, args{})
	return err
}
