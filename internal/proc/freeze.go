package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// userCS is the code segment selector of 64-bit user code.
const userCS = 0x33

// ErrUnsupported marks a process that cannot be worked on; the text says why.
var ErrUnsupported = errors.New("process not supported")

// Freeze stops every thread of process pid and returns it. On an error the
// process runs on as it did.
//
// Expected errors: kernel.ErrGone; *kernel.Error with EPERM (another user's,
// or traced already); ErrUnsupported (32-bit, its main thread ended);
// kernel.ErrTimeout (a thread hangs inside the kernel); those of ctx.
func (t *Tracer) Freeze(ctx context.Context, pid int) (*Frozen, error) {
	f := &Frozen{PID: pid, t: t, sys: t.sys}
	err := t.Do(func() error {
		if err := f.freeze(ctx); err != nil {
			f.giveUp()
			return err
		}
		return nil
	})
	if err != nil {
		return nil, errorf(pid, "freeze: %w", err)
	}
	return f, nil
}

// deadlineOf returns ctx's deadline, or a default one.
func deadlineOf(ctx context.Context) time.Time {
	if d, ok := ctx.Deadline(); ok {
		return d
	}
	return time.Now().Add(waitLimit)
}

func (f *Frozen) freeze(ctx context.Context) error {
	st, err := ReadStat(f.PID)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return kernel.ErrGone
		}
		return err
	}
	if st.State == 'Z' || st.State == 'X' {
		tids, err := Tasks(f.PID)
		if err == nil && len(tids) > 1 {
			return fmt.Errorf("main thread has ended: %w", ErrUnsupported)
		}
		return kernel.ErrGone
	}
	if err := f.stopAll(ctx); err != nil {
		return err
	}
	if f.Leader() == nil && len(f.Threads) > 0 {
		return fmt.Errorf("main thread has ended: %w", ErrUnsupported)
	}
	if f.Leader() == nil {
		return kernel.ErrGone
	}
	if err := f.checkThreads(); err != nil {
		return err
	}
	for _, th := range f.Threads {
		if th.Signal != 0 {
			if err := f.requeue(ctx, th); err != nil {
				return err
			}
		}
		// A call that hideStop made run again does so also when we are killed.
		if err := f.settle(th); err != nil {
			return err
		}
	}
	return nil
}

// requeue puts a signal back into the queue that th was about to handle. Held
// by the tracer alone it would be lost, were the tracer killed. Only the thread
// itself may claim that the kernel or another process sent it.
//
// A program that cannot be injected into keeps th.Signal.
func (f *Frozen) requeue(ctx context.Context, th *Thread) error {
	if th.Signal == unix.SIGTRAP { // as which our own stops come
		return nil
	}
	st, err := ReadStatus(th.TID)
	if err != nil {
		return err
	}
	b := f.Batch(th)
	b.Call(unix.SYS_RT_TGSIGQUEUEINFO, uint64(st.NSTgid[len(st.NSTgid)-1]), uint64(st.Inner()),
		uint64(th.Signal), b.Bytes(th.SigInfo))
	err = b.Run(ctx)
	if err != nil && f.isQueued(th) {
		err = nil // it failed behind the call
	}
	if errors.Is(err, ErrUnsupported) {
		return nil
	}
	if err == nil {
		f.DropSignal(th)
	}
	return err
}

// isQueued looks for the signal of th among the pending ones.
func (f *Frozen) isQueued(th *Thread) bool {
	var list [][]byte
	err := twice(func() (err error) {
		list, err = f.sys.PeekSigInfo(th.TID, false)
		return err
	})
	return err == nil && slices.ContainsFunc(list, func(b []byte) bool { return bytes.Equal(b, th.SigInfo) })
}

// stopAll stops threads until no new one shows. A thread that ended is looked
// at once: as a zombie it may be listed for as long as its parent is frozen.
func (f *Frozen) stopAll(ctx context.Context) error {
	ended := map[int]bool{}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.stopNew(ended, deadlineOf(ctx))
		if err != nil || n == 0 {
			return err
		}
	}
}

// stopNew stops the threads that are not stopped yet and returns how many
// there were, beside those in ended, to which it adds. They are all told to
// stop before the first one is waited for.
func (f *Frozen) stopNew(ended map[int]bool, deadline time.Time) (int, error) {
	tids, err := Tasks(f.PID)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return 0, kernel.ErrGone
		}
		return 0, err
	}
	var fresh []*Thread
	seen := 0
	for _, tid := range tids {
		if f.Thread(tid) != nil || ended[tid] {
			continue
		}
		seen++
		ok, err := f.seize(tid)
		if err != nil {
			return 0, err
		}
		ended[tid] = !ok
		if ok {
			th := &Thread{TID: tid, running: true}
			f.Threads = append(f.Threads, th)
			fresh = append(fresh, th)
		}
	}
	for _, th := range fresh {
		if err := f.sys.Interrupt(th.TID); err != nil && !errors.Is(err, kernel.ErrGone) {
			return 0, err
		}
	}
	for _, th := range fresh {
		if err := f.firstStop(th, deadline); err != nil {
			return 0, err
		}
	}
	return seen, nil
}

// seize attaches to tid; false means that the thread ended meanwhile.
func (f *Frozen) seize(tid int) (bool, error) {
	err := f.sys.Seize(tid, 0)
	if err == nil {
		return true, nil
	}
	if errors.Is(err, kernel.ErrGone) {
		return false, nil
	}
	st, serr := ReadStat(tid)
	if serr != nil || st.State == 'Z' || st.State == 'X' {
		return false, nil //nolint:nilerr // it has ended
	}
	return false, err
}

// firstStop waits for the stop that Interrupt asked for and notes what kind of
// stop it is. A thread that ended instead is dropped.
func (f *Frozen) firstStop(th *Thread, deadline time.Time) error {
	ws, err := f.sys.WaitStop(th.TID, deadline)
	if errors.Is(err, kernel.ErrGone) {
		f.forget(th)
		return nil
	}
	if err != nil {
		return err
	}
	th.running = false
	if event := int(ws) >> 16; event == kernel.EventStop {
		if sig := ws.StopSignal(); sig != unix.SIGTRAP {
			f.GroupStop = sig
		}
	} else if event == 0 {
		th.Signal, th.atSignal = ws.StopSignal(), true
	}
	return f.readThread(th)
}

// readThread reads what the thread goes on with. It is done at once, since
// every way out has to hide the stop from the program.
func (f *Frozen) readThread(th *Thread) error {
	for _, read := range []func() error{
		func() (err error) { th.Regs, err = f.sys.GetRegs(th.TID); return err },
		func() (err error) { th.SigMask, err = f.sys.GetSigMask(th.TID); return err },
		func() (err error) {
			if th.Signal != 0 {
				th.SigInfo, err = f.sys.GetSigInfo(th.TID)
			}
			return err
		},
		func() error { return f.hideStop(th) },
	} {
		if err := twice(read); err != nil {
			return err
		}
	}
	return nil
}

func (f *Frozen) forget(th *Thread) {
	for i, x := range f.Threads {
		if x == th {
			f.Threads = append(f.Threads[:i], f.Threads[i+1:]...)
			return
		}
	}
}

// checkThreads puts the leader first and refuses what cannot be worked on.
func (f *Frozen) checkThreads() error {
	for i, th := range f.Threads {
		if th.Regs.Cs != userCS {
			return fmt.Errorf("32-bit code: %w", ErrUnsupported)
		}
		if th.TID == f.PID {
			f.Threads[0], f.Threads[i] = th, f.Threads[0]
		}
	}
	return nil
}

// giveUp lets go of a process that could not be frozen. Threads that never
// stopped cannot be detached from; the tracer's OS thread is replaced then,
// which releases them.
func (f *Frozen) giveUp() {
	stuck := false
	for _, th := range slices.Clone(f.Threads) {
		if th.running {
			_ = f.sys.Interrupt(th.TID) // it may not have been asked yet
			if err := f.firstStop(th, time.Now().Add(100*time.Millisecond)); err != nil && th.running {
				stuck = true
				continue
			}
			if f.Thread(th.TID) == nil {
				continue // it ended
			}
		}
		if err := f.release(th); err != nil && !errors.Is(err, kernel.ErrGone) {
			stuck = true
		}
	}
	f.over = true
	if stuck {
		f.t.renew()
	}
}
