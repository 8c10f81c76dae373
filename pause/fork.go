package pause

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// askReapers finds out which processes have a parent in the pod that would be
// given orphans: the copies that a fork makes must not come to it. Whether a
// process is a reaper itself, its fork finds out.
func (g *group) askReapers(ctx context.Context) error {
	procs := g.list()
	if !slices.ContainsFunc(procs, func(q *process) bool { return q.parent != 0 }) {
		return nil
	}
	err := g.each(ctx, func(ctx context.Context, q *process) error {
		b := q.frozen.Batch(q.frozen.Leader())
		flag := b.Alloc(8)
		pid := b.Call(unix.SYS_GETPID)
		b.Call(unix.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, flag)
		if err := b.Run(ctx); err != nil {
			return fmt.Errorf("look for reapers: %w", err)
		}
		raw, err := b.Read(flag, 4)
		if err != nil {
			return err
		}
		q.reaper = pid.Ret == 1 || !slices.Equal(raw, make([]byte, 4))
		return nil
	})
	if err != nil {
		return err
	}
	for _, q := range procs { // parents first
		if up := g.procs[q.parent]; up != nil && up.reaper {
			q.reaper = true
		}
	}
	return nil
}

// keep chooses the backing of q's memory and starts the copy of what must be
// copied now: all that changed, or with a fork what that does not inherit.
func (p *Pod) keep(ctx context.Context, q *process, c *captured, m *memory, wanted []kernel.Range, procs int) {
	changed, present := total(wanted), total(m.runs)
	c.copied = changed
	room := int64(0)
	if p.cfg.Backing != BackingCopy {
		room = p.group.room() / int64(max(1, procs))
	}
	if cost := q.afterFork.Swap(0); cost > 0 {
		q.habits.after = time.Duration(cost)
	}
	c.choice = decide(p.cfg.Backing, q.habits.outlook(changed, present, room, q.reaper))
	now := wanted
	if c.choice.fork {
		begin := time.Now()
		child, err := q.frozen.Fork(ctx)
		switch {
		case errors.Is(err, proc.ErrReaper):
			c.choice = choice{reason: proc.ErrReaper.Error()}
		case err != nil:
			c.choice = choice{reason: fmt.Sprintf("no fork: %v", err)}
		default:
			c.child = child
			q.habits.forkRate = rate(q.habits.forkRate, present, time.Since(begin))
			now = intersect(wanted, c.apart)
			c.later = subtract(wanted, c.apart)
		}
		c.times["fork"] = ms(time.Since(begin))
	}
	q.habits.last = time.Now()
	if len(now) == 0 {
		return
	}
	p.draft.copies.Go(func() error {
		begin := time.Now()
		err := copyIn(p.draft.copyCtx, q.frozen, m, now, c.forced, p.workers(procs))
		if err != nil {
			m.scan = 0 // it is of no use for the next copy
			return err
		}
		c.copyTook = time.Since(begin)
		return nil
	})
}

// room is how many more bytes the budget allows.
func (g *group) room() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cfg.Budget > 0 {
		return g.cfg.Budget - g.inUse
	}
	return availableMemory() / 2
}

// learn notes how fast memory was copied during the stall.
func (s *snapshot) learn(g *group) {
	for _, c := range s.procs {
		if q := g.procs[c.pid]; q != nil && c.child == nil && c.copyTook > 0 {
			q.habits.copyRate = rate(q.habits.copyRate, c.copied, c.copyTook)
			q.habits.after /= 2 // a fork is tried again when that is forgotten
		}
	}
}

// background is the copying that goes on when the ranks run again.
type background struct {
	cancel context.CancelFunc
	hurry  func()        // begin at once
	done   chan struct{} // closed when nothing is copied any more and the children are gone
	err    error         // valid then
}

// copyLater starts to copy from the forked children, which end with it. It
// outlives the step that calls it; finish waits for it, endForks gives it up.
//
// It begins when it is waited for, at the latest after graceOfPeers: while the
// ranks of other pods are still being let go, it would take the cores from that
// and make the stall of the job longer.
func (s *snapshot) copyLater(ctx context.Context, g *group) {
	forked := slices.DeleteFunc(slices.Clone(s.procs), func(c *captured) bool { return c.child == nil })
	if len(forked) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	urgent, hurry := context.WithCancel(ctx)
	b := &background{cancel: cancel, hurry: hurry, done: make(chan struct{})}
	s.later = b
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(backgroundCopies)
	go func() {
		grace := time.NewTimer(graceOfPeers)
		select {
		case <-grace.C:
		case <-urgent.Done():
		}
		grace.Stop()
		hurry()
		for _, c := range forked {
			eg.Go(func() error { return copyChild(ctx, g.known(c.pid), c) })
		}
		b.err = eg.Wait()
		cancel()
		close(b.done)
	}()
}

// graceOfPeers is how long other pods may need to let their ranks go.
const graceOfPeers = 100 * time.Millisecond

// backgroundCopies is how many processes are copied at a time when the ranks
// run: they want the cores, but what they write meanwhile is copied by them.
const backgroundCopies = 2

// copyChild copies what the stall left, from the child, and ends that. q, which
// may be nil, learns what it cost the program.
func copyChild(ctx context.Context, q *process, c *captured) (err error) {
	m := c.pages.(*memory) //nolint:forcetypeassert // only RAM copies have children
	faults := minorFaults(c.pid)
	defer func() {
		err = errors.Join(err, c.child.Discard())
		if err != nil {
			m.scan = 0 // it is of no use for the next copy
			err = fmt.Errorf("rank %d: copy memory after the fork: %w", c.rank, err)
		}
		if q == nil {
			return
		}
		q.stale.Store(err != nil)
		if n := minorFaults(c.pid); err == nil && n > faults {
			q.afterFork.Store(int64(n-faults) * int64(faultCost))
		}
	}()
	if err := checkInherited(c); err != nil {
		return err
	}
	return copyForked(ctx, c.child, m, c.later)
}

// checkInherited looks whether the child has all memory that it is taken for:
// madvise(2) leaves no trace in what a round looks at in the stall.
func checkInherited(c *captured) error {
	maps, err := c.child.SMaps()
	if err != nil {
		return err
	}
	var have []kernel.Range
	for i := range maps {
		if !maps[i].HasFlag("wf") {
			have = append(have, maps[i].Range)
		}
	}
	if missing := subtract(c.later, normalize(have)); len(missing) > 0 {
		return fmt.Errorf("%x-%x is not in the copy: %w", missing[0].Start, missing[0].End, errAdvice)
	}
	return nil
}

// finish waits until the copy is whole.
func (s *snapshot) finish(ctx context.Context) error {
	if s.later == nil {
		return nil
	}
	s.later.hurry()
	select {
	case <-s.later.done:
		return s.later.err
	case <-ctx.Done():
		return fmt.Errorf("copy memory after the fork: %w", context.Cause(ctx))
	}
}

// endForks gives up what is still being copied, and ends the children.
func (s *snapshot) endForks() {
	if s.later != nil {
		s.later.cancel()
		<-s.later.done // soon: pieces are small, and a killed child ends
		return
	}
	for _, c := range s.procs {
		if c == nil || c.child == nil {
			continue
		}
		_ = c.child.Discard() // it dies with its tracer at the latest
		if m, ok := c.pages.(*memory); ok {
			m.scan = 0 // never filled
		}
	}
}

// apart returns the private memory that a fork does not copy.
func apart(maps []image.Mapping) []kernel.Range {
	var out []kernel.Range
	for i := range maps {
		v := &maps[i]
		if isPrivate(v) && (slices.Contains(v.Advice, "dc") || slices.Contains(v.Advice, "wf")) {
			out = append(out, kernel.Range{Start: v.Start, End: v.End})
		}
	}
	return normalize(out)
}

// minorFaults counts the page faults of a process; 0 when it is gone.
func minorFaults(pid int) uint64 {
	st, err := proc.ReadStat(pid)
	if err != nil {
		return 0
	}
	return st.MinFlt
}
