package pause

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

const (
	pageSize = 4096
	hugeSize = 2 << 20

	// unitSize is how much one worker copies at a time: some requests of the
	// kernel's 1024 ranges, small enough to balance four workers.
	unitSize = 4 << 20

	// userEnd is the end of the addresses that a process can map.
	userEnd = 1<<47 - pageSize
)

// pages is the memory of one process at an epoch: in RAM, or in a page file.
type pages interface {
	// ranges returns the pages that are kept, ascending, not overlapping.
	ranges() []kernel.Range
	// each hands the kept pages to fn, in pieces, from several goroutines. data
	// is fn's until it returns. With within, an ascending list, pages outside of
	// it may be left out.
	each(ctx context.Context, workers int, within []kernel.Range, fn func(addr uint64, data []byte) error) error
	// bytes is the size of all kept pages.
	bytes() int64
	// free gives memory back; nothing may be used afterwards.
	free()
}

// memory is a copy in RAM.
type memory struct {
	runs []kernel.Range
	offs []int // of each range in buf
	size int
	buf  *buffer
	scan int // number of the scan that it belongs to; 0 for none
	of   *process
}

// newMemory lays the ranges one after the other into buf.
func newMemory(runs []kernel.Range, buf *buffer) *memory {
	m := &memory{runs: runs, offs: make([]int, len(runs)), buf: buf}
	for i, r := range runs {
		m.offs[i] = m.size
		m.size += int(r.Len())
	}
	return m
}

func (m *memory) ranges() []kernel.Range { return m.runs }
func (m *memory) bytes() int64           { return int64(m.size) }
func (m *memory) free()                  { m.buf.release() }

// view returns the kept bytes of r, which must lie within one range.
func (m *memory) view(r kernel.Range) []byte {
	i := sort.Search(len(m.runs), func(i int) bool { return m.runs[i].End > r.Start })
	at := m.offs[i] + int(r.Start-m.runs[i].Start)
	return m.buf.mem[at : at+int(r.Len()) : at+int(r.Len())]
}

func (m *memory) each(ctx context.Context, workers int, within []kernel.Range, fn func(addr uint64, data []byte) error) error {
	var pieces []kernel.Range
	runs := m.runs
	if within != nil {
		runs = intersect(runs, within)
	}
	for _, r := range runs {
		for at := r.Start; at < r.End; at += unitSize {
			pieces = append(pieces, kernel.Range{Start: at, End: min(r.End, at+unitSize)})
		}
	}
	return spread(ctx, workers, len(pieces), func(i int) error {
		return fn(pieces[i].Start, m.view(pieces[i]))
	})
}

// spread runs fn for 0..n-1 on up to workers goroutines, until the first error.
func spread(ctx context.Context, workers, n int, fn func(i int) error) error {
	workers = min(workers, n)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range workers {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := fn(i); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// stored is the memory of a process in a page file.
type stored struct {
	r    *image.PageReader
	list []kernel.Range
	size int64
}

func newStored(r *image.PageReader) *stored {
	s := &stored{r: r}
	for _, run := range r.Runs() {
		s.list = append(s.list, kernel.Range{Start: run.Addr, End: run.End()})
		s.size += int64(run.Len())
	}
	s.list = normalize(s.list)
	return s
}

func (s *stored) ranges() []kernel.Range { return s.list }
func (s *stored) bytes() int64           { return s.size }
func (s *stored) free()                  {}

func (s *stored) each(ctx context.Context, workers int, _ []kernel.Range, fn func(addr uint64, data []byte) error) error {
	zero := make([]byte, image.MaxRunBytes)
	return s.r.Each(ctx, workers, func(r image.Run, data []byte) error {
		if data != nil {
			return fn(r.Addr, data)
		}
		for at := r.Addr; at < r.End(); at += uint64(len(zero)) {
			if err := fn(at, zero[:min(uint64(len(zero)), r.End()-at)]); err != nil {
				return err
			}
		}
		return nil
	})
}

// copyIn reads the pages of wanted, which m has, from the process, with several
// workers. forced are parts that the process itself may not read.
func copyIn(ctx context.Context, f *proc.Frozen, m *memory, wanted, forced []kernel.Range, workers int) error {
	if err := copyUnits(ctx, m, subtract(intersect(m.runs, wanted), forced), workers, f.ReadMemV); err != nil {
		return err
	}
	for _, r := range intersect(m.runs, forced) {
		if err := f.ReadForce(r.Start, m.view(r)); err != nil {
			return err
		}
	}
	return nil
}

// copyForked is copyIn for the copy-on-write copy of a process. It reads all of
// it through /proc/PID/mem: process_vm_readv(2) pins pages, and to pin a page
// that is shared by a fork the kernel makes a private one first, which would be
// thrown away with the child (measured on 6.18: as much memory again, and a
// third more time).
func copyForked(ctx context.Context, child *proc.Frozen, m *memory, wanted []kernel.Range) error {
	if err := child.OpenMem(); err != nil {
		return err
	}
	return copyUnits(ctx, m, intersect(m.runs, wanted), 1, func(local [][]byte, remote []kernel.Range) error {
		for k, r := range remote {
			if err := child.ReadForce(r.Start, local[k]); err != nil {
				return err
			}
		}
		return nil
	})
}

// copyUnits has workers read the ranges piece by piece into their places in m.
func copyUnits(ctx context.Context, m *memory, ranges []kernel.Range, workers int, read func([][]byte, []kernel.Range) error) error {
	units := cut(ranges, unitSize)
	return spread(ctx, workers, len(units), func(i int) error {
		local := make([][]byte, len(units[i]))
		for k, r := range units[i] {
			local[k] = m.view(r)
		}
		return read(local, units[i])
	})
}

// reuse lays the ranges into the buffer of an older copy, so that pages which
// that one has stay where they are. It returns nil when the buffer is too small
// or the copy would be cut into too many pieces. The older copy is not to be
// used afterwards.
func reuse(runs []kernel.Range, old *memory) *memory {
	m := &memory{buf: old.buf, size: int(total(runs))}
	if m.size > len(old.buf.mem) {
		return nil
	}
	kept := intersect(runs, old.runs)
	fresh := subtract(runs, old.runs)
	if len(kept)+len(fresh) > 4*len(runs)+256 {
		return nil
	}
	type place struct {
		kernel.Range
		off int
	}
	var list []place
	var used []kernel.Range // of the buffer
	j := 0
	for _, r := range kept {
		for old.runs[j].End <= r.Start {
			j++
		}
		off := old.offs[j] + int(r.Start-old.runs[j].Start)
		list = append(list, place{r, off})
		used = append(used, kernel.Range{Start: uint64(off), End: uint64(off) + r.Len()})
	}
	room := subtract([]kernel.Range{{Start: 0, End: uint64(len(old.buf.mem))}}, normalize(used))
	for _, r := range fresh {
		for r.Start < r.End {
			n := min(r.Len(), room[0].Len())
			list = append(list, place{kernel.Range{Start: r.Start, End: r.Start + n}, int(room[0].Start)})
			r.Start += n
			if room[0].Start += n; room[0].Len() == 0 {
				room = room[1:]
			}
		}
	}
	slices.SortFunc(list, func(a, b place) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	for _, p := range list {
		m.runs, m.offs = append(m.runs, p.Range), append(m.offs, p.off)
	}
	return m
}

// cut groups ranges into units of about size bytes each.
func cut(ranges []kernel.Range, size uint64) [][]kernel.Range {
	var units [][]kernel.Range
	var unit []kernel.Range
	room := size
	for _, r := range ranges {
		for r.Start < r.End {
			piece := kernel.Range{Start: r.Start, End: min(r.End, r.Start+room)}
			unit = append(unit, piece)
			r.Start = piece.End
			if room -= piece.Len(); room == 0 || len(unit) == 1024 {
				units, unit, room = append(units, unit), nil, size
			}
		}
	}
	if len(unit) > 0 {
		units = append(units, unit)
	}
	return units
}

// normalize sorts ranges and joins those that touch.
func normalize(in []kernel.Range) []kernel.Range {
	list := slices.Clone(in)
	slices.SortFunc(list, func(a, b kernel.Range) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	out := list[:0]
	for _, r := range list {
		if k := len(out) - 1; k >= 0 && r.Start <= out[k].End {
			out[k].End = max(out[k].End, r.End)
			continue
		}
		out = append(out, r)
	}
	return out
}

// intersect returns the parts of a that lie in b; both ascend and do not
// overlap themselves. Pieces end where a range of either ends.
func intersect(a, b []kernel.Range) []kernel.Range {
	var out []kernel.Range
	for i, j := 0, 0; i < len(a) && j < len(b); {
		if lo, hi := max(a[i].Start, b[j].Start), min(a[i].End, b[j].End); lo < hi {
			out = append(out, kernel.Range{Start: lo, End: hi})
		}
		if a[i].End < b[j].End {
			i++
		} else {
			j++
		}
	}
	return out
}

// subtract returns the parts of a outside of b.
func subtract(a, b []kernel.Range) []kernel.Range {
	var out []kernel.Range
	j := 0
	for _, r := range a {
		for j < len(b) && b[j].End <= r.Start {
			j++
		}
		for k := j; k < len(b) && b[k].Start < r.End; k++ {
			if b[k].Start > r.Start {
				out = append(out, kernel.Range{Start: r.Start, End: b[k].Start})
			}
			r.Start = max(r.Start, b[k].End)
		}
		if r.Start < r.End {
			out = append(out, r)
		}
	}
	return out
}

// total returns the length of all ranges in bytes.
func total(ranges []kernel.Range) int64 {
	var n int64
	for _, r := range ranges {
		n += int64(r.Len())
	}
	return n
}

// buffer is anonymous memory of ours, in huge pages where the kernel gives
// them, touched ahead of its use.
type buffer struct {
	mem []byte
	of  *memory // older copy that it holds; nil for none
}

// newBuffer maps size bytes or more and touches the first touch bytes.
func newBuffer(ctx context.Context, size, touch int) (*buffer, error) {
	size = max(hugeSize, (size+hugeSize-1)&^(hugeSize-1))
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	b := &buffer{mem: mem}
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // a kernel without huge pages is only slower
	if err := b.touch(ctx, min(touch, size)); err != nil {
		b.release()
		return nil, err
	}
	return b, nil
}

// touch makes the kernel provide the first n bytes, with several workers.
func (b *buffer) touch(ctx context.Context, n int) error {
	const piece = 16 << 20
	return spread(ctx, 4, (n+piece-1)/piece, func(i int) error {
		part := b.mem[i*piece : min(len(b.mem), (i+1)*piece)]
		err := unix.Madvise(part, unix.MADV_POPULATE_WRITE)
		if err == unix.EINVAL { // before Linux 5.14: touched when copied to
			return nil
		}
		if err != nil {
			return fmt.Errorf("touch memory: %w", err)
		}
		return nil
	})
}

func (b *buffer) release() {
	if b != nil && b.mem != nil {
		_ = unix.Munmap(b.mem) // cannot fail for a mapping of ours
		b.mem = nil
	}
}
