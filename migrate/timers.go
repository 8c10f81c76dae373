package migrate

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/proc"
)

// Of linux/prctl.h, Linux 6.15: timer_create takes the id from where it would
// store it.
const (
	prTimerRestoreIDs = 77
	timerIDTries      = 4096
)

// timers arms the interval timers and makes the POSIX timers with their ids.
// Time that passed since the epoch does not count.
func (b *builder) timers(ctx context.Context, p *process) error {
	batch := p.f.Batch(p.f.Leader())
	for which, it := range p.img.ITimers {
		if it.ValueUS == 0 && it.IntervalUS == 0 {
			continue
		}
		if it.ValueUS == 0 {
			// It has fired and is armed again when its signal, which is
			// pending, is taken; that needs the interval in place.
			it.ValueUS = it.IntervalUS
		}
		const us = 1_000_000
		w := batch.Words(uint64(it.IntervalUS/us), uint64(it.IntervalUS%us), uint64(it.ValueUS/us), uint64(it.ValueUS%us)) //nolint:gosec // not negative
		batch.Call(unix.SYS_SETITIMER, uint64(which), w, 0)                                                                //nolint:gosec // 0..2
	}
	if err := batch.Run(ctx); err != nil {
		return fmt.Errorf("interval timers: %w", err)
	}
	list := slices.Clone(p.img.PTimers)
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b image.PosixTimer) int { return cmp.Compare(a.ID, b.ID) })
	on := batch.Call(unix.SYS_PRCTL, prTimerRestoreIDs, 1, 0, 0, 0)
	if err := batch.RunAll(ctx); err != nil {
		return fmt.Errorf("timers: %w", err)
	}
	for _, t := range list {
		if err := b.timer(ctx, batch, t, on.Err() == nil); err != nil {
			return fmt.Errorf("timer %d: %w", t.ID, err)
		}
	}
	if on.Err() == nil {
		batch.Call(unix.SYS_PRCTL, prTimerRestoreIDs, 0, 0, 0, 0)
	}
	if err := batch.Run(ctx); err != nil {
		return fmt.Errorf("timers: %w", err)
	}
	return nil
}

// timer makes one POSIX timer. Kernels that do not take the id hand ids out in
// ascending order; those before the wanted one are made and deleted.
func (b *builder) timer(ctx context.Context, batch *proc.Batch, t image.PosixTimer, choose bool) error {
	event := make([]byte, 64) // struct sigevent
	putWord(event, t.Value)
	putWord(event[8:], uint64(uint32(t.Signal))|uint64(uint32(t.Notify))<<32) //nolint:gosec // bits
	putWord(event[16:], uint64(uint32(t.TID)))                                //nolint:gosec // bits
	ev := batch.Bytes(event)
	for range timerIDTries {
		id := batch.Words(uint64(t.ID)) //nolint:gosec // not negative
		batch.Call(unix.SYS_TIMER_CREATE, uint64(int64(t.Clock)), ev, id)
		if err := batch.Run(ctx); err != nil {
			return err
		}
		got, err := batch.Read(id, 4)
		if err != nil {
			return err
		}
		if n := int(got[0]) | int(got[1])<<8 | int(got[2])<<16 | int(got[3])<<24; n != t.ID {
			if choose || n > t.ID {
				return fmt.Errorf("%w: the kernel gave it the id %d", image.ErrMismatch, n)
			}
			batch.Call(unix.SYS_TIMER_DELETE, uint64(n))
			continue
		}
		if t.ValueNS > 0 {
			spec := batch.Words(uint64(t.IntervalNS/1e9), uint64(t.IntervalNS%1e9), uint64(t.ValueNS/1e9), uint64(t.ValueNS%1e9))
			batch.Call(unix.SYS_TIMER_SETTIME, uint64(t.ID), 0, spec, 0) //nolint:gosec // not negative
		}
		return batch.Run(ctx)
	}
	return fmt.Errorf("%w: its id is out of reach on this kernel", image.ErrMismatch)
}
