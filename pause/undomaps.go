package pause

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// mappings puts brk and the mappings back to what they were.
func (u *undo) mappings(ctx context.Context) error {
	f := u.p.frozen
	b := f.Batch(f.Leader())
	brk := b.Call(unix.SYS_BRK, u.c.image.MM.Brk)
	if err := b.Run(ctx); err != nil {
		return err
	}
	if uint64(brk.Ret) != u.c.image.MM.Brk {
		return fmt.Errorf("brk is %x, want %x", brk.Ret, u.c.image.MM.Brk)
	}
	live, err := f.Maps()
	if err != nil {
		return err
	}
	steps, err := diffMaps(u.c.image.Maps, live)
	if err != nil {
		return err
	}
	for _, s := range steps {
		if err := u.remap(ctx, s); err != nil {
			return fmt.Errorf("%s %x-%x: %w", s.op, s.Start, s.End, err)
		}
	}
	return nil
}

// mapOp is what must be done with a range of addresses.
type mapOp string

const (
	opUnmap   mapOp = "munmap"
	opProtect mapOp = "mprotect"
	opMap     mapOp = "mmap"
)

// mapStep is one change of the mappings.
type mapStep struct {
	kernel.Range
	op mapOp
	to *image.Mapping // opProtect, opMap
}

// diffMaps returns the changes that turn the live mappings into the saved
// ones. It is pure. Both lists ascend.
//
// Expected errors: one that names a mapping of the kernel's own that moved.
func diffMaps(saved []image.Mapping, live []proc.Map) ([]mapStep, error) {
	var edges []uint64
	for _, v := range saved {
		edges = append(edges, v.Start, v.End)
	}
	for _, m := range live {
		edges = append(edges, m.Start, m.End)
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	var steps []mapStep
	i, j := 0, 0
	for k := 0; k+1 < len(edges); k++ {
		r := kernel.Range{Start: edges[k], End: edges[k+1]}
		for i < len(saved) && saved[i].End <= r.Start {
			i++
		}
		for j < len(live) && live[j].End <= r.Start {
			j++
		}
		var s *image.Mapping
		var l *proc.Map
		if i < len(saved) && saved[i].Start <= r.Start {
			s = &saved[i]
		}
		if j < len(live) && live[j].Start <= r.Start {
			l = &live[j]
		}
		step, err := diffRange(r, s, l)
		if err != nil {
			return nil, err
		}
		if step.op == "" {
			continue
		}
		if n := len(steps) - 1; n >= 0 && steps[n].End == r.Start && steps[n].op == step.op && steps[n].to == step.to {
			steps[n].End = r.End
			continue
		}
		steps = append(steps, step)
	}
	return steps, nil
}

// diffRange compares one range that no mapping begins or ends within.
func diffRange(r kernel.Range, s *image.Mapping, l *proc.Map) (mapStep, error) {
	special := l != nil && l.Special() || s != nil && (s.Kind == image.MapVDSO || s.Kind == image.MapVVAR || s.Kind == image.MapVsyscall)
	switch {
	case special:
		if s == nil || l == nil || !l.Special() {
			return mapStep{}, fmt.Errorf("mapping %x-%x of the kernel moved", r.Start, r.End)
		}
		return mapStep{}, nil
	case s == nil && l == nil:
		return mapStep{}, nil
	case s == nil:
		return mapStep{Range: r, op: opUnmap}, nil
	case l == nil || !sameMapping(s, l):
		return mapStep{Range: r, op: opMap, to: s}, nil
	case s.Prot != l.Prot:
		return mapStep{Range: r, op: opProtect, to: s}, nil
	}
	return mapStep{}, nil
}

// sameMapping reports whether l maps what s did, protection aside.
func sameMapping(s *image.Mapping, l *proc.Map) bool {
	now, why := describeMap(l)
	if why != "" || s.Shared != l.Shared {
		return false
	}
	if s.File == nil || l.Ino == 0 && !isSegment(l.Path) { // the first segment has number 0
		return s.File == nil && l.Ino == 0
	}
	return now.File != nil && s.File.Ino == now.File.Ino && s.File.Path == now.File.Path &&
		s.Offset-s.Start == l.Offset-l.Start
}

// remap carries one step out.
func (u *undo) remap(ctx context.Context, s mapStep) error {
	f := u.p.frozen
	b := f.Batch(f.Leader())
	switch s.op {
	case opUnmap:
		b.Call(unix.SYS_MUNMAP, s.Start, s.Len())
		return b.Run(ctx)
	case opProtect:
		b.Call(unix.SYS_MPROTECT, s.Start, s.Len(), uint64(s.to.Prot))
		return b.Run(ctx)
	}
	flags := uint64(unix.MAP_FIXED)
	if s.to.Kind == image.MapObject {
		return errors.New("shared memory was unmapped since the epoch")
	}
	if s.to.File == nil {
		flags |= unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
		if s.to.Grows {
			flags |= unix.MAP_GROWSDOWN
		}
		b.Call(unix.SYS_MMAP, s.Start, s.Len(), uint64(s.to.Prot), flags, ^uint64(0), 0)
		adviseMapping(b, s)
		return b.Run(ctx)
	}
	return u.remapFile(ctx, s, flags)
}

// remapFile maps a file again that was unmapped since.
func (u *undo) remapFile(ctx context.Context, s mapStep, flags uint64) error {
	f := u.p.frozen
	var st unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(u.p.pid)+"/root"+s.to.File.Path, &st); err != nil {
		return fmt.Errorf("%s: %w", s.to.File.Path, err)
	}
	if st.Ino != s.to.File.Ino {
		return fmt.Errorf("%s was replaced since the epoch", s.to.File.Path)
	}
	mode := uint64(unix.O_RDONLY | unix.O_CLOEXEC)
	if s.to.Shared {
		flags |= unix.MAP_SHARED
		if s.to.Prot&unix.PROT_WRITE != 0 {
			mode = unix.O_RDWR | unix.O_CLOEXEC
		}
	} else {
		flags |= unix.MAP_PRIVATE | unix.MAP_NORESERVE
	}
	b := f.Batch(f.Leader())
	open := b.Call(unix.SYS_OPENAT, atFDCWD, b.String(s.to.File.Path), mode, 0)
	if err := b.Run(ctx); err != nil {
		return err
	}
	b.Call(unix.SYS_MMAP, s.Start, s.Len(), uint64(s.to.Prot), flags, uint64(open.Ret), s.to.Offset+s.Start-s.to.Start)
	adviseMapping(b, s)
	err := b.Run(ctx)
	b.Call(unix.SYS_CLOSE, uint64(open.Ret))
	return errors.Join(err, b.Run(ctx))
}

// atFDCWD is AT_FDCWD as a system call argument.
const atFDCWD = ^uint64(99)

// adviseMapping repeats the madvise(2) calls that smaps told of.
func adviseMapping(b *proc.Batch, s mapStep) {
	for _, a := range s.to.Advice {
		code := map[string]uint64{
			"hg": unix.MADV_HUGEPAGE, "nh": unix.MADV_NOHUGEPAGE, "dd": unix.MADV_DONTDUMP,
			"wf": unix.MADV_WIPEONFORK, "dc": unix.MADV_DONTFORK,
		}[a]
		if code != 0 {
			b.Call(unix.SYS_MADVISE, s.Start, s.Len(), code)
		}
	}
}
