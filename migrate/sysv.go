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
			b.sysv.Semaphores = append(b.sysv.Semaphores, s)
		}
		for _, x := range v.Queues {
			q := proc.Queue{ID: x.ID, Key: x.Key, Mode: x.Mode, MaxBytes: x.MaxBytes}
			for _, m := range x.Messages {
				q.Messages = append(q.Messages, proc.Message(m))
			}
			if err := f.MakeQueue(ctx, &q); err != nil {
				return fmt.Errorf("system V message queue %d (key %#x): %w", x.ID, x.Key, err)
			}
			b.sysv.Queues = append(b.sysv.Queues, q)
		}
		return nil
	})
}

func (b *builder) buildSegment(ctx context.Context, f *proc.Frozen, x *image.SysVSegment) (err error) {
	s := proc.Segment{ID: x.ID, Key: x.Key, Mode: x.Mode, Size: x.Size, Removed: x.Removed}
	if err := f.MakeSegment(ctx, &s); err != nil {
		return err
	}
	b.sysv.Segments = append(b.sysv.Segments, s)
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
		var errs []error
		for _, s := range v.Segments {
			errs = append(errs, f.RemoveSegment(ctx, s.ID))
		}
		for _, s := range v.Semaphores {
			errs = append(errs, f.RemoveSemaphores(ctx, s.ID))
		}
		for _, q := range v.Queues {
			errs = append(errs, f.RemoveQueue(ctx, q.ID))
		}
		return errors.Join(errs...)
	})
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
