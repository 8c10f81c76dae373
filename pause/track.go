package pause

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// tracker knows which pages of a process were written since a moment. The
// kernel write-protects them for a userfaultfd (WP_ASYNC): the first write to a
// page costs the program a fault of about 1 us and is noted; nobody is woken.
//
// Scans are numbered. dirty[s] are the pages written between the scans s-1 and
// s; what is not known counts as written.
type tracker struct {
	fd    int // userfaultfd of the process, ours; -1 without
	off   bool
	seq   int
	dirty map[int][]kernel.Range
	armed bool // the last scan write-protected what it found
	rest  int  // rounds until arming is tried again
}

// scanned is the outcome of a scan.
type scanned struct {
	present []kernel.Range // pages of the process' own, ascending
	written []kernel.Range // those of them written since the scan before
}

const (
	// keepScans is how many lists of written pages are kept: two copies are
	// alive at most, abandoned rounds come on top.
	keepScans = 6
	// restRounds is for how many rounds a program that writes nearly all of its
	// memory in each is left alone: the first write to a page costs it 1 us, and
	// to copy, write and send the page takes 20 us or more elsewhere.
	restRounds = 4
)

// track makes sure that writes to the process' private memory are tracked,
// as far as the kernel can. maps are its mappings, with flags.
func (q *process) track(ctx context.Context, maps []proc.Map) {
	t := &q.tracker
	if t.off {
		return
	}
	err := q.openTracker(ctx)
	for i := range maps {
		m := &maps[i]
		if err != nil || m.Shared || m.Special() || m.Prot&unix.PROT_WRITE == 0 || m.HasFlag("uw") {
			continue
		}
		err = q.tracer.Sys().UffdRegister(t.fd, q.pid, m.Range)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBUSY) {
			err = nil // not tracked, hence always taken for written
		}
		if key := (mapKey{m.Start, m.Ino, m.Path, m.Shared}); err == nil {
			q.flags[key] = append(slices.Clone(m.Flags), "uw")
		}
	}
	if err == nil {
		return
	}
	// The program may have executed another one, or the kernel cannot do it:
	// everything counts as written. Try anew once, then no more.
	again := t.fd >= 0 && errors.Is(err, unix.ESRCH)
	q.closeTracker()
	t.off = !again
}

// openTracker has the process make a userfaultfd, which is bound to its memory,
// and takes it over.
func (q *process) openTracker(ctx context.Context) error {
	t := &q.tracker
	if t.fd >= 0 {
		return nil
	}
	sys := q.tracer.Sys()
	b := q.frozen.Batch(q.frozen.Leader())
	open := b.Call(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|kernel.UffdUserModeOnly)
	if err := b.Run(ctx); err != nil {
		return errors.Join(err, twice(func() error { return q.sweep(ctx) }))
	}
	pidfd, err := sys.PidfdOpen(q.pid)
	fd := -1
	if err == nil {
		fd, err = sys.PidfdGetfd(pidfd, q.pid, int(open.Ret))
		_ = unix.Close(pidfd) // a pidfd has nothing to lose
	}
	b.Call(unix.SYS_CLOSE, uint64(open.Ret))
	cerr := b.Run(ctx)
	if cerr != nil {
		cerr = errors.Join(cerr, twice(func() error { return q.sweep(ctx) }))
	}
	if err == nil && cerr == nil {
		err = sys.UffdInit(fd, q.pid)
	}
	if err = errors.Join(err, cerr); err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return err
	}
	t.fd = fd
	return nil
}

// sweep closes userfaultfds in the process, after a failure that leaves open
// how far it came. The program has none of its own: it would have been refused.
func (q *process) sweep(ctx context.Context) error {
	fds, err := proc.FDs(q.pid)
	if err != nil {
		return err
	}
	b := q.frozen.Batch(q.frozen.Leader())
	for _, fd := range fds {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", q.pid, fd))
		if err == nil && link == "anon_inode:[userfaultfd]" {
			b.Call(unix.SYS_CLOSE, uint64(fd))
		}
	}
	return b.Run(ctx)
}

func twice(fn func() error) error {
	err := fn()
	if err != nil {
		err = fn()
	}
	return err
}

// closeTracker ends the tracking; what it knew is forgotten.
func (q *process) closeTracker() {
	t := &q.tracker
	if t.fd >= 0 {
		_ = unix.Close(t.fd) // the kernel forgets its marks
	}
	*t = tracker{fd: -1, seq: t.seq + 1, off: t.off}
	q.flags = nil
}

// scan finds the present and the written pages of the private mappings. With
// mark, what it found is protected again, and the scan gets a number.
func (q *process) scan(private []kernel.Range, mark bool) (*scanned, error) {
	pm, err := os.Open("/proc/" + strconv.Itoa(q.pid) + "/pagemap")
	if err != nil {
		return nil, fmt.Errorf("pid %d: %w", q.pid, err)
	}
	defer func() { _ = pm.Close() }() // read only
	st, err := proc.ReadStatus(q.pid)
	if err != nil {
		return nil, err
	}
	there := uint64(kernel.PageIsPresent)
	if st.Swap > 0 {
		there |= kernel.PageIsSwapped // else only marks of the kernel are "swapped"
	}
	const not = kernel.PageIsFile | kernel.PageIsPFNZero
	found, err := q.tracer.Sys().PagemapScan(pm, q.pid, kernel.Scan{
		End: userEnd, Mask: not, Inverted: not, AnyOf: there, Return: kernel.PageIsWritten,
	})
	if err != nil {
		return nil, err
	}
	var present, written []kernel.Range
	for _, r := range found {
		at := kernel.Range{Start: r.Start, End: r.End}
		if k := len(present) - 1; k >= 0 && present[k].End == at.Start {
			present[k].End = at.End
		} else {
			present = append(present, at)
		}
		if r.Categories&kernel.PageIsWritten != 0 {
			written = append(written, at)
		}
	}
	s := &scanned{present: intersect(present, private)}
	s.written = intersect(written, private)
	if mark && q.tracker.fd >= 0 {
		err = q.mark(pm, s)
	}
	return s, err
}

// mark numbers a scan and write-protects what was written, so that the next
// one finds what was written after this one.
func (q *process) mark(pm *os.File, s *scanned) error {
	t := &q.tracker
	t.seq++
	if t.dirty == nil {
		t.dirty = map[int][]kernel.Range{}
	}
	t.dirty[t.seq] = s.written
	delete(t.dirty, t.seq-keepScans)
	if t.armed && total(s.written) > total(s.present)*9/10 {
		t.armed, t.rest = false, restRounds
	}
	if t.rest > 0 {
		t.rest--
		t.armed = false
		return nil
	}
	const pages = kernel.PageIsWritten | kernel.PageIsWPAllowed | kernel.PageIsPresent
	_, err := q.tracer.Sys().PagemapScan(pm, q.pid, kernel.Scan{
		End: userEnd, Flags: kernel.ScanWPMatching, Mask: pages, Return: kernel.PageIsWritten,
	})
	t.armed = err == nil
	return err
}

// since returns the pages written after scan number seq, up to the last one;
// ok is false when that is not known.
func (t *tracker) since(seq int) (list []kernel.Range, ok bool) {
	if t.fd < 0 || seq <= 0 || seq > t.seq {
		return nil, false
	}
	for s := seq + 1; s <= t.seq; s++ {
		d, known := t.dirty[s]
		if !known {
			return nil, false
		}
		list = append(list, d...)
	}
	return normalize(list), true
}

// prefill makes a second copy of what is kept, where there is none yet, so that
// already the second checkpoint copies only what changed.
func (g *group) prefill(ctx context.Context, snap *snapshot) error {
	if snap == nil {
		return nil
	}
	for _, c := range snap.procs {
		m, ok := c.pages.(*memory)
		if !ok || m.scan == 0 || m.of != g.procs[c.pid] || g.hasCopy(m.of) {
			continue
		}
		buf, err := g.takeBuffer(ctx, m.size)
		if err != nil {
			return err
		}
		second := newMemory(m.runs, buf)
		list := pieces(m.runs)
		err = spread(ctx, 2, len(list), func(i int) error {
			copy(second.view(list[i]), m.view(list[i]))
			return nil
		})
		if err != nil {
			g.giveBuffer(buf)
			return err
		}
		second.scan, second.of = m.scan, m.of
		g.giveCopy(second)
	}
	return nil
}

// place finds room for a copy of what a scan found, and says which pages must
// be copied: all, or those written since the older copy in the same place.
func (g *group) place(ctx context.Context, q *process, s *scanned) (m *memory, wanted []kernel.Range, err error) {
	if old := g.takeCopy(q); old != nil {
		written, ok := q.tracker.since(old.scan)
		if m = reuse(s.present, old); m != nil && ok {
			m.scan, m.of = q.tracker.seq, q
			missing := subtract(m.runs, old.runs)
			return m, normalize(append(missing, intersect(m.runs, written)...)), nil
		}
		g.giveBuffer(old.buf)
	}
	buf, err := g.takeBuffer(ctx, int(total(s.present)))
	if err != nil {
		return nil, nil, err
	}
	m = newMemory(s.present, buf)
	m.of = q
	if q.tracker.fd >= 0 {
		m.scan = q.tracker.seq
	}
	return m, m.runs, nil
}
