package proc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// Layout of the code that forks, within the stub's page: the loop of the stub
// at forkEntry, then clone3, and for the child, should it ever run, exit_group.
const (
	forkEntry = 0x80
	forkChild = forkEntry + 0x51 // where the child begins, with rax 0
	forkEnd   = forkEntry + 0x5d // rip after the int3 that ends the parent's turn
)

// forkCode works off records as stubCode does, and then, instead of stopping,
// carries out clone3 with its arguments at rbp, and stops. A child that comes out of the
// call ends itself: it is stopped before its first instruction, and runs only
// if its tracer is gone.
func forkCode() []byte {
	loop := stubCode()
	return append(loop[:len(loop)-1],
		0xb8, 0xb3, 0x01, 0x00, 0x00, // 42 mov eax, 435 (clone3)
		0x48, 0x89, 0xef, // 47 mov rdi, rbp
		0xbe, 0x58, 0x00, 0x00, 0x00, // 4a mov esi, 88
		0x0f, 0x05, // 4f syscall
		0x48, 0x85, 0xc0, // 51 test rax, rax
		0x75, 0x06, // 54 jnz end
		0xb0, 0xe7, // 56 mov al, 231 (exit_group; rax was 0)
		0x31, 0xff, // 58 xor edi, edi
		0x0f, 0x05, // 5a syscall, which does not return
		0xcc, // 5c end: int3
	)
}

// exitOnKill is PTRACE_O_EXITKILL: the tracee dies with its tracer.
const exitOnKill = unix.PTRACE_O_EXITKILL

// forkEvents report the new process to the tracer, whatever its exit signal.
const forkEvents = unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACECLONE

// Fork makes a copy-on-write copy of the process: one thread that never runs
// the program, stopped, traced by the same Tracer. It is there to be read
// (ReadMem and the like, from any goroutine) while f goes on; the caller kills
// it. It has memory as f has now, except what a fork does not copy: mappings
// with MADV_DONTFORK are missing, those with MADV_WIPEONFORK are empty, shared
// ones are shared.
//
// f does not see it: the copy is made by a helper which f reaps before it runs
// again, so that it is no child of f but of the first reaper above; it sends
// nobody a signal, has no descriptors open and a session of its own. It dies
// with the tracer.
//
// Precondition: no ancestor of f that is worked on too is a reaper of orphans.
//
// Expected errors: ErrReaper; *kernel.Error with EAGAIN or ENOMEM (limits),
// EPERM; ErrUnsupported. f is as before then. Source: clone(2), close_range(2),
// ptrace(2), prctl(2) PR_SET_CHILD_SUBREAPER.
func (f *Frozen) Fork(ctx context.Context) (child *Frozen, err error) {
	err = f.t.Do(func() error {
		child, err = f.fork(ctx)
		return err
	})
	if err != nil {
		return nil, errorf(f.PID, "fork: %w", err)
	}
	return child, nil
}

// ErrReaper says that orphans come to the process itself: it is pid 1 of its
// pid namespace, or asked for them with PR_SET_CHILD_SUBREAPER.
var ErrReaper = errors.New("the program reaps orphans, and would see a fork")

func (f *Frozen) fork(ctx context.Context) (child *Frozen, err error) {
	if err := f.ensureStub(ctx, f.Leader()); err != nil {
		return nil, err
	}
	b := &Batch{f: f, th: f.Leader(), addr: f.stub + stubData}
	reaper := b.Alloc(8)
	pid := b.Call(unix.SYS_GETPID)
	b.Call(unix.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, reaper)
	// The helper shares memory and descriptors with f; it copies nothing.
	helper, err := f.forkFrom(ctx, b, forkEvents, unix.CLONE_VM|unix.CLONE_FILES)
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, helper.Kill(), twice(func() error { return f.reapHelpers(ctx) }))
		if err != nil && child != nil {
			err = errors.Join(err, child.Kill())
			child = nil
		}
	}()
	raw, err := b.Read(reaper, 4)
	if err != nil {
		return nil, err
	}
	if pid.Ret == 1 || binary.LittleEndian.Uint32(raw) != 0 {
		return nil, ErrReaper
	}
	// An empty table of descriptors and a session of its own, which the child
	// inherits.
	b = &Batch{f: helper, th: helper.Leader(), addr: f.stub + stubData}
	b.Call(unix.SYS_CLOSE_RANGE, 0, uint64(^uint32(0)), unix.CLOSE_RANGE_UNSHARE)
	b.Call(unix.SYS_SETSID)
	return helper.forkFrom(ctx, b, forkEvents|exitOnKill, unix.CLONE_FILES)
}

// forkFrom has the leader of f carry out the calls of b, and then clone3 with
// flags and no exit signal. options are those of f meanwhile; the new process
// inherits them.
func (f *Frozen) forkFrom(ctx context.Context, b *Batch, options int, flags uint64) (child *Frozen, err error) {
	args, calls := b.Words((&CloneArgs{Flags: flags}).words(0)...), b.calls
	all := calls
	if err := f.checkCalls(&all); err != nil {
		return nil, err
	}
	if err := f.sys.Check("inject clone3", f.PID); err != nil {
		return nil, err
	}
	if err := f.writeBatch(b.data, calls); err != nil {
		return nil, err
	}
	if err := f.sys.SetOptions(b.th.TID, options); err != nil {
		return nil, err
	}
	born, err := f.runFork(ctx, b.th, args, len(calls))
	err = errors.Join(err, twice(func() error { return f.sys.SetOptions(b.th.TID, options&exitOnKill) }))
	if err == nil {
		err = f.readResults(calls)
	}
	for i := range calls {
		if err == nil {
			err = calls[i].Err()
		}
	}
	if born == 0 {
		return nil, errors.Join(err, f.endStrays(ctx, flags))
	}
	child = f.newborn(born)
	if flags&unix.CLONE_VM != 0 {
		f.helpers = append(f.helpers, born)
	}
	if err == nil {
		err = twice(func() error {
			_, err := f.wait(child.Leader(), deadlineOf(ctx))
			return err
		})
	}
	if err == nil && options&exitOnKill != 0 {
		err = twice(func() error { return f.sys.SetOptions(born, exitOnKill) })
	}
	if err != nil {
		return nil, errors.Join(err, child.Kill(), twice(func() error { return f.reapHelpers(ctx) }))
	}
	return child, nil
}

// newborn describes a process that came out of forkCode in f's leader: it is
// attached, and stopped before the instruction that tests rax.
func (f *Frozen) newborn(pid int) *Frozen {
	th := &Thread{
		TID: pid, Regs: callRegs(f.Leader(), f.stub+forkChild), SigMask: ^uint64(sigTrapBit),
		running: true, rseqDone: true, // registrations are not inherited where memory is shared
	}
	th.Regs.Rax = 0
	return &Frozen{PID: pid, Threads: []*Thread{th}, t: f.t, sys: f.sys, stub: f.stub, gadget: f.gadget}
}

// runFork has th carry out n records and clone3 with arguments at args, and
// returns the new process as our pid namespace has it, 0 when none is known.
// Afterwards th has its own registers and mask again.
func (f *Frozen) runFork(ctx context.Context, th *Thread, args uint64, n int) (born int, err error) {
	if err := f.abortRseq(th); err != nil {
		return 0, err
	}
	r := callRegs(th, f.stub+forkEntry)
	r.R12, r.R13, r.R14 = f.stub+stubCalls, uint64(n), 0
	r.Rbp, r.Rsp = args, f.stub+stubCalls
	defer func() { err = errors.Join(err, f.settle(th)) }()
	if err := f.load(th, &r); err != nil {
		return 0, err
	}
	now, err := f.runTo(ctx, th, f.stub+forkEnd, func(int) (bool, error) {
		return false, twice(func() error {
			id, err := f.sys.EventMsg(th.TID)
			born = int(id)
			return err
		})
	})
	if err != nil {
		return born, err
	}
	if errno := Errno(int64(now.Rax)); errno != 0 {
		return 0, &kernel.Error{Op: "inject clone3", PID: f.PID, Errno: errno}
	}
	if born == 0 {
		return 0, fmt.Errorf("clone3 answered %d without an event", now.Rax)
	}
	return born, nil
}

// endStrays ends a process that was forked without our being told, because the
// fork was cut off by a failure: a child of f that our own thread traces.
func (f *Frozen) endStrays(ctx context.Context, flags uint64) error {
	kids, err := Children(f.PID)
	if err != nil {
		return err
	}
	for _, pid := range kids {
		st, err := ReadStatus(pid)
		if err != nil || st.TracerPid != unix.Gettid() {
			continue // not ours, or gone
		}
		if flags&unix.CLONE_VM != 0 {
			f.helpers = append(f.helpers, pid)
		}
		if err := f.newborn(pid).Kill(); err != nil {
			return err
		}
	}
	return twice(func() error { return f.reapHelpers(ctx) })
}

// reapHelpers has f take the exit status of helpers that ended, which nobody
// else can.
func (f *Frozen) reapHelpers(ctx context.Context) error {
	for len(f.helpers) > 0 {
		st, err := ReadStatus(f.helpers[0])
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			f.helpers = f.helpers[1:] // an attempt that failed had done it
			continue
		}
		if err != nil {
			return err
		}
		ret, err := f.step(ctx, f.Leader(), unix.SYS_WAIT4, uint64(st.Inner()), 0, unix.WALL|unix.WNOHANG, 0)
		if err != nil {
			return err
		}
		if errno := Errno(ret); errno != 0 {
			return &kernel.Error{Op: "inject wait4", PID: f.PID, Errno: errno}
		}
		if ret == 0 {
			return fmt.Errorf("helper %d has not ended: %w", f.helpers[0], kernel.ErrTimeout)
		}
		f.helpers = f.helpers[1:]
	}
	return nil
}

// Discard ends a process that Fork made and waits until it is gone, so that
// its memory is free. Unlike Kill it does not occupy the tracer's thread
// meanwhile; call it once nobody reads the process any more. Calling it again
// is harmless.
//
// Expected errors: kernel.ErrTimeout.
func (f *Frozen) Discard() error {
	if f.over {
		return nil
	}
	f.over = true
	if f.mem != nil {
		_ = f.mem.Close() // only read
	}
	if err := unix.Kill(f.PID, unix.SIGKILL); err != nil && err != unix.ESRCH { //nolint:errorlint // an errno
		return errorf(f.PID, "discard: %w", err)
	}
	deadline := time.Now().Add(waitLimit)
	for {
		err := twice(func() error {
			_, err := f.sys.WaitStop(f.PID, deadline)
			return err
		})
		switch {
		case errors.Is(err, kernel.ErrGone), errors.Is(err, unix.ECHILD):
			return nil
		case err != nil:
			return errorf(f.PID, "discard: %w", err)
		}
	}
}
