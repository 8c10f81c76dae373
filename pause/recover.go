package pause

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/job"
)

// rollback puts all processes back to the committed epoch.
func (p *Pod) rollback(ctx context.Context, a args, r *Report) error {
	snap := p.committed
	if snap == nil || !snap.whole {
		return ErrUnknownEpoch
	}
	if err := p.endRecovery(); err != nil { // of a recovery that failed half-way
		return err
	}
	if err := errors.Join(p.checkLocks(snap), p.checkFiles(snap)); err != nil {
		return err
	}
	lost := &losses{}
	if err := p.endStrangers(ctx, snap); err != nil {
		return err
	}
	obs := &obstacles{}
	round, err := p.look(ctx, obs) // obstacles of the abandoned future go with it
	if err != nil {
		return err
	}
	p.round = round
	var wg sync.WaitGroup
	var backErr error
	begin := time.Now()
	if p.cfg.Streams != nil && snap.record != nil {
		wg.Go(func() {
			p.back, backErr = p.cfg.Streams.Restore(ctx, snap.record, round.set, a.generation)
			round.set = nil // Restored closes it
		})
	}
	jobs := p.rollbackJobs(snap, lost)
	each(jobs, lost, func(j *undo) error { return j.layout(ctx) })
	wg.Wait()
	r.TimesMS["layout"] = ms(time.Since(begin))
	if backErr != nil {
		return errors.Join(backErr, waitAll(jobs))
	}
	begin = time.Now()
	if r.Notes, err = p.files(ctx, snap, jobs, lost); err != nil {
		return errors.Join(err, waitAll(jobs))
	}
	r.TimesMS["descriptors"] = ms(time.Since(begin))
	if err := p.undoSysV(ctx, snap); err != nil {
		return errors.Join(err, waitAll(jobs))
	}
	moved, err := p.undoObjects(ctx, snap)
	r.Notes = append(r.Notes, moved...)
	if err != nil {
		return errors.Join(err, waitAll(jobs))
	}
	begin = time.Now()
	each(jobs, lost, func(j *undo) error { return j.finish(ctx) })
	p.groups(ctx, jobs, lost)
	r.TimesMS["finish"] = ms(time.Since(begin))
	if p.back != nil {
		snap.follow(p.back.Record())
	}
	for _, j := range jobs {
		r.Bytes += j.bytes
		r.merge(j.times)
	}
	r.LostRanks = lost.ranks
	return lost.err()
}

// files puts the descriptors of all processes back. notes are what is not as it
// was.
func (p *Pod) files(ctx context.Context, snap *snapshot, jobs []*undo, lost *losses) (notes []string, err error) {
	plan := planFiles(snap, jobs, p.round.files, p.back, p.cfg.Files)
	defer func() { err = errors.Join(err, plan.close()) }()
	plan.noteSince()
	plan.open(lost)
	each(jobs, lost, func(j *undo) error { return j.descriptors(ctx, plan) })
	if err := plan.reset(ctx, lost); err != nil {
		return nil, err
	}
	plan.locks(ctx, jobs, lost)
	for _, j := range jobs { // one by one: processes may share an epoll set
		each([]*undo{j}, lost, func(j *undo) error { return j.epolls(ctx, plan) })
	}
	return plan.notes, nil
}

// undoObjects puts shared memory, deleted files and kept files back. notes are
// what had to be moved out of the way.
func (p *Pod) undoObjects(ctx context.Context, snap *snapshot) (notes []string, err error) {
	for i, o := range snap.objects {
		if o.Kind == image.ObjectAbsent {
			note, err := moveAway(snap.root(p.group), o.Name)
			if err != nil {
				return notes, fmt.Errorf("rename %s: %w", o.Name, err)
			}
			if note != "" {
				notes = append(notes, note)
			}
			continue
		}
		a, err := openObject(p.group, snap, p.round.files, i+1)
		switch {
		case err == nil:
			err = p.undoObject(ctx, o, a)
			a.close()
		case o.Kind == image.ObjectMapped && p.cfg.Files == filesSave:
			err = p.undoKept(ctx, snap, o)
		default:
			err = nil // closed since; the plan of descriptors made it anew
		}
		if err != nil {
			return notes, fmt.Errorf("%s %s: %w", o.Kind, o.Name, err)
		}
	}
	return notes, nil
}

// losses collects the ranks that could not be put back.
type losses struct {
	mu    sync.Mutex
	ranks []job.Rank
	errs  []error
}

func (l *losses) add(rank job.Rank, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.ranks, rank) {
		l.ranks = append(l.ranks, rank)
		slices.Sort(l.ranks)
	}
	l.errs = append(l.errs, fmt.Errorf("rank %d: %w", rank, err))
}

func (l *losses) has(rank job.Rank) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.ranks, rank)
}

func (l *losses) err() error {
	if len(l.ranks) == 0 {
		return nil
	}
	return errors.Join(append([]error{ErrLost}, l.errs...)...)
}

// rollbackJobs matches the processes of the snapshot with the live ones.
func (p *Pod) rollbackJobs(snap *snapshot, lost *losses) []*undo {
	var jobs []*undo
	for _, c := range snap.procs {
		q := p.group.procs[c.pid]
		if q == nil || q.frozen == nil {
			lost.add(c.rank, fmt.Errorf("process %d has ended: %w", c.pid, kernel.ErrGone))
			continue
		}
		jobs = append(jobs, &undo{
			p: q, c: c, snap: snap, workers: p.workers(len(snap.procs)), times: map[string]float64{},
		})
	}
	return jobs
}

// each runs fn for all jobs of ranks that are not lost, at the same time.
func each(jobs []*undo, lost *losses, fn func(j *undo) error) {
	var wg sync.WaitGroup
	for _, j := range jobs {
		if lost.has(j.c.rank) {
			continue
		}
		wg.Go(func() {
			if err := fn(j); err != nil {
				lost.add(j.c.rank, err)
			}
		})
	}
	wg.Wait()
}

// waitAll waits for memory that is still being written, before an error is
// returned.
func waitAll(jobs []*undo) error {
	var errs []error
	for _, j := range jobs {
		errs = append(errs, j.waitPages())
	}
	return errors.Join(errs...)
}

// endStrangers ends processes that were born since the epoch, and has their
// parents forget them.
func (p *Pod) endStrangers(ctx context.Context, snap *snapshot) error {
	known := map[int]bool{}
	for _, c := range snap.procs {
		known[c.pid] = true
	}
	procs := p.group.list()
	for i := len(procs) - 1; i >= 0; i-- { // children before parents
		q := procs[i]
		if known[q.pid] || q.frozen == nil {
			continue
		}
		st, err := proc.ReadStatus(q.pid)
		if err != nil {
			return err
		}
		if err := q.frozen.Kill(); err != nil {
			return err
		}
		parent := p.group.procs[q.parent]
		p.group.forget(q)
		if parent == nil || parent.frozen == nil || !known[parent.pid] {
			continue
		}
		b := parent.frozen.Batch(parent.frozen.Leader())
		b.Call(unix.SYS_WAIT4, uint64(st.Inner()), 0, unix.WNOHANG|unix.WALL, 0)
		if err := b.RunAll(ctx); err != nil {
			return err
		}
	}
	return nil
}

// release lets the connections and then the ranks go on.
func (p *Pod) release(ctx context.Context, r *Report) error {
	begin := time.Now()
	if p.back != nil {
		if err := p.back.Release(ctx); err != nil {
			return err
		}
	}
	r.TimesMS["refill"] = ms(time.Since(begin))
	return errors.Join(p.endRecovery(), p.endStall(ctx))
}

// endRecovery gives the duplicates of sockets back.
func (p *Pod) endRecovery() error {
	var err error
	if p.back != nil {
		err = p.back.Close()
		p.back = nil
	}
	if p.round != nil {
		err = errors.Join(err, p.round.close())
		p.round = nil
	}
	return err
}
