package pod

import (
	"context"
	"errors"
	"fmt"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/pid1"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/pause"
)

// liveEngine is the engine made of pause, migrate and internal/stream. It is
// used by one goroutine at a time, except write.
type liveEngine struct {
	pod     *pause.Pod
	streams *stream.Streams
	images  *image.JobDir
	index   job.PodIndex
	files   string
	log     zerolog.Logger
	seed    func(ctx context.Context, pid int) (seedProcess, error)

	epoch   job.Epoch   // of the open checkpoint
	rebuilt *rebuilding // between restore and release
}

var _ engine = (*liveEngine)(nil)

// newEngine returns the engine of a supervisor's pod. It belongs to the
// supervisor's network namespace.
func newEngine(s *supervisor) (engine, error) {
	images, err := image.OpenJob(s.spec.ImageDir, s.spec.Job)
	if err != nil {
		return nil, err
	}
	backing, err := pause.ParseBacking(s.spec.Spec.Backing)
	if err != nil {
		return nil, errors.Join(err, images.Close())
	}
	streams := stream.New(kernel.New(nil), -1, s.log)
	return &liveEngine{
		pod: pause.New(pause.Config{
			Job: s.spec.Job, Pod: s.spec.Placement.Pod, Node: s.spec.Node, Incarnation: s.spec.Incarnation,
			Streams: streams, Files: s.spec.Spec.Files, Backing: backing, Log: s.log,
		}),
		streams: streams, images: images, index: s.spec.Placement.Pod, files: s.spec.Spec.Files, log: s.log, seed: s.startSeed,
	}, nil
}

// setRanks tells pause who the ranks are. Ranks that have ended are not part
// of a checkpoint; the supervisor remembers how they ended.
func (e *liveEngine) setRanks(ranks []member) error {
	var list []pause.Rank
	var given []pause.External
	for _, m := range ranks {
		if m.outer == 0 {
			continue
		}
		list = append(list, pause.Rank{Rank: m.rank, PID: m.outer})
		for name, f := range m.given {
			var st unix.Stat_t
			if err := unix.Fstat(pid1.FD(f), &st); err != nil {
				return fmt.Errorf("%s of rank %d: %w", name, m.rank, err)
			}
			given = append(given, pause.External{Name: name, Rank: m.rank, Dev: st.Dev, Ino: st.Ino})
		}
	}
	e.pod.SetRanks(list, given)
	return nil
}

// outcome turns a report of pause into a reply, and its refusals into errRetry
// where that is so.
func outcome(r *pause.Report, err error) (podapi.PhaseReply, error) {
	var out podapi.PhaseReply
	if r != nil {
		out = podapi.PhaseReply{Marks: r.Marks, TimesMS: r.TimesMS, Bytes: r.Bytes, Backing: r.Backing, LostRanks: r.LostRanks, Obstacles: r.Obstacles, Notes: r.Notes}
	}
	var no *pause.Refusal
	var flow *stream.Refusal
	switch {
	case err == nil:
		return out, nil
	case errors.As(err, &no):
		out.Obstacles = no.Obstacles
		if no.Retry {
			err = errors.Join(err, errRetry)
		}
	case errors.As(err, &flow) && flow.Retry():
		err = errors.Join(err, errRetry)
	}
	return out, err
}

func (e *liveEngine) freeze(ctx context.Context, epoch job.Epoch, ranks []member) (podapi.PhaseReply, error) {
	if err := e.setRanks(ranks); err != nil {
		return podapi.PhaseReply{}, err
	}
	if err := refuseStrays(ranks); err != nil {
		return outcome(nil, err)
	}
	e.epoch = epoch
	return outcome(e.pod.Freeze(ctx, epoch))
}

func (e *liveEngine) captureSend(ctx context.Context) (podapi.PhaseReply, error) {
	return outcome(e.pod.CaptureSend(ctx, e.epoch))
}

func (e *liveEngine) captureRecv(ctx context.Context) (podapi.PhaseReply, error) {
	return outcome(e.pod.CaptureRecv(ctx, e.epoch))
}

func (e *liveEngine) resume(ctx context.Context, peers []podapi.Mark) (podapi.PhaseReply, error) {
	return outcome(e.pod.Resume(ctx, e.epoch, peers))
}

func (e *liveEngine) write(ctx context.Context, epoch job.Epoch, extra *side) (podapi.Written, error) {
	blob, err := extra.encode()
	if err != nil {
		return podapi.Written{}, err
	}
	w, err := e.pod.Write(ctx, epoch, e.images, image.Options{Direct: true}, pause.Extra{Stdio: extra.counts(), PMI: blob})
	if err != nil {
		return podapi.Written{}, err
	}
	return *w, nil
}

func (e *liveEngine) commit(ctx context.Context, epoch job.Epoch) error {
	return e.pod.Commit(ctx, epoch)
}

func (e *liveEngine) prepare(ctx context.Context, ranks []member) error {
	if err := e.setRanks(ranks); err != nil {
		return err
	}
	return e.pod.Prepare(ctx)
}

func (e *liveEngine) abandon(ctx context.Context, epoch job.Epoch) error {
	return e.pod.Abandon(ctx, epoch)
}

func (e *liveEngine) stop(ctx context.Context, ranks []member) (podapi.PhaseReply, error) {
	if e.rebuilt != nil { // restored, not yet released: frozen already
		return podapi.PhaseReply{}, errors.New("the pod was rebuilt for another attempt and is to be replaced")
	}
	if err := e.setRanks(ranks); err != nil {
		return podapi.PhaseReply{}, err
	}
	r, err := outcome(e.pod.Stop(ctx))
	if err == nil {
		err = endStrays(ranks)
	}
	return r, err
}

func (e *liveEngine) rollback(ctx context.Context, q podapi.PhaseRequest) (podapi.PhaseReply, error) {
	return outcome(e.pod.Rollback(ctx, q.Epoch, uint64(q.Incarnation)))
}

func (e *liveEngine) release(ctx context.Context, stopped bool) (podapi.PhaseReply, error) {
	if e.rebuilt == nil && stopped {
		return outcome(e.pod.ReleaseStopped(ctx))
	}
	if e.rebuilt == nil {
		return outcome(e.pod.Release(ctx))
	}
	if err := e.rebuilt.release(ctx, stopped); err != nil {
		return podapi.PhaseReply{}, err
	}
	e.rebuilt = nil
	return podapi.PhaseReply{}, nil
}

func (e *liveEngine) preflight(ctx context.Context, ranks []member) (podapi.PhaseReply, error) {
	if err := e.setRanks(ranks); err != nil {
		return podapi.PhaseReply{}, err
	}
	if err := refuseStrays(ranks); err != nil {
		return outcome(nil, err)
	}
	return outcome(e.pod.Preflight(ctx))
}

func (e *liveEngine) close() error {
	var err error
	if e.rebuilt != nil {
		err = e.rebuilt.undo()
		e.rebuilt = nil
	}
	return errors.Join(err, e.pod.Close())
}

// maxSeeds bounds the processes that are rebuilt at the same time.
const maxSeeds = 4

func (e *liveEngine) restore(ctx context.Context, q podapi.PhaseRequest, ranks []member) (podapi.PhaseReply, []member, *side, error) {
	var reply podapi.PhaseReply
	if e.rebuilt != nil { // of an attempt that failed elsewhere
		if err := e.rebuilt.undo(); err != nil {
			return reply, nil, nil, err
		}
		e.rebuilt = nil
	}
	b := &rebuilding{engine: e, ranks: ranks}
	x, err := b.build(ctx, q)
	if err != nil {
		return reply, nil, nil, errors.Join(err, b.undo())
	}
	e.rebuilt = b
	reply.TimesMS = map[string]float64{}
	if b.procs != nil {
		reply.Bytes, reply.Notes = b.procs.Bytes, b.procs.Notes
		for name, d := range b.procs.Times {
			reply.TimesMS[name] = float64(d.Microseconds()) / 1000
		}
	}
	return reply, b.ranks, x, nil
}
