package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// Madvise values that x/sys/unix does not have are given by their numbers in
// asm-generic/mman-common.h.
const madvWipeOnFork = 18

// atFDCWD is AT_FDCWD as a system call argument.
const atFDCWD = ^uint64(99)

// mappedRanges returns what the image has mapped.
func mappedRanges(p *image.Process) []kernel.Range {
	out := make([]kernel.Range, 0, len(p.Maps))
	for _, m := range p.Maps {
		out = append(out, kernel.Range{Start: m.Start, End: m.End})
	}
	return out
}

// layout turns the skeleton into its program with the old mappings, still
// without contents. Mappings that have contents are writable until finish.
func (b *builder) layout(ctx context.Context, p *process, s Seed) error {
	start := time.Now()
	defer b.timed("layout", start)
	p.f.Avoid(p.owned)
	if err := p.f.Exec(ctx, p.img.Exe.Path, []string{p.img.Comm}, nil); err != nil {
		return err
	}
	if err := b.moveVDSO(ctx, p); err != nil {
		return fmt.Errorf("vdso: %w", err)
	}
	batch := p.f.Batch(p.f.Leader())
	objects, err := b.receiveObjects(ctx, p, s, batch)
	if err != nil {
		return fmt.Errorf("shared memory: %w", err)
	}
	files, err := b.openMapped(ctx, p, batch)
	if err != nil {
		return fmt.Errorf("mapped files: %w", err)
	}
	for i := range p.img.Maps {
		if err := b.mapOne(p, batch, &p.img.Maps[i], objects, files); err != nil {
			return err
		}
	}
	if err := batch.Run(ctx); err != nil {
		return fmt.Errorf("map: %w", err)
	}
	return nil
}

// moveVDSO unmaps everything of the executed program and moves the kernel's
// own mappings to where the image has them, by way of a place that is free
// before and after, since old and new places may overlap.
// Source: vdso(7); arch/x86/entry/vdso/vma.c, vdso_mremap.
func (b *builder) moveVDSO(ctx context.Context, p *process) error {
	maps, err := p.f.Maps()
	if err != nil {
		return err
	}
	now, want := specials(maps), wantedSpecials(p.img)
	if len(now) != len(want) {
		return fmt.Errorf("%w: the kernel maps %d parts, the image has %d", image.ErrMismatch, len(now), len(want))
	}
	batch := p.f.Batch(p.f.Leader())
	park, err := parking(maps, p.owned, now)
	if err != nil {
		return err
	}
	for i, m := range now {
		if m.Len() != want[i].End-want[i].Start {
			return fmt.Errorf("%w: part %d has %d bytes, in the image %d", image.ErrMismatch, i, m.Len(), want[i].End-want[i].Start)
		}
		batch.Call(unix.SYS_MREMAP, m.Start, m.Len(), m.Len(), unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, park[i])
	}
	for _, m := range maps {
		if !m.Special() {
			batch.Call(unix.SYS_MUNMAP, m.Start, m.Len())
		}
	}
	for i, m := range now {
		batch.Call(unix.SYS_MREMAP, park[i], m.Len(), m.Len(), unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, want[i].Start)
	}
	if err := batch.Run(ctx); err != nil {
		return err
	}
	return p.f.VDSOMoved()
}

// specials returns the mappings of the kernel, [vvar]... and [vdso], by address.
func specials(maps []proc.Map) []proc.Map {
	var out []proc.Map
	for _, m := range maps {
		if m.Special() && m.Path != "[vsyscall]" {
			out = append(out, m)
		}
	}
	return out
}

func wantedSpecials(p *image.Process) []image.Mapping {
	var out []image.Mapping
	for _, m := range p.Maps {
		if m.Kind == image.MapVDSO || m.Kind == image.MapVVAR {
			out = append(out, m)
		}
	}
	return out
}

// parking returns addresses for the parts that are clear of maps and of what
// the image will map.
func parking(maps []proc.Map, owned []kernel.Range, parts []proc.Map) ([]uint64, error) {
	used := slices.Clone(owned)
	for _, m := range maps {
		used = append(used, m.Range)
	}
	slices.SortFunc(used, func(a, b kernel.Range) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	var size uint64
	for _, m := range parts {
		size += m.Len()
	}
	at := uint64(1 << 20)
	for _, r := range used {
		if r.Start > at && r.Start-at >= size {
			break
		}
		at = max(at, r.End)
	}
	if at+size > 1<<47-1<<21 {
		return nil, errors.New("no room in the address space")
	}
	out := make([]uint64, len(parts))
	for i, m := range parts {
		out[i] = at
		at += m.Len()
	}
	return out, nil
}

// mappedFile is a file that the process opened in order to map it.
type mappedFile struct {
	path  string
	write bool
}

// openMapped has the process open every file that it maps. Files that are
// mapped shared are opened for writing where that is permitted.
func (b *builder) openMapped(ctx context.Context, p *process, batch *proc.Batch) (map[mappedFile]uint64, error) {
	calls := map[mappedFile]*proc.Call{}
	for _, m := range p.img.Maps {
		if m.File == nil || m.Object != 0 {
			continue
		}
		key := fileOf(&m)
		if calls[key] != nil {
			continue
		}
		flags := unix.O_RDONLY
		if key.write {
			flags = unix.O_RDWR
		}
		calls[key] = batch.Call(unix.SYS_OPENAT, atFDCWD, batch.String(key.path), uint64(flags|unix.O_CLOEXEC), 0)
	}
	if err := batch.RunAll(ctx); err != nil {
		return nil, err
	}
	out := map[mappedFile]uint64{}
	for key, c := range calls {
		if key.write && proc.Errno(c.Ret) == unix.EACCES || proc.Errno(c.Ret) == unix.EROFS {
			c = batch.Call(unix.SYS_OPENAT, atFDCWD, batch.String(key.path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err := batch.RunAll(ctx); err != nil {
				return nil, err
			}
		}
		if err := c.Err(); err != nil {
			return nil, fmt.Errorf("open %s: %w", key.path, err)
		}
		out[key] = uint64(c.Ret) //nolint:gosec // a descriptor
	}
	return out, nil
}

func fileOf(m *image.Mapping) mappedFile {
	return mappedFile{path: m.File.Path, write: m.Shared}
}

// mapOne adds the calls for one mapping.
func (b *builder) mapOne(p *process, batch *proc.Batch, m *image.Mapping, objects map[int]uint64, files map[mappedFile]uint64) error {
	prot, flags, fd, offset := uint64(m.Prot), uint64(unix.MAP_FIXED_NOREPLACE), ^uint64(0), m.Offset
	if p.filled(m) {
		prot |= unix.PROT_READ | unix.PROT_WRITE
	}
	if m.Shared {
		flags |= unix.MAP_SHARED
	} else {
		flags |= unix.MAP_PRIVATE
	}
	switch {
	case m.Kind == image.MapVDSO || m.Kind == image.MapVVAR || m.Kind == image.MapVsyscall:
		return nil
	case b.segment(m) != nil:
		mapSegment(batch, m, b.segment(m))
		return nil
	case m.Object != 0:
		fd = objects[m.Object]
	case m.File != nil:
		fd = files[fileOf(m)]
	case m.Shared:
		return fmt.Errorf("%w: shared mapping %x of nothing", image.ErrCorrupt, m.Start)
	default:
		flags |= unix.MAP_ANONYMOUS
		offset = 0
	}
	if m.Grows {
		flags |= unix.MAP_GROWSDOWN
	}
	if slices.Contains(m.Advice, "nr") {
		flags |= unix.MAP_NORESERVE
	}
	size := m.End - m.Start
	batch.Call(unix.SYS_MMAP, m.Start, size, prot, flags, fd, offset)
	for _, a := range m.Advice {
		if n, ok := advice(a); ok {
			batch.Call(unix.SYS_MADVISE, m.Start, size, n)
		}
	}
	return nil
}

// advice translates a VmFlag into the madvise that makes it. Source: proc_pid_smaps(5).
func advice(flag string) (uint64, bool) {
	switch flag {
	case "hg":
		return unix.MADV_HUGEPAGE, true
	case "nh":
		return unix.MADV_NOHUGEPAGE, true
	case "dc":
		return unix.MADV_DONTFORK, true
	case "dd":
		return unix.MADV_DONTDUMP, true
	case "wf":
		return madvWipeOnFork, true
	case "sr":
		return unix.MADV_SEQUENTIAL, true
	case "rr":
		return unix.MADV_RANDOM, true
	}
	return 0, false
}

// filled reports whether the image stores pages of m.
func (p *process) filled(m *image.Mapping) bool {
	if m.Shared {
		return false
	}
	return len(p.pages.Overlapping(m.Start, m.End)) > 0
}

// finish gives the mappings their protections, locks what was locked, and
// tells the kernel where heap, stack and arguments are.
// Source: prctl(2), PR_SET_MM_MAP; mlock(2).
func (b *builder) finish(ctx context.Context, p *process) error {
	batch := p.f.Batch(p.f.Leader())
	for i := range p.img.Maps {
		m := &p.img.Maps[i]
		const rw = unix.PROT_READ | unix.PROT_WRITE
		if p.filled(m) && m.Prot&rw != rw {
			batch.Call(unix.SYS_MPROTECT, m.Start, m.End-m.Start, uint64(m.Prot))
		}
	}
	mm := p.img.MM
	auxv := batch.Bytes(mm.Auxv)
	words := batch.Words(mm.StartCode, mm.EndCode, mm.StartData, mm.EndData, mm.StartBrk, mm.Brk, mm.StartStack,
		mm.ArgStart, mm.ArgEnd, mm.EnvStart, mm.EnvEnd, auxv, uint64(len(mm.Auxv))|0xffffffff<<32)
	batch.Call(unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_MAP, words, 104, 0)
	if err := batch.Run(ctx); err != nil {
		return fmt.Errorf("finish memory: %w", err)
	}
	for i := range p.img.Maps {
		m := &p.img.Maps[i]
		if !slices.Contains(m.Advice, "lo") {
			continue
		}
		batch.Call(unix.SYS_MLOCK, m.Start, m.End-m.Start)
		if err := batch.Run(ctx); err != nil {
			b.note(p.img.PID, "memory at %x is no longer locked: %v", m.Start, err)
		}
	}
	return nil
}
