package migrate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// state gives a process with its memory everything else that the kernel knows
// of it. Limits come late, so that they do not bind the work itself; signals
// and registers come last.
func (b *builder) state(ctx context.Context, p *process, s Seed) error {
	for _, step := range []func() error{
		func() error { return b.finish(ctx, p) },
		func() error { return b.zombies(ctx, p) },
		func() error { return b.descriptors(ctx, p, s) },
		func() error { return b.registrations(ctx, p) },
		func() error { return b.locks(ctx, p) },
		func() error { return b.threads(ctx, p) },
		func() error { return b.attributes(ctx, p) },
		func() error { return b.limits(ctx, p) },
		func() error { return b.timers(ctx, p) },
		func() error { return b.signals(ctx, p) },
		func() error { return b.registers(p) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// threads clones the other threads and makes what belongs to each thread:
// thread id address, robust list, restartable sequences, alternate stack,
// name, scheduling.
func (b *builder) threads(ctx context.Context, p *process) error {
	for i := range p.img.Threads {
		img := &p.img.Threads[i]
		th := p.f.Leader()
		if i > 0 {
			args := proc.CloneArgs{SetTID: []int{img.TID}}
			if img.ClearTID != 0 {
				args.Flags, args.ChildTID = unix.CLONE_CHILD_CLEARTID, img.ClearTID
			}
			var err error
			if th, err = p.f.CloneThread(ctx, args); err != nil {
				return err
			}
		}
		batch := p.f.Batch(th)
		batch.Call(unix.SYS_SET_TID_ADDRESS, img.ClearTID)
		batch.Call(unix.SYS_PRCTL, unix.PR_SET_NAME, batch.String(img.Comm))
		if img.RobustHead != 0 {
			batch.Call(unix.SYS_SET_ROBUST_LIST, img.RobustHead, img.RobustLen)
		}
		if img.RseqAddr != 0 {
			batch.Call(unix.SYS_RSEQ, img.RseqAddr, uint64(img.RseqLen), 0, uint64(img.RseqSig))
		}
		const onStack = 1                                                                                                                 // SS_ONSTACK follows from the stack pointer
		batch.Call(unix.SYS_SIGALTSTACK, batch.Words(img.AltStack.SP, uint64(uint32(img.AltStack.Flags&^onStack)), img.AltStack.Size), 0) //nolint:gosec // bits
		if img.PDeathSig != 0 {
			batch.Call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uint64(img.PDeathSig)) //nolint:gosec // a signal
		}
		if err := batch.Run(ctx); err != nil {
			return fmt.Errorf("thread %d: %w", img.TID, err)
		}
		b.scheduling(ctx, p, i, th)
	}
	return nil
}

// scheduling is put back as far as it is permitted; a program goes on without.
func (b *builder) scheduling(ctx context.Context, p *process, i int, th *proc.Thread) {
	img := &p.img.Threads[i]
	batch := p.f.Batch(th)
	if img.Policy != 0 {
		batch.Call(unix.SYS_SCHED_SETSCHEDULER, 0, uint64(img.Policy), batch.Words(uint64(uint32(img.Priority)))) //nolint:gosec // small numbers
	}
	if img.Policy == 0 || img.Policy == 3 { // SCHED_OTHER, SCHED_BATCH
		batch.Call(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, uint64(int64(img.Nice))) //nolint:gosec // two's complement is meant
	}
	if err := batch.Run(ctx); err != nil {
		b.note(p.img.PID, "thread %d: scheduling priority: %v", img.TID, err)
	}
	if err := p.f.Tracer().Sys().SetAffinity(th.TID, img.Affinity); err != nil {
		b.note(p.img.PID, "thread %d: processor affinity: %v", img.TID, err)
	}
}

// attributes are the signal handlers and what a process has besides.
func (b *builder) attributes(ctx context.Context, p *process) error {
	batch := p.f.Batch(p.f.Leader())
	for i, a := range p.img.Actions {
		sig := unix.Signal(i + 1)
		if sig == unix.SIGKILL || sig == unix.SIGSTOP {
			continue
		}
		batch.Call(unix.SYS_RT_SIGACTION, uint64(sig), batch.Words(a.Handler, a.Flags, a.Restorer, a.Mask), 0, 8)
	}
	batch.Call(unix.SYS_UMASK, uint64(p.img.Umask))
	batch.Call(unix.SYS_CHDIR, batch.String(p.img.Cwd))
	if p.img.NoNewPriv {
		batch.Call(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	if p.img.Dumpable == 0 {
		batch.Call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	}
	if err := batch.Run(ctx); err != nil {
		return fmt.Errorf("attributes (working directory %s): %w", p.img.Cwd, err)
	}
	return nil
}

// limits puts the resource limits back; a hard limit that was higher than the
// pod's is reported.
func (b *builder) limits(ctx context.Context, p *process) error {
	batch := p.f.Batch(p.f.Leader())
	calls := make([]*proc.Call, len(p.img.Rlimits))
	for i, l := range p.img.Rlimits {
		calls[i] = batch.Call(unix.SYS_PRLIMIT64, 0, uint64(l.Resource), batch.Words(l.Cur, l.Max), 0) //nolint:gosec // small numbers
	}
	if err := batch.RunAll(ctx); err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	for i, c := range calls {
		if err := c.Err(); err != nil {
			b.note(p.img.PID, "resource limit %d: %v", p.img.Rlimits[i].Resource, err)
		}
	}
	return nil
}

// signals empties the queues, in which the making of the process may have left
// something, and queues the signals that were pending.
func (b *builder) signals(ctx context.Context, p *process) error {
	for _, th := range p.f.Threads {
		if err := drainSignals(ctx, p.f, th); err != nil {
			return fmt.Errorf("pending signals: %w", err)
		}
	}
	batch := p.f.Batch(p.f.Leader())
	pid := uint64(p.img.PID) //nolint:gosec // positive
	for _, info := range p.img.Pending {
		if sig, ok := queueable(info); ok {
			batch.Call(unix.SYS_RT_SIGQUEUEINFO, pid, sig, batch.Bytes(info))
		}
	}
	if err := batch.Run(ctx); err != nil {
		return fmt.Errorf("queue signals again: %w", err)
	}
	for i, th := range p.img.Threads {
		// Only the thread itself may claim that the kernel sent it a signal.
		batch := p.f.Batch(p.f.Threads[i])
		for _, info := range th.Pending {
			if sig, ok := queueable(info); ok {
				batch.Call(unix.SYS_RT_TGSIGQUEUEINFO, pid, uint64(th.TID), sig, batch.Bytes(info)) //nolint:gosec // positive
			}
		}
		if err := batch.Run(ctx); err != nil {
			return fmt.Errorf("thread %d: queue signals again: %w", th.TID, err)
		}
	}
	return nil
}

// queueable returns the number in a siginfo_t.
func queueable(info []byte) (uint64, bool) {
	if len(info) != 128 {
		return 0, false
	}
	sig := unix.Signal(binary.LittleEndian.Uint32(info))
	return uint64(sig), sig > 0 && sig != unix.SIGKILL && sig != unix.SIGSTOP
}

func drainSignals(ctx context.Context, f *proc.Frozen, th *proc.Thread) error {
	batch := f.Batch(th)
	all, now := batch.Words(^uint64(0)), batch.Words(0, 0)
	for {
		c := batch.Call(unix.SYS_RT_SIGTIMEDWAIT, all, 0, now, 8)
		if err := batch.RunAll(ctx); err != nil {
			return err
		}
		if c.Ret <= 0 {
			return nil
		}
	}
}

// registers loads what the threads go on with.
func (b *builder) registers(p *process) error {
	for i := range p.img.Threads {
		img, th := &p.img.Threads[i], p.f.Threads[i]
		if err := p.f.SetXState(th, img.XState); err != nil {
			return fmt.Errorf("thread %d: %w", img.TID, err)
		}
		p.f.SetRegs(th, kernel.FromWords(&img.Regs))
		p.f.SetSigMask(th, img.SigMask)
	}
	return nil
}

// endBySignal ends a clone of a process the way a zombie ended.
func endBySignal(ctx context.Context, f *proc.Frozen, sig unix.Signal) error {
	batch := f.Batch(f.Leader())
	if sig != unix.SIGKILL {
		const restorer = 0x04000000
		batch.Call(unix.SYS_RT_SIGACTION, uint64(sig), batch.Words(0, restorer, 0, 0), 0, 8)
		batch.Call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, batch.Words(0, 0), 0)
	}
	if err := batch.Run(ctx); err != nil {
		return err
	}
	if err := unix.Kill(f.PID, sig); err != nil {
		return err
	}
	f.SetSigMask(f.Leader(), 0)
	return goneIsFine(f.Thaw(ctx))
}

// goneIsFine takes the end of a process, which was wanted, for success.
func goneIsFine(err error) error {
	if errors.Is(err, kernel.ErrGone) {
		return nil
	}
	return err
}
