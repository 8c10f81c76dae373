package proc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// CloneArgs are the parts of struct clone_args (clone(2)) that matter here.
type CloneArgs struct {
	Flags      uint64 // CLONE_*
	ExitSignal unix.Signal
	ChildTID   uint64 // for CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID
	ParentTID  uint64 // for CLONE_PARENT_SETTID
	TLS        uint64 // for CLONE_SETTLS
	SetTID     []int  // wanted ids, innermost pid namespace first; needs CAP_CHECKPOINT_RESTORE there
}

// words returns struct clone_args, 88 bytes, with set_tid at address setTID.
func (a *CloneArgs) words(setTID uint64) []uint64 {
	w := make([]uint64, 11)
	w[0], w[2], w[3] = a.Flags, a.ChildTID, a.ParentTID
	w[4], w[7] = uint64(a.ExitSignal), a.TLS
	if n := len(a.SetTID); n > 0 {
		w[8], w[9] = setTID, uint64(n)
	}
	return w
}

// threadFlags are what makes a thread of the same process.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND |
	unix.CLONE_THREAD | unix.CLONE_SYSVSEM

// CloneThread makes a new thread, which is stopped before its first
// instruction and appended to f.Threads. Its registers are the leader's until
// SetRegs. Flags of CloneArgs are added to those of a thread.
//
// Expected errors: *kernel.Error with EEXIST (the id is taken), EPERM (SetTID
// is not permitted).
func (f *Frozen) CloneThread(ctx context.Context, a CloneArgs) (th *Thread, err error) {
	a.Flags |= threadFlags
	err = f.t.Do(func() error {
		tid, err := f.clone(ctx, &a)
		if err != nil {
			return errors.Join(err, f.adoptStrays())
		}
		th, err = f.adopt(tid)
		if th != nil {
			f.Threads = append(f.Threads, th)
		}
		return err
	})
	if err != nil {
		return nil, errorf(f.PID, "clone thread: %w", err)
	}
	return th, nil
}

// adoptStrays takes the threads over that a clone made before it failed: they
// are attached to our own thread and stopped, and would be so for ever if
// nobody knew of them. They become threads of f like any other.
func (f *Frozen) adoptStrays() error {
	tids, err := Tasks(f.PID)
	if err != nil {
		return err
	}
	for _, tid := range tids {
		if f.Thread(tid) != nil {
			continue
		}
		st, err := ReadStatus(tid)
		if err != nil || st.TracerPid != unix.Gettid() {
			continue // gone, or not ours
		}
		th, err := f.adopt(tid)
		if th != nil {
			f.Threads = append(f.Threads, th)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// CloneProcess makes a new process, a copy of f, that is frozen before its
// first instruction and belongs to the same Tracer. It holds a copy of f's
// stub. With CLONE_PARENT it is a child of f's parent. The caller thaws or
// kills it.
//
// Expected errors: as of CloneThread.
func (f *Frozen) CloneProcess(ctx context.Context, a CloneArgs) (child *Frozen, err error) {
	err = f.t.Do(func() error {
		pid, err := f.clone(ctx, &a)
		if err != nil {
			return err
		}
		th, err := f.adopt(pid)
		if err != nil {
			_ = unix.Kill(pid, unix.SIGKILL) // nobody else knows of it
			return err
		}
		child = &Frozen{
			PID: pid, Threads: []*Thread{th}, t: f.t, sys: f.sys,
			stub: f.stub, gadget: f.gadget, avoid: f.avoid,
		}
		return nil
	})
	if err != nil {
		return nil, errorf(f.PID, "clone process: %w", err)
	}
	return child, nil
}

// clone injects clone3 into the leader and returns the new thread's id in our
// pid namespace, which the ptrace event tells; the answer of the call itself
// is of the innermost one.
func (f *Frozen) clone(ctx context.Context, a *CloneArgs) (int, error) {
	th := f.Leader()
	if err := f.ensureStub(ctx, th); err != nil {
		return 0, err
	}
	b := &Batch{f: f, th: th, addr: f.stub + stubData}
	ids := make([]byte, 0, 4*len(a.SetTID))
	for _, id := range a.SetTID {
		ids = binary.LittleEndian.AppendUint32(ids, uint32(id))
	}
	args := b.Words(a.words(b.Bytes(ids))...)
	call := b.Call(unix.SYS_CLONE3, args, 88)
	if err := f.sys.Check("inject clone3", f.PID); err != nil {
		return 0, err
	}
	if err := f.writeBatch(b.data, b.calls); err != nil {
		return 0, err
	}
	const events = unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACECLONE
	if err := f.sys.SetOptions(th.TID, events); err != nil {
		return 0, err
	}
	born := 0
	_, err := f.runStub(ctx, th, 1, true, func(int) (bool, error) {
		return false, twice(func() error {
			id, err := f.sys.EventMsg(th.TID)
			born = int(id)
			return err
		})
	})
	err = errors.Join(err, twice(func() error { return f.sys.SetOptions(th.TID, 0) }))
	if err == nil {
		err = f.readResults([]*Call{call})
	}
	if err == nil {
		err = call.Err()
	}
	if err == nil && born == 0 {
		err = fmt.Errorf("clone3 answered %d without an event", call.Ret)
	}
	if err != nil && born != 0 && a.Flags&unix.CLONE_THREAD == 0 {
		_ = unix.Kill(born, unix.SIGKILL) // nobody else knows of it
		_, _ = f.sys.WaitStop(born, time.Now().Add(waitLimit))
	}
	return born, err
}

// adopt waits for the first stop of a new thread, which is attached already.
// Its signals are all blocked, as its parent's were, until Thaw. An error with
// a thread means that it is stopped nevertheless.
func (f *Frozen) adopt(tid int) (*Thread, error) {
	lead := f.Leader()
	th := &Thread{TID: tid, Regs: lead.Regs, SigMask: lead.SigMask, running: true, foreign: true}
	th.Regs.Rax, th.Regs.Orig_rax = 0, ^uint64(0)
	err := twice(func() error {
		_, err := f.sys.WaitStop(tid, time.Now().Add(waitLimit))
		return err
	})
	if err != nil {
		return nil, err
	}
	th.running = false
	return th, twice(func() error { return f.sys.SetOptions(tid, 0) })
}

// Exec has the process execute another program and stops it at the first
// instruction. The other threads are gone then, and all addresses; f.Threads
// holds the leader alone, with fresh registers. argv[0] is included in argv.
//
// Expected errors: *kernel.Error with the errno of execve, after which the
// process is as before.
func (f *Frozen) Exec(ctx context.Context, path string, argv, env []string) error {
	err := f.t.Do(func() error { return f.exec(ctx, path, argv, env) })
	if err != nil {
		return errorf(f.PID, "exec %s: %w", path, err)
	}
	return nil
}

func (f *Frozen) exec(ctx context.Context, path string, argv, env []string) error {
	th := f.Leader()
	b := f.Batch(th)
	if b.err != nil {
		return b.err
	}
	call := b.Call(unix.SYS_EXECVE, b.String(path), b.strings(argv), b.strings(env))
	if b.err != nil {
		return b.err
	}
	if err := f.sys.Check("inject execve", f.PID); err != nil {
		return err
	}
	if err := f.writeBatch(b.data, b.calls); err != nil {
		return err
	}
	if err := f.sys.SetOptions(th.TID, unix.PTRACE_O_TRACEEXEC); err != nil {
		return err
	}
	done := false
	saved := *th
	_, err := f.runStub(ctx, th, 1, true, func(event int) (bool, error) {
		done = event == kernel.EventExec
		if done {
			th.foreign, th.dirty = false, false // the old registers are history
		}
		return done, nil
	})
	err = errors.Join(err, twice(func() error { return f.sys.SetOptions(th.TID, 0) }))
	if err != nil {
		return err
	}
	if !done {
		if err := f.readResults([]*Call{call}); err != nil {
			return err
		}
		return call.Err()
	}
	f.stub, f.gadget = 0, 0
	f.Threads = []*Thread{th}
	return f.settleExec(ctx, th, saved.SigMask)
}

// settleExec steps out of the execve call, so that the thread is at the first
// instruction of its new program.
func (f *Frozen) settleExec(ctx context.Context, th *Thread, mask uint64) error {
	if f.mem != nil {
		_ = f.mem.Close() // it belongs to the old address space
		f.mem = nil
	}
	th.running = true
	if err := f.sys.SingleStep(th.TID); err != nil {
		th.running = false
		return err
	}
	if _, err := f.wait(th, deadlineOf(ctx)); err != nil {
		return err
	}
	r, err := f.sys.GetRegs(th.TID)
	if err != nil {
		return err
	}
	th.Regs, th.SigMask, th.dirty = r, mask, true
	return nil
}

// strings stores a NULL-terminated array of strings and returns its address.
func (b *Batch) strings(list []string) uint64 {
	ptrs := make([]uint64, 0, len(list)+1)
	for _, s := range list {
		ptrs = append(ptrs, b.String(s))
	}
	return b.Words(append(ptrs, 0)...)
}

// ExitThread ends thread th, which is not the leader: its clear_child_tid is
// forgotten first, so that nothing is written to memory on its way out.
func (f *Frozen) ExitThread(ctx context.Context, th *Thread) error {
	if th.TID == f.PID {
		return errorf(f.PID, "exit thread: the leader must stay")
	}
	b := f.Batch(th)
	b.Call(unix.SYS_SET_ROBUST_LIST, 0, 24)
	b.Call(unix.SYS_SET_TID_ADDRESS, 0)
	b.Call(unix.SYS_EXIT, 0)
	err := b.Run(ctx)
	if !errors.Is(err, kernel.ErrGone) {
		return errorf(f.PID, "exit thread %d: %w", th.TID, errors.Join(err, ErrUnsupported))
	}
	f.forget(th)
	return nil
}
