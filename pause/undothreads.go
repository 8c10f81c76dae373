package pause

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// threads makes threads anew that ended since, and puts all of them back to
// their state at the epoch.
func (u *undo) threads(ctx context.Context) error {
	live, err := u.innerTIDs()
	if err != nil {
		return err
	}
	for i := range u.c.image.Threads {
		t := &u.c.image.Threads[i]
		th := live[t.TID]
		if th == nil {
			if th, err = u.rebirth(ctx, t); err != nil {
				return fmt.Errorf("thread %d: make anew: %w", t.TID, err)
			}
		}
		if err := u.thread(ctx, th, t); err != nil {
			return fmt.Errorf("thread %d: %w", t.TID, err)
		}
	}
	return nil
}

// rebirth makes a thread with its old id. Where that is not permitted, or the
// id was given to another process (in a pid namespace that is not the pod's
// own), any id will do for the kernel, and the C library's copy of it is
// corrected.
func (u *undo) rebirth(ctx context.Context, t *image.Thread) (*proc.Thread, error) {
	f := u.p.frozen
	regs := kernel.FromWords(&t.Regs)
	a := proc.CloneArgs{
		Flags: unix.CLONE_SETTLS | unix.CLONE_CHILD_CLEARTID,
		TLS:   regs.Fs_base, ChildTID: t.ClearTID, SetTID: []int{t.TID},
	}
	if t.ClearTID == 0 {
		a.Flags &^= unix.CLONE_CHILD_CLEARTID
	}
	th, err := f.CloneThread(ctx, a)
	for try := 0; errors.Is(err, unix.EEXIST) && try < 50; try++ {
		time.Sleep(time.Millisecond) // the old one may be about to leave
		th, err = f.CloneThread(ctx, a)
	}
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EEXIST) {
		return th, err
	}
	a.SetTID = nil
	if th, err = f.CloneThread(ctx, a); err != nil {
		return nil, err
	}
	st, err := proc.ReadStatus(th.TID)
	if err != nil || t.ClearTID == 0 {
		return th, err
	}
	return th, f.WriteMem(t.ClearTID, binary.LittleEndian.AppendUint32(nil, uint32(st.Inner())))
}

// thread puts one thread back.
func (u *undo) thread(ctx context.Context, th *proc.Thread, t *image.Thread) error {
	f := u.p.frozen
	b := f.Batch(th)
	const onStack = 1 // SS_ONSTACK tells, it cannot be set
	ss := b.Words(t.AltStack.SP, uint64(uint32(t.AltStack.Flags&^onStack)), t.AltStack.Size)
	b.Call(unix.SYS_SIGALTSTACK, ss, 0)
	if t.RobustLen != 0 {
		b.Call(unix.SYS_SET_ROBUST_LIST, t.RobustHead, t.RobustLen)
	}
	b.Call(unix.SYS_SET_TID_ADDRESS, t.ClearTID)
	b.Call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uint64(t.PDeathSig))
	b.Call(unix.SYS_PRCTL, unix.PR_SET_NAME, b.String(t.Comm))
	have, err := f.Rseq(th)
	if err != nil {
		return err
	}
	if have.Addr != t.RseqAddr || have.Len != t.RseqLen || have.Sig != t.RseqSig {
		const unregister = 1 // RSEQ_FLAG_UNREGISTER
		if have.Addr != 0 {
			b.Call(unix.SYS_RSEQ, have.Addr, uint64(have.Len), unregister, uint64(have.Sig))
		}
		if t.RseqAddr != 0 {
			b.Call(unix.SYS_RSEQ, t.RseqAddr, uint64(t.RseqLen), 0, uint64(t.RseqSig))
		}
	}
	if err := b.Run(ctx); err != nil {
		return err
	}
	if err := u.scheduling(th, t); err != nil {
		return err
	}
	if err := f.SetXState(th, t.XState); err != nil {
		return err
	}
	f.SetRegs(th, kernel.FromWords(&t.Regs))
	f.SetSigMask(th, t.SigMask)
	return nil
}

// scheduling puts affinity and nice value back where they changed.
func (u *undo) scheduling(th *proc.Thread, t *image.Thread) error {
	sys := u.p.frozen.Tracer().Sys()
	mask, err := sys.Affinity(th.TID)
	if err != nil {
		return err
	}
	if !slices.Equal(mask, t.Affinity) {
		if err := sys.SetAffinity(th.TID, t.Affinity); err != nil {
			return err
		}
	}
	st, err := proc.ReadStat(th.TID)
	if err != nil {
		return err
	}
	if st.Nice != t.Nice {
		if err := unix.Setpriority(unix.PRIO_PROCESS, th.TID, t.Nice); err != nil {
			return fmt.Errorf("nice %d: %w", t.Nice, err)
		}
	}
	return nil
}

// timers puts interval timers and POSIX timers back.
func (u *undo) timers(ctx context.Context) error {
	f, im := u.p.frozen, &u.c.image
	b := f.Batch(f.Leader())
	for i, t := range im.ITimers {
		if t.ValueUS == 0 {
			t.ValueUS = t.IntervalUS // it has fired, and its signal is pending
		}
		b.Call(unix.SYS_SETITIMER, uint64(i), b.Words(
			uint64(t.IntervalUS/1e6), uint64(t.IntervalUS%1e6), uint64(t.ValueUS/1e6), uint64(t.ValueUS%1e6)), 0)
	}
	live, err := readTimers(u.p.pid)
	if err != nil {
		return err
	}
	inner, err := u.innerTIDs()
	if err != nil {
		return err
	}
	own := map[int]int{}
	for tid, th := range inner {
		own[th.TID] = tid
	}
	for i := range live {
		if tid, ok := own[live[i].TID]; ok {
			live[i].TID = tid
		}
	}
	for _, t := range live {
		if !slices.ContainsFunc(im.PTimers, func(s image.PosixTimer) bool { return sameTimer(s, t) }) {
			b.Call(unix.SYS_TIMER_DELETE, uint64(t.ID))
		}
	}
	if err := b.Run(ctx); err != nil {
		return err
	}
	for _, t := range im.PTimers {
		if !slices.ContainsFunc(live, func(l image.PosixTimer) bool { return sameTimer(l, t) }) {
			if err := u.createTimer(ctx, t); err != nil {
				return fmt.Errorf("timer %d: %w", t.ID, err)
			}
		}
	}
	b = f.Batch(f.Leader())
	for _, t := range im.PTimers {
		b.Call(unix.SYS_TIMER_SETTIME, uint64(t.ID), 0, b.Words(
			uint64(t.IntervalNS/1e9), uint64(t.IntervalNS%1e9), uint64(t.ValueNS/1e9), uint64(t.ValueNS%1e9)), 0)
	}
	return b.Run(ctx)
}

// sameTimer reports whether a and b were created alike, with the same id.
func sameTimer(a, b image.PosixTimer) bool {
	return a.ID == b.ID && a.Clock == b.Clock && a.Notify == b.Notify && a.Signal == b.Signal &&
		a.Value == b.Value && (a.Notify&4 == 0 || a.TID == b.TID)
}

// createTimer makes a POSIX timer with a certain id.
//
// Source: PR_TIMER_CREATE_RESTORE_IDS, Linux 6.15. Before, ids were counted
// upwards per process, so that making and deleting timers leads to every id.
func (u *undo) createTimer(ctx context.Context, t image.PosixTimer) error {
	const restoreIDs = 77
	f := u.p.frozen
	b := f.Batch(f.Leader())
	event := b.Words(t.Value, uint64(uint32(t.Signal))|uint64(uint32(t.Notify))<<32, uint64(uint32(t.TID)), 0, 0, 0, 0, 0)
	id := b.Bytes(binary.LittleEndian.AppendUint32(nil, uint32(t.ID)))
	on := b.Call(unix.SYS_PRCTL, restoreIDs, 1)
	create := b.Call(unix.SYS_TIMER_CREATE, uint64(t.Clock), event, id)
	off := b.Call(unix.SYS_PRCTL, restoreIDs, 0)
	if err := b.RunAll(ctx); err != nil {
		return err
	}
	if err := create.Err(); err != nil {
		return err
	}
	if on.Err() == nil {
		return off.Err()
	}
	return u.countTimers(ctx, t, b, event, id)
}

// countTimers makes and deletes timers until the id comes.
func (u *undo) countTimers(ctx context.Context, t image.PosixTimer, b *proc.Batch, event, id uint64) error {
	for range 1 << 16 {
		raw, err := b.Read(id, 4)
		if err != nil {
			return err
		}
		got := binary.LittleEndian.Uint32(raw)
		if int(got) == t.ID {
			return nil
		}
		b.Call(unix.SYS_TIMER_DELETE, uint64(got))
		b.Call(unix.SYS_TIMER_CREATE, uint64(t.Clock), event, id)
		if err := b.Run(ctx); err != nil {
			return err
		}
	}
	return errors.New("its id did not come")
}
