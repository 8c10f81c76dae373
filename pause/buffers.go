package pause

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/proc"
)

// takeBuffer returns a buffer of at least size bytes: the smallest spare one
// that fits, or a new one.
func (g *group) takeBuffer(ctx context.Context, size int) (*buffer, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	best := -1
	for i, b := range g.spares {
		if len(b.mem) >= size && (best < 0 || len(b.mem) < len(g.spares[best].mem)) {
			best = i
		}
	}
	if best >= 0 {
		b := g.spares[best]
		g.spares = append(g.spares[:best], g.spares[best+1:]...)
		b.of = nil
		return b, nil
	}
	for _, b := range g.spares { // too small for anything now
		g.inUse -= int64(len(b.mem))
		b.release()
	}
	g.spares = nil
	return g.makeBuffer(ctx, size, 0)
}

// makeBuffer maps a new buffer within the budget. g.mu is held.
func (g *group) makeBuffer(ctx context.Context, size, touch int) (*buffer, error) {
	size += size / 8 // room to grow
	limit := g.cfg.Budget
	if limit == 0 {
		limit = g.inUse + availableMemory()/2
	}
	if g.inUse+int64(size) > limit {
		return nil, fmt.Errorf("%d bytes kept, %d more wanted, %d allowed: %w", g.inUse, size, limit, ErrBudget)
	}
	b, err := newBuffer(ctx, size, touch)
	if err != nil {
		return nil, err
	}
	g.inUse += int64(len(b.mem))
	return b, nil
}

// takeCopy returns an older copy of the memory of q, to be brought up to date,
// or nil. The newest one is taken. Copies made before the process was forgotten
// and found again do not count: their scans are of another tracker.
func (g *group) takeCopy(q *process) *memory {
	g.mu.Lock()
	defer g.mu.Unlock()
	best := -1
	for i, b := range g.spares {
		if b.of != nil && b.of.of == q && (best < 0 || b.of.scan > g.spares[best].of.scan) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	b := g.spares[best]
	g.spares = append(g.spares[:best], g.spares[best+1:]...)
	return b.of
}

// hasCopy reports whether there is an older copy of the memory of q.
func (g *group) hasCopy(q *process) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(g.spares, func(b *buffer) bool { return b.of != nil && b.of.of == q })
}

// giveCopy keeps a copy that is not needed any more.
func (g *group) giveCopy(m *memory) {
	m.buf.of = m
	g.give(m.buf)
}

// giveBuffer keeps a buffer for the next snapshot; what is in it is forgotten.
// What was not there has none.
func (g *group) giveBuffer(b *buffer) {
	if b == nil {
		return
	}
	b.of = nil
	g.give(b)
}

func (g *group) give(b *buffer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		b.release()
		return
	}
	g.spares = append(g.spares, b)
}

// prepare makes spare buffers for all processes, as large as their memory is
// now, and touches them.
func (g *group) prepare(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	want := make([]int, 0, len(g.ranks))
	for _, r := range g.ranks {
		n, err := ownMemory(r.PID)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue
			}
			return err
		}
		want = append(want, n)
	}
	used := make([]bool, len(g.spares))
	for _, n := range want {
		fits := -1
		for i, b := range g.spares {
			if !used[i] && len(b.mem) >= n && (fits < 0 || len(b.mem) < len(g.spares[fits].mem)) {
				fits = i
			}
		}
		if fits >= 0 {
			used[fits] = true
			continue
		}
		b, err := g.makeBuffer(ctx, n, n+n/16)
		if err != nil {
			return err
		}
		g.spares, used = append(g.spares, b), append(used, true)
	}
	kept := g.spares[:0]
	for i, b := range g.spares {
		if used[i] {
			kept = append(kept, b)
			continue
		}
		g.inUse -= int64(len(b.mem))
		b.release()
	}
	g.spares = kept
	return nil
}

// ownMemory returns the bytes of a process that are not of files.
func ownMemory(pid int) (int, error) {
	st, err := proc.ReadStatus(pid)
	if err != nil {
		return 0, err
	}
	return int(st.RSSAnon), nil
}

// availableMemory is what the kernel says could be had without swapping, in
// bytes; 0 when it does not say.
func availableMemory() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64) // the kernel's own number
			return n << 10
		}
	}
	return 0
}
