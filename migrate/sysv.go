package migrate

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/proc"
)

// withSeed runs fn with the first seed frozen.
func (b *builder) withSeed(ctx context.Context, fn func(f *proc.Frozen) error) (err error) {
	t := proc.NewTracer(b.cfg.Sys)
	defer func() { err = errors.Join(err, t.Close()) }()
	f, err := t.Freeze(ctx, b.cfg.Seeds[0].PID)
	if err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	defer func() { err = errors.Join(err, f.Thaw(context.WithoutCancel(ctx))) }()
	return fn(f)
}

// buildSysV makes the System V objects, with numbers, keys and contents, before
// there is any process: the seed does, in whose IPC namespace they belong.
func (b *builder) buildSysV(ctx context.Context) error {
	v := b.m.SysV
	if v == nil || len(v.Segments)+len(v.Semaphores)+len(v.Queues) == 0 {
		return nil
	}
	return b.withSeed(ctx, func(f *proc.Frozen) error {
		if err := b.claimSysV(ctx, f); err != nil {
			return err
		}
		for i := range v.Segments {
			if err := b.buildSegment(ctx, f, &v.Segments[i]); err != nil {
				return fmt.Errorf("system V segment %d (key %#x): %w", v.Segments[i].ID, v.Segments[i].Key, err)
			}
		}
		for _, x := range v.Semaphores {
			s := proc.Semaphores(x)
			if err := f.MakeSemaphores(ctx, &s); err != nil {
				return fmt.Errorf("system V semaphores %d (key %#x): %w", x.ID, x.Key, err)
			}
		}
		for _, x := range v.Queues {
			q := proc.Queue{ID: x.ID, Key: x.Key, Mode: x.Mode, MaxBytes: x.MaxBytes}
			for _, m := range x.Messages {
				q.Messages = append(q.Messages, proc.Message(m))
			}
			if err := f.MakeQueue(ctx, &q); err != nil {
				return fmt.Errorf("system V message queue %d (key %#x): %w", x.ID, x.Key, err)
			}
		}
		return nil
	})
}

// claimSysV notes what will be made, so that it can be removed again however
// far that gets, once it is sure that nobody else has the numbers.
func (b *builder) claimSysV(ctx context.Context, f *proc.Frozen) error {
	live, err := f.ReadSysV(ctx)
	if err != nil {
		return fmt.Errorf("system V objects: %w", err)
	}
	taken := map[string]bool{}
	for _, s := range live.Segments {
		taken[fmt.Sprint("segment ", s.ID)] = true
	}
	for _, s := range live.Semaphores {
		taken[fmt.Sprint("semaphores ", s.ID)] = true
	}
	for _, q := range live.Queues {
		taken[fmt.Sprint("message queue ", q.ID)] = true
	}
	var want proc.SysV
	var names []string
	for _, s := range b.m.SysV.Segments {
		names = append(names, fmt.Sprint("segment ", s.ID))
		want.Segments = append(want.Segments, proc.Segment{ID: s.ID, Removed: s.Removed})
	}
	for _, s := range b.m.SysV.Semaphores {
		names = append(names, fmt.Sprint("semaphores ", s.ID))
		want.Semaphores = append(want.Semaphores, proc.Semaphores{ID: s.ID})
	}
	for _, q := range b.m.SysV.Queues {
		names = append(names, fmt.Sprint("message queue ", q.ID))
		want.Queues = append(want.Queues, proc.Queue{ID: q.ID})
	}
	for _, n := range names {
		if taken[n] {
			return fmt.Errorf("system V %s: %w", n, unix.EEXIST)
		}
	}
	b.sysv = want
	return nil
}

func (b *builder) buildSegment(ctx context.Context, f *proc.Frozen, x *image.SysVSegment) (err error) {
	s := proc.Segment{ID: x.ID, Key: x.Key, Mode: x.Mode, Size: x.Size, Removed: x.Removed}
	if err := f.MakeSegment(ctx, &s); err != nil {
		return err
	}
	pages, err := b.r.Object(x.Object)
	if err != nil {
		return err
	}
	addr, err := f.Attach(ctx, x.ID, true)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer func() { err = errors.Join(err, f.Detach(context.WithoutCancel(ctx), addr)) }()
	return pages.Each(ctx, b.cfg.Workers, func(r image.Run, data []byte) error {
		if r.Zero {
			return nil
		}
		return f.WriteMem(addr+r.Addr, data)
	})
}

// finishSysV marks the segments as removed that were so, now that they are
// mapped.
func (b *builder) finishSysV(ctx context.Context) error {
	for i := range b.sysv.Segments {
		s := &b.sysv.Segments[i]
		if !s.Removed || len(b.out.procs) == 0 {
			continue
		}
		if err := b.out.procs[0].f.RemoveSegment(ctx, s.ID); err != nil {
			return fmt.Errorf("remove segment %d: %w", s.ID, err)
		}
	}
	b.out.sysv = b.sysv
	return nil
}

// undoSysV removes what was made, so that another attempt finds the numbers
// free.
func (b *builder) undoSysV(ctx context.Context) error {
	v := &b.sysv
	if len(v.Segments)+len(v.Semaphores)+len(v.Queues) == 0 {
		return nil
	}
	return b.withSeed(context.WithoutCancel(ctx), func(f *proc.Frozen) error {
		return removeSysV(context.WithoutCancel(ctx), f, v)
	})
}

// removeSysV has f remove objects; those that were never made, or are going,
// are passed over.
func removeSysV(ctx context.Context, f *proc.Frozen, v *proc.SysV) error {
	var errs []error
	gone := func(err error) {
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EIDRM) {
			errs = append(errs, err)
		}
	}
	for _, s := range v.Segments {
		gone(f.RemoveSegment(ctx, s.ID))
	}
	for _, s := range v.Semaphores {
		gone(f.RemoveSemaphores(ctx, s.ID))
	}
	for _, q := range v.Queues {
		gone(f.RemoveQueue(ctx, q.ID))
	}
	return errors.Join(errs...)
}

// segment returns the segment that mapping m is of, nil for others.
func (b *builder) segment(m *image.Mapping) *image.SysVSegment {
	if b.m.SysV == nil || m.Object == 0 {
		return nil
	}
	for i := range b.m.SysV.Segments {
		if s := &b.m.SysV.Segments[i]; s.Object == m.Object {
			return s
		}
	}
	return nil
}

// mapSegment adds the call that maps a segment where it was.
func mapSegment(batch *proc.Batch, m *image.Mapping, s *image.SysVSegment) {
	how := uint64(0)
	if m.Prot&unix.PROT_WRITE == 0 {
		how |= unix.SHM_RDONLY
	}
	if m.Prot&unix.PROT_EXEC != 0 {
		how |= shmExec
	}
	batch.Call(unix.SYS_SHMAT, uint64(s.ID), m.Start, how) //nolint:gosec // a number of the kernel's
}

// shmExec is SHM_EXEC of linux/shm.h.
const shmExec = 0o100000
