package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// Thread is a stopped thread of a Frozen process.
type Thread struct {
	TID int // in our pid namespace

	// Regs and SigMask are what the thread goes on with when it is thawed: at
	// first what it was stopped with. Change them with SetRegs and SetSigMask.
	Regs    kernel.Regs
	SigMask uint64

	// Signal is not 0 when the thread was stopped on its way to handle that
	// signal, which is no longer queued then; SigInfo are its 128 bytes. Thaw
	// delivers it. DropSignal forgets it.
	Signal  unix.Signal
	SigInfo []byte

	running  bool // not known to be stopped: wait before anything else
	atSignal bool // the stop is a signal-delivery-stop, from which detaching delivers
	sigstop  bool // a SIGSTOP that arrived during an injection is owed
	inCall   bool // the stop is inside fork or clone, whose answer the kernel still has to give
	foreign  bool // the kernel has registers or a mask of ours: restore before anything else
	dirty    bool // Regs or SigMask differ from what the kernel has
	rseqDone bool // looked whether it is inside a restartable sequence
}

// Frozen is a process whose threads are all stopped.
type Frozen struct {
	PID     int // in our pid namespace
	Threads []*Thread

	// GroupStop is the signal (SIGSTOP, SIGTSTP, ...) that had stopped the
	// process before it was frozen, or 0. It stays stopped when thawed.
	GroupStop unix.Signal

	// LeaveStopped makes Thaw stop the process by SIGSTOP before it lets go of
	// any thread: it executes no instruction before somebody sends SIGCONT.
	LeaveStopped bool

	t      *Tracer
	sys    *kernel.Sys
	stub   uint64 // address of the stub, 0 when not mapped
	gadget uint64 // address of a syscall instruction, 0 when not searched
	avoid  []kernel.Range
	// helpers are children that Fork made and the process must reap.
	helpers []int
	mem     *os.File // /proc/PID/mem, opened on demand
	over    bool     // thawed or gone
}

// Tracer returns the tracer that f belongs to.
func (f *Frozen) Tracer() *Tracer { return f.t }

// Leader returns the thread whose id is the process id.
func (f *Frozen) Leader() *Thread { return f.Thread(f.PID) }

// Thread returns the thread tid, or nil.
func (f *Frozen) Thread(tid int) *Thread {
	for _, th := range f.Threads {
		if th.TID == tid {
			return th
		}
	}
	return nil
}

// SetRegs makes th go on with r when it is thawed. An image's registers are
// taken as they are: orig_rax -1 keeps the kernel from restarting a call.
func (f *Frozen) SetRegs(th *Thread, r kernel.Regs) { th.Regs, th.dirty = r, true }

// SetSigMask makes th go on with mask when it is thawed.
func (f *Frozen) SetSigMask(th *Thread, mask uint64) { th.SigMask, th.dirty = mask, true }

// DropSignal forgets the signal that th was about to handle.
func (f *Frozen) DropSignal(th *Thread) { th.Signal, th.SigInfo = 0, nil }

// XState reads the extended registers of th.
func (f *Frozen) XState(th *Thread) (b []byte, err error) {
	err = f.t.Do(func() error {
		b, err = f.sys.GetXState(th.TID)
		return err
	})
	return b, err
}

// SetXState writes the extended registers of th, at once.
func (f *Frozen) SetXState(th *Thread, b []byte) error {
	return f.t.Do(func() error { return f.sys.SetXState(th.TID, b) })
}

// Rseq reads the restartable-sequences registration of th.
func (f *Frozen) Rseq(th *Thread) (r kernel.Rseq, err error) {
	err = f.t.Do(func() error {
		r, err = f.sys.GetRseq(th.TID)
		return err
	})
	return r, err
}

// Pending reads the queued signals of th, or with shared those of the process,
// 128 bytes of siginfo_t each. The signal in th.Signal is not among them.
func (f *Frozen) Pending(th *Thread, shared bool) (list [][]byte, err error) {
	err = f.t.Do(func() error {
		list, err = f.sys.PeekSigInfo(th.TID, shared)
		return err
	})
	return list, err
}

// ReadMem fills buf from addr. Safe from any goroutine.
func (f *Frozen) ReadMem(addr uint64, buf []byte) error { return f.sys.ReadMem(f.PID, addr, buf) }

// WriteMem stores buf at addr, which must be writable for the process. Safe
// from any goroutine.
func (f *Frozen) WriteMem(addr uint64, buf []byte) error { return f.sys.WriteMem(f.PID, addr, buf) }

// ReadMemV fills the buffers from the ranges; see kernel.Sys.ReadMemV.
func (f *Frozen) ReadMemV(local [][]byte, remote []kernel.Range) error {
	return f.sys.ReadMemV(f.PID, local, remote)
}

// WriteMemV is the inverse of ReadMemV.
func (f *Frozen) WriteMemV(local [][]byte, remote []kernel.Range) error {
	return f.sys.WriteMemV(f.PID, local, remote)
}

// WriteForce stores buf at addr also where the process may not write.
func (f *Frozen) WriteForce(addr uint64, buf []byte) error {
	if err := f.OpenMem(); err != nil {
		return err
	}
	return f.sys.WriteForce(f.mem, f.PID, addr, buf)
}

// ReadForce fills buf from addr also where the process may not read.
func (f *Frozen) ReadForce(addr uint64, buf []byte) error {
	if err := f.OpenMem(); err != nil {
		return err
	}
	return f.sys.ReadForce(f.mem, f.PID, addr, buf)
}

// OpenMem opens /proc/PID/mem ahead of ReadForce and WriteForce, which may then
// be called from several goroutines.
func (f *Frozen) OpenMem() error {
	if f.mem != nil {
		return nil
	}
	m, err := os.OpenFile("/proc/"+strconv.Itoa(f.PID)+"/mem", os.O_RDWR, 0)
	if err != nil {
		return errorf(f.PID, "%w", err)
	}
	f.mem = m
	return nil
}

// Maps reads the mappings of the process without the stub.
func (f *Frozen) Maps() ([]Map, error) {
	maps, err := Maps(f.PID)
	return f.withoutStub(maps), err
}

// SMaps is Maps with VmFlags.
func (f *Frozen) SMaps() ([]Map, error) {
	maps, err := SMaps(f.PID)
	return f.withoutStub(maps), err
}

func (f *Frozen) withoutStub(maps []Map) []Map {
	if f.stub == 0 {
		return maps
	}
	out := maps[:0]
	for _, m := range maps {
		if m.Start < f.stub+stubSize && m.End > f.stub {
			continue
		}
		out = append(out, m)
	}
	return out
}

// Settle does ahead of Thaw what need not be done when other processes run
// again already: it unmaps the stub and gives the threads their registers.
// Thaw tries again what failed; nothing may be injected in between.
//
// Expected errors: as of Thaw.
func (f *Frozen) Settle(ctx context.Context) error {
	return f.t.Do(func() error {
		if f.over {
			return nil
		}
		err := errors.Join(f.reapHelpers(ctx), f.dropStub(ctx))
		for _, th := range f.Threads {
			err = errors.Join(err, f.settle(th))
		}
		return err
	})
}

// Thaw unmaps the stub, gives every thread its registers, mask and signal, and
// detaches. It does as much as it can: a thread that was killed meanwhile is
// reaped, other errors are returned after all threads were let go. Thawing
// twice is harmless.
//
// Expected errors: ErrGone when the whole process was killed meanwhile.
func (f *Frozen) Thaw(ctx context.Context) error {
	return f.t.Do(func() error {
		if f.over {
			return nil
		}
		f.over = true
		err := twice(func() error { return f.reapHelpers(ctx) })
		err = errors.Join(err, f.dropStub(ctx))
		if f.mem != nil {
			_ = f.mem.Close() // opened for writing through the page tables: nothing is buffered
		}
		if f.LeaveStopped { // pending until the threads are detached (ptrace(2), signal(7))
			if kerr := unix.Kill(f.PID, unix.SIGSTOP); kerr != nil && kerr != unix.ESRCH {
				err = errors.Join(err, errorf(f.PID, "leave stopped: %w", kerr))
			}
		}
		gone := 0
		for _, th := range f.Threads {
			e := f.release(th)
			if errors.Is(e, kernel.ErrGone) {
				gone++
				continue
			}
			err = errors.Join(err, e)
		}
		if gone == len(f.Threads) {
			return errorf(f.PID, "thaw: %w", kernel.ErrGone)
		}
		return err
	})
}

// Kill ends the process with SIGKILL and reaps its threads as far as they are
// ours to wait for.
func (f *Frozen) Kill() error {
	return f.t.Do(func() error {
		f.over = true
		if f.mem != nil {
			_ = f.mem.Close()
		}
		if err := unix.Kill(f.PID, unix.SIGKILL); err != nil && err != unix.ESRCH {
			return errorf(f.PID, "kill: %w", err)
		}
		deadline := time.Now().Add(waitLimit)
		for i := len(f.Threads) - 1; i >= 0; i-- {
			f.reap(f.Threads[i], deadline)
		}
		return nil
	})
}

// reap waits for the end of a killed thread; other stops are passed over.
func (f *Frozen) reap(th *Thread, deadline time.Time) {
	for {
		err := twice(func() error {
			_, err := f.sys.WaitStop(th.TID, deadline)
			return err
		})
		if err != nil {
			return // gone, reaped by somebody else, or late: the kernel releases it with our thread
		}
	}
}

// release puts th right and detaches from it. Each step is tried again once,
// so that a passing failure does not leave the thread attached.
func (f *Frozen) release(th *Thread) error {
	err := f.settle(th)
	if errors.Is(err, kernel.ErrGone) {
		f.reap(th, time.Now().Add(waitLimit))
		return err
	}
	deliver := th.Signal
	switch {
	case th.Signal != 0 && th.atSignal:
		// The stop may be a SIGTRAP of ours: give the signal its own siginfo.
		err = errors.Join(err, twice(func() error { return f.sys.SetSigInfo(th.TID, th.SigInfo) }))
	case th.Signal != 0:
		// An injection was cut off at a stop of another kind. The signal is not
		// lost, but comes from us.
		deliver = 0
		err = errors.Join(err, unix.Tgkill(f.PID, th.TID, th.Signal))
	}
	e := twice(func() error { return f.sys.Detach(th.TID, deliver) })
	if errors.Is(e, kernel.ErrGone) {
		f.reap(th, time.Now().Add(waitLimit))
		return e
	}
	if th.sigstop {
		if kerr := unix.Kill(f.PID, unix.SIGSTOP); kerr != nil && kerr != unix.ESRCH {
			err = errors.Join(err, errorf(f.PID, "stop again: %w", kerr))
		}
	}
	return errors.Join(err, e)
}

// settle makes the kernel's registers and mask of th equal to its fields.
func (f *Frozen) settle(th *Thread) error {
	if th.running {
		if err := f.halt(th); err != nil {
			return fmt.Errorf("proc: thread %d: stop again: %w", th.TID, err)
		}
	}
	if th.inCall {
		if err := f.leaveCall(th); err != nil {
			return fmt.Errorf("proc: thread %d: leave the call: %w", th.TID, err)
		}
	}
	if !th.foreign && !th.dirty {
		return nil
	}
	e1 := twice(func() error { return f.sys.SetRegs(th.TID, &th.Regs) })
	e2 := twice(func() error { return f.sys.SetSigMask(th.TID, th.SigMask) })
	if err := errors.Join(e1, e2); err != nil {
		return fmt.Errorf("proc: thread %d: restore: %w", th.TID, err)
	}
	th.foreign, th.dirty = false, false
	return nil
}

// twice tries again what failed, unless the thread is gone.
func twice(fn func() error) error {
	err := fn()
	if err != nil && !errors.Is(err, kernel.ErrGone) {
		err = fn()
	}
	return err
}
