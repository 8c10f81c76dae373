package pause

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/job"
)

// process is a process of the pod: a rank or a descendant of one.
type process struct {
	rank    job.Rank
	pid     int // ours
	parent  int // pid of the parent within the pod, 0 for a rank
	tracer  *proc.Tracer
	frozen  *proc.Frozen // nil while it runs
	tracker tracker
	flags   map[mapKey][]string // VmFlags that were read before
	reaper  bool                // orphans of it would come to the program; see askReapers
	habits  habits

	// Set by the copying that goes on after a stall.
	stale     atomic.Bool  // flags are out of date
	afterFork atomic.Int64 // ns that writes after the last fork cost; 0 when not known
}

// group holds the processes of a pod and their tracers. Its methods are called
// with Pod.mu held.
type group struct {
	cfg       Config
	sys       *kernel.Sys
	ranks     []Rank
	externals []External
	files     identities // of mapped files

	mu           sync.Mutex // guards the fields below while ranks are worked on in parallel
	procs        map[int]*process
	spares       []*buffer // for the next snapshot
	inUse        int64     // bytes of all buffers
	closed       bool
	leaveStopped bool // the next thaw leaves the processes stopped; set within a step
}

func newGroup(cfg Config) *group {
	return &group{cfg: cfg, sys: cfg.Sys, procs: map[int]*process{}}
}

// setRanks replaces the ranks; tracers of processes that are no longer known
// are closed.
func (g *group) setRanks(ranks []Rank, externals []External) {
	g.ranks, g.externals = slices.Clone(ranks), slices.Clone(externals)
	for _, p := range g.procs {
		if !slices.ContainsFunc(ranks, func(r Rank) bool { return r.PID == g.root(p) }) {
			g.forget(p)
		}
	}
}

// root returns the pid of the first process of p's rank, 0 when that is not
// known any more.
func (g *group) root(p *process) int {
	for p != nil && p.parent != 0 {
		p = g.procs[p.parent]
	}
	if p == nil {
		return 0
	}
	return p.pid
}

// list returns the frozen processes, parents before children, ranks in order.
func (g *group) list() []*process {
	var out []*process
	var add func(p *process)
	add = func(p *process) {
		out = append(out, p)
		var kids []*process
		for _, c := range g.procs {
			if c.parent == p.pid {
				kids = append(kids, c)
			}
		}
		slices.SortFunc(kids, func(a, b *process) int { return a.pid - b.pid })
		for _, c := range kids {
			add(c)
		}
	}
	for _, r := range g.ranks {
		if p := g.procs[r.PID]; p != nil && p.parent == 0 {
			add(p)
		}
	}
	return out
}

// each runs fn for every process at the same time and joins the errors.
func (g *group) each(ctx context.Context, fn func(ctx context.Context, p *process) error) error {
	procs := g.list()
	errs := make([]error, len(procs))
	var wg sync.WaitGroup
	for i, p := range procs {
		wg.Go(func() {
			if err := fn(ctx, p); err != nil {
				errs[i] = fmt.Errorf("rank %d: %w", p.rank, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// freeze stops all ranks with their descendants. On an error all of them run
// on. gone lists ranks that have ended; they are not an error.
func (g *group) freeze(ctx context.Context) (gone []job.Rank, err error) {
	lost := make([]bool, len(g.ranks))
	eg, ectx := errgroup.WithContext(ctx)
	for i, r := range g.ranks {
		eg.Go(func() error {
			err := g.freezeTree(ectx, r.Rank, r.PID, 0)
			if errors.Is(err, kernel.ErrGone) {
				lost[i] = true
				return nil
			}
			if err != nil {
				return fmt.Errorf("rank %d: %w", r.Rank, err)
			}
			return nil
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, errors.Join(err, g.thaw(context.WithoutCancel(ctx)))
	}
	for i, r := range g.ranks {
		if lost[i] {
			gone = append(gone, r.Rank)
		}
	}
	for _, p := range g.procs {
		if p.frozen == nil {
			g.forget(p) // a descendant that ended since
		}
	}
	return gone, nil
}

// freezeTree stops pid and then its children, which cannot become more once
// their parent is stopped.
func (g *group) freezeTree(ctx context.Context, rank job.Rank, pid, parent int) error {
	p := g.process(rank, pid, parent)
	if p.frozen == nil {
		f, err := p.tracer.Freeze(ctx, pid)
		if err != nil {
			g.forget(p)
			return err
		}
		p.frozen = f
	}
	kids, err := proc.Children(pid)
	if err != nil {
		return err
	}
	for _, kid := range kids {
		if st, err := proc.ReadStat(kid); err != nil || st.State == 'Z' || st.State == 'X' {
			continue // an ended child: captured as a zombie
		}
		if err := g.freezeTree(ctx, rank, kid, pid); err != nil && !errors.Is(err, kernel.ErrGone) {
			return err
		}
	}
	return nil
}

// process returns the process pid, new if it was not known.
func (g *group) process(rank job.Rank, pid, parent int) *process {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.procs[pid]
	if p == nil {
		p = &process{rank: rank, pid: pid, tracer: proc.NewTracer(g.sys), tracker: tracker{fd: -1, off: g.cfg.NoTracking}}
		g.procs[pid] = p
	}
	p.rank, p.parent = rank, parent
	return p
}

// known returns the process pid, or nil. Safe from any goroutine.
func (g *group) known(pid int) *process {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.procs[pid]
}

// forget drops a process that ended or cannot be traced.
func (g *group) forget(p *process) {
	g.mu.Lock()
	delete(g.procs, p.pid)
	g.mu.Unlock()
	p.close()
}

// close lets go of a process.
func (q *process) close() {
	q.closeTracker()
	_ = q.tracer.Close() // always nil
}

// thaw lets every frozen process go on, all of them as nearly at once as can be:
// what one rank gets ahead it waits for another. Processes that were killed
// meanwhile are forgotten.
func (g *group) thaw(ctx context.Context) error {
	_ = g.each(ctx, func(ctx context.Context, p *process) error {
		if p.frozen == nil {
			return nil
		}
		return p.frozen.Settle(ctx) // Thaw tries again, and tells
	})
	return g.each(ctx, func(ctx context.Context, p *process) error {
		if p.frozen == nil {
			return nil
		}
		p.frozen.LeaveStopped = g.leaveStopped
		err := p.frozen.Thaw(ctx)
		p.frozen = nil
		if errors.Is(err, kernel.ErrGone) {
			g.forget(p)
			return nil
		}
		return err
	})
}

// close ends all tracers. Frozen processes run on as they are.
func (g *group) close() {
	for _, p := range g.procs {
		p.close()
	}
	clear(g.procs)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, b := range g.spares {
		b.release()
	}
	g.spares, g.closed = nil, true
}

// holds reports whether a process is frozen.
func (g *group) holds() bool {
	for _, p := range g.procs {
		if p.frozen != nil {
			return true
		}
	}
	return false
}

// innerPIDs maps the pids that the ranks see to ours.
func (g *group) innerPIDs() (map[int]int, error) {
	out := map[int]int{}
	var add func(pid int) error
	add = func(pid int) error {
		st, err := proc.ReadStatus(pid)
		if err != nil {
			return err
		}
		out[st.Inner()] = pid
		kids, err := proc.Children(pid)
		if err != nil {
			return err
		}
		for _, kid := range kids {
			if err := add(kid); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		return nil
	}
	for _, r := range g.ranks {
		if err := add(r.PID); err != nil {
			return nil, fmt.Errorf("rank %d: %w", r.Rank, err)
		}
	}
	return out, nil
}
