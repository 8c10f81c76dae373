package pause

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/internal/stream"
)

// round is what a stall holds beside the frozen processes.
type round struct {
	set   *stream.Set // nil without Streams
	files *fileTable
}

// close gives all duplicates back; the processes must still be frozen, or a
// file that they close would stay open.
func (r *round) close() error {
	if r == nil {
		return nil
	}
	var err error
	if r.set != nil {
		err = r.set.Close()
	}
	if r.files != nil {
		r.files.close()
	}
	return err
}

// look takes the inventory of sockets and descriptors of the frozen processes.
func (p *Pod) look(ctx context.Context, obs *obstacles) (_ *round, err error) {
	r := &round{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	procs := p.group.list()
	if p.cfg.Streams != nil {
		if r.set, err = p.cfg.Streams.Scan(ctx, streamProcesses(procs)); err != nil {
			return nil, err
		}
		for _, o := range r.set.Obstacles() {
			obs.list, obs.retry = append(obs.list, o.String()), obs.retry && o.Retry
		}
	}
	if err := checkSessions(procs, obs); err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			err = r.files.checkProcFiles(procs, obs)
		}
	}()
	r.files, err = scanFiles(p.group.sys, procs, p.group.externals, r.set, obs)
	return r, err
}

func streamProcesses(procs []*process) []stream.Process {
	out := make([]stream.Process, len(procs))
	for i, q := range procs {
		out[i] = stream.Process{PID: q.pid, Rank: q.rank}
	}
	return out
}

// freeze stops the ranks for a checkpoint, a recovery or a suspension.
func (p *Pod) freeze(ctx context.Context, e Event, r *Report) error {
	begin := time.Now()
	gone, err := p.group.freeze(ctx)
	r.LostRanks = gone
	r.TimesMS["stop"] = ms(time.Since(begin))
	if err != nil {
		return err
	}
	if e.Op != opFreezeCheckpoint {
		return nil
	}
	obs := &obstacles{retry: true}
	for _, rank := range gone {
		obs.list = append(obs.list, fmt.Sprintf("rank %d has ended", rank))
	}
	p.round, err = p.look(ctx, obs)
	if err == nil {
		err = obs.err()
	}
	if err != nil {
		return errors.Join(err, p.endStall(ctx))
	}
	if p.round.set != nil {
		r.Marks = p.round.set.Marks()
	}
	p.draft = newSnapshot(e.Epoch)
	return nil
}

// endStall gives duplicates back and lets the ranks go on.
func (p *Pod) endStall(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	err := p.round.close()
	p.round = nil
	return errors.Join(err, p.group.thaw(ctx))
}

// captureSend captures everything but receive queues; memory is still being
// copied when it returns.
func (p *Pod) captureSend(ctx context.Context, r *Report) error {
	snap := p.draft
	obs := &obstacles{retry: true}
	procs := p.group.list()
	if p.cfg.Backing != BackingCopy {
		begin := time.Now()
		if err := p.group.askReapers(ctx); err != nil {
			return err
		}
		r.TimesMS["reapers"] = ms(time.Since(begin))
	}
	snap.procs = make([]*captured, len(procs))
	var eg errgroup.Group
	var mu sync.Mutex // guards obs and r
	if p.round.set != nil {
		eg.Go(func() error {
			begin := time.Now()
			err := refusalOf(p.round.set.CaptureSend(ctx))
			mu.Lock()
			defer mu.Unlock()
			r.TimesMS["send_queues"] = ms(time.Since(begin))
			return err
		})
	}
	eg.Go(func() error {
		local := &obstacles{retry: true}
		begin := time.Now()
		err := p.round.files.capture(ctx, local)
		if err == nil && p.cfg.Files != filesSave {
			p.round.files.stamp(&p.stamps)
		}
		mu.Lock()
		r.TimesMS["files"] = ms(time.Since(begin))
		defer mu.Unlock()
		obs.join(local)
		return err
	})
	snap.startCopies(ctx)
	for i, q := range procs {
		c := &captured{pid: q.pid, rank: q.rank, times: map[string]float64{}}
		snap.procs[i] = c
		eg.Go(func() error {
			local := &obstacles{retry: true}
			// All of it on the tracer's thread: a change of threads costs more than
			// what it would save.
			err := q.tracer.Do(func() error { return p.captureOne(ctx, q, c, len(procs), local) })
			mu.Lock()
			defer mu.Unlock()
			obs.join(local)
			r.merge(c.times)
			if err != nil {
				return fmt.Errorf("rank %d: %w", q.rank, err)
			}
			return nil
		})
	}
	if err := errors.Join(eg.Wait(), obs.err()); err != nil {
		return errors.Join(err, snap.waitCopies())
	}
	begin := time.Now()
	if err := p.captureObjects(ctx, snap, p.round.files, obs); err != nil {
		return errors.Join(err, snap.waitCopies())
	}
	r.TimesMS["objects"] = ms(time.Since(begin))
	snap.clock = now()
	snap.describe(p.group, p.round.files)
	if p.round.set != nil {
		r.Marks = p.round.set.Marks()
	}
	return nil
}

// captureOne starts the copy of a process' memory and describes it meanwhile.
func (p *Pod) captureOne(ctx context.Context, q *process, c *captured, procs int, obs *obstacles) error {
	begin := time.Now()
	lap := func(name string) {
		c.times[name] = ms(time.Since(begin))
		begin = time.Now()
	}
	private, maps, err := captureMaps(q, c, obs)
	lap("maps")
	if err != nil {
		return err
	}
	if len(obs.list) > 0 {
		return nil
	}
	// Mapping the stub waits for the copy, were it under way.
	if err := q.frozen.Prepare(ctx); err != nil {
		return err
	}
	q.track(ctx, maps)
	s, err := q.scan(private, true)
	lap("scan")
	if err != nil {
		return err
	}
	m, wanted, err := p.group.place(ctx, q, s)
	if err != nil {
		return err
	}
	lap("buffer")
	c.pages = m
	p.keep(ctx, q, c, m, wanted, procs)
	begin = time.Now()
	err = captureProcess(ctx, q, c)
	lap("state")
	return err
}

// workers is how many goroutines copy the memory of one of n processes.
func (p *Pod) workers(n int) int {
	if p.cfg.Workers > 0 {
		return p.cfg.Workers
	}
	return max(1, 4/max(1, n))
}

// captureRecv captures receive queues and waits for memory.
func (p *Pod) captureRecv(ctx context.Context, r *Report) error {
	begin := time.Now()
	if p.round.set != nil {
		if err := p.round.set.CaptureRecv(ctx); err != nil {
			return err
		}
		rec, err := p.round.set.Record()
		if err != nil {
			return err
		}
		p.draft.record = rec
		r.Marks = p.round.set.Marks()
	}
	r.TimesMS["recv_queues"] = ms(time.Since(begin))
	begin = time.Now()
	if err := p.draft.waitCopies(); err != nil {
		return err
	}
	r.TimesMS["copy"] = ms(time.Since(begin))
	p.draft.learn(p.group)
	r.Backing = summary(p.draft.procs)
	for _, c := range p.draft.procs {
		r.Bytes += c.pages.bytes()
		r.Copied += c.copied
	}
	for _, o := range p.draft.objects {
		r.Bytes += o.pages.bytes()
	}
	p.draft.whole = true
	return nil
}

// thaw ends a stall. The streams are trimmed when the ranks run again.
func (p *Pod) thaw(ctx context.Context, e Event, a args, r *Report) error {
	err := p.endStall(ctx)
	r.TimesMS["thaw"] = 0
	if err != nil || e.Op != opResume {
		return err
	}
	if p.draft.record != nil {
		if err := p.draft.record.Trim(a.peers); err != nil {
			p.draft.whole = false
			return fmt.Errorf("%w", refusalOf(err))
		}
		p.draft.describeStreams()
	}
	p.draft.copyLater(ctx, p.group)
	return nil
}

// refusalOf turns a refusal of the streams into ours.
func refusalOf(err error) error {
	var s *stream.Refusal
	if !errors.As(err, &s) {
		return err
	}
	r := &Refusal{Retry: s.Retry()}
	for _, o := range s.Obstacles {
		r.Obstacles = append(r.Obstacles, o.String())
	}
	return r
}

// dropDraft forgets the epoch in the making.
func (p *Pod) dropDraft() {
	if p.draft != nil {
		p.draft.release(p.group)
		p.draft = nil
	}
	p.state.Draft, p.state.Written = 0, false
}

// promote makes the draft the committed epoch.
func (p *Pod) promote() {
	if p.draft == nil {
		return
	}
	if p.committed != nil {
		p.committed.release(p.group)
	}
	p.committed, p.draft = p.draft, nil
	p.state.Committed, p.state.Draft, p.state.Written = p.committed.epoch, 0, false
}

// adopt takes a pod over that was rebuilt from an image.
func (p *Pod) adopt(a args) error {
	rec := a.record
	if rec == nil && p.cfg.Streams != nil {
		rec = stream.FromDescriptions(a.reader.Manifest().Descriptions)
	}
	snap, err := adopted(p.group, a.reader, rec)
	if err != nil {
		return err
	}
	if p.committed != nil {
		p.committed.release(p.group)
	}
	p.committed = snap
	return nil
}

// preflight stops the processes for a moment and looks for obstacles.
func (p *Pod) preflight(ctx context.Context) (_ *Report, err error) {
	gone, err := p.group.freeze(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.endStall(ctx)) }()
	obs := &obstacles{}
	for _, rank := range gone {
		obs.list = append(obs.list, fmt.Sprintf("rank %d has ended", rank))
	}
	if p.round, err = p.look(ctx, obs); err != nil {
		return nil, err
	}
	if err := p.round.files.capture(ctx, obs); err != nil {
		return nil, err
	}
	unfit := &obstacles{}
	for _, q := range p.group.list() {
		c := &captured{pid: q.pid, rank: q.rank}
		if _, _, err := captureMaps(q, c, unfit); err != nil {
			return nil, err
		}
		if err := captureProcess(ctx, q, c); err != nil {
			if !errors.Is(err, proc.ErrUnsupported) {
				return nil, err
			}
			unfit.add(q, "%v", err)
		}
	}
	slices.Sort(unfit.list)
	obs.list = append(obs.list, unfit.list...)
	slices.Sort(obs.list)
	return &Report{Obstacles: obs.list, Unfit: unfit.list}, nil
}

// join adds the obstacles of other to o.
func (o *obstacles) join(other *obstacles) {
	o.list = append(o.list, other.list...)
	o.retry = o.retry && other.retry
}

// Close ends the tracers and frees all copies. Ranks go on as they are; call
// it when they are gone, or to let go of them for good.
func (p *Pod) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.round.close()
	p.round = nil
	p.dropDraft()
	if p.committed != nil {
		p.committed.release(p.group)
		p.committed = nil
	}
	p.group.close()
	return err
}

// now reads the clocks that timers are restored by.
func now() image.Clock {
	return image.Clock{
		MonotonicNS: clockNS(clockMonotonic), BoottimeNS: clockNS(clockBoottime), Wall: time.Now(),
	}
}
