package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// Layout of the stub: code, data of the caller, call records. It is mapped
// lazily by the kernel, so unused parts cost nothing.
const (
	stubSize    = 1 << 20
	stubData    = 4096 // offset of the data area
	stubCalls   = 768 << 10
	recordSize  = 64 // number, six arguments, result: 8 bytes each
	maxRecords  = (stubSize - stubCalls) / recordSize
	stubEnd     = 0x43 // offset of rip after the int3
	stubSyscall = 0x29 // offset of rip after a system call
	sigTrapBit  = 1 << (uint(unix.SIGTRAP) - 1)
)

// stubCode works off r13 records at r12 and stops with int3. With r14 = 1 it
// stops after the first call that failed. It touches no memory but the
// records, and no stack.
func stubCode() []byte {
	return []byte{
		0x4d, 0x85, 0xed, // 00 loop: test r13, r13
		0x74, 0x3d, // 03 jz end
		0x49, 0x8b, 0x04, 0x24, // 05 mov rax, [r12]
		0x49, 0x8b, 0x7c, 0x24, 0x08, // 09 mov rdi, [r12+8]
		0x49, 0x8b, 0x74, 0x24, 0x10, // 0e mov rsi, [r12+16]
		0x49, 0x8b, 0x54, 0x24, 0x18, // 13 mov rdx, [r12+24]
		0x4d, 0x8b, 0x54, 0x24, 0x20, // 18 mov r10, [r12+32]
		0x4d, 0x8b, 0x44, 0x24, 0x28, // 1d mov r8, [r12+40]
		0x4d, 0x8b, 0x4c, 0x24, 0x30, // 22 mov r9, [r12+48]
		0x0f, 0x05, // 27 syscall
		0x49, 0x89, 0x44, 0x24, 0x38, // 29 mov [r12+56], rax
		0x49, 0x83, 0xc4, 0x40, // 2e add r12, 64
		0x49, 0xff, 0xcd, // 32 dec r13
		0x4d, 0x85, 0xf6, // 35 test r14, r14
		0x74, 0xc6, // 38 jz loop
		0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, // 3a cmp rax, -4095
		0x72, 0xbe, // 40 jb loop
		0xcc, // 42 end: int3
	}
}

// Avoid keeps the stub out of ranges, where something will be mapped before
// the process is thawed. Call it before the first injection.
func (f *Frozen) Avoid(ranges []kernel.Range) { f.avoid = append(f.avoid, ranges...) }

// Prepare maps the stub ahead of the first batch.
//
// Expected errors: as of Batch.Run.
func (f *Frozen) Prepare(ctx context.Context) error {
	return f.t.Do(func() error { return f.ensureStub(ctx, f.Leader()) })
}

// ensureStub maps the stub and writes its code.
func (f *Frozen) ensureStub(ctx context.Context, th *Thread) error {
	if f.stub != 0 {
		return nil
	}
	st, err := ReadStatus(f.PID)
	if err != nil {
		return err
	}
	if st.SigIgn&sigTrapBit != 0 {
		return errorf(f.PID, "inject: SIGTRAP is ignored: %w", ErrUnsupported)
	}
	if st.Seccomp != 0 {
		return errorf(f.PID, "inject: the program has a seccomp filter: %w", ErrUnsupported)
	}
	maps, err := Maps(f.PID)
	if err != nil {
		return err
	}
	if err := f.findGadget(maps); err != nil {
		return err
	}
	addr, err := hole(maps, f.avoid, stubSize)
	if err != nil {
		return errorf(f.PID, "inject: %w", err)
	}
	ret, err := f.step(ctx, th, unix.SYS_MMAP, addr, stubSize,
		unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE|unix.MAP_NORESERVE, ^uint64(0), 0)
	if err != nil {
		return errors.Join(err, f.dropHalfMade(ctx, addr))
	}
	if errno := Errno(ret); errno != 0 {
		return &kernel.Error{Op: "inject mmap", PID: f.PID, Errno: errno}
	}
	f.stub = uint64(ret)
	code := make([]byte, forkEntry, forkEntry+16)
	copy(code, stubCode())
	if err := f.WriteMem(f.stub, append(code, forkCode()...)); err != nil {
		return errors.Join(err, f.dropStub(ctx))
	}
	return nil
}

// dropHalfMade unmaps the stub after a failure that leaves open whether it was
// mapped at addr, which was a hole before.
func (f *Frozen) dropHalfMade(ctx context.Context, addr uint64) error {
	maps, err := Maps(f.PID)
	if err != nil {
		return nil //nolint:nilerr // it is gone, or the failure at hand says it
	}
	for _, m := range maps {
		if m.Start <= addr && addr < m.End {
			f.stub = addr
			return f.dropStub(ctx)
		}
	}
	return nil
}

// dropStub unmaps the stub. A failure leaves a mapping that nobody uses.
func (f *Frozen) dropStub(ctx context.Context) error {
	if f.stub == 0 || len(f.Threads) == 0 {
		return nil
	}
	var ret int64
	err := twice(func() (err error) {
		ret, err = f.step(ctx, f.Threads[0], unix.SYS_MUNMAP, f.stub, stubSize)
		return err
	})
	if errors.Is(err, kernel.ErrGone) {
		return nil // the mapping went with the process
	}
	if errno := Errno(ret); err == nil && errno != 0 {
		err = &kernel.Error{Op: "inject munmap", PID: f.PID, Errno: errno}
	}
	if err == nil {
		f.stub = 0
	}
	return err
}

// hole returns the middle of the largest gap between the mappings and the
// ranges to avoid: far from everything that grows.
func hole(maps []Map, avoid []kernel.Range, size uint64) (uint64, error) {
	used := make([]kernel.Range, 0, len(maps)+len(avoid))
	for _, m := range maps {
		used = append(used, m.Range)
	}
	used = append(used, avoid...)
	sortRanges(used)
	const low, high = 1 << 20, 1<<47 - 1<<21
	var best kernel.Range
	at := uint64(low)
	for _, r := range append(used, kernel.Range{Start: high, End: high}) {
		if end := min(r.Start, high); end > at && end-at > best.Len() {
			best = kernel.Range{Start: at, End: end}
		}
		at = max(at, r.End)
	}
	if best.Len() < 4*size {
		return 0, fmt.Errorf("no hole of %d bytes in the address space", size)
	}
	return (best.Start + best.Len()/2) &^ (1<<21 - 1), nil
}

// findGadget looks for a `syscall` instruction, in the vdso first.
func (f *Frozen) findGadget(maps []Map) error {
	if f.gadget != 0 {
		return nil
	}
	for _, vdso := range []bool{true, false} {
		for _, m := range maps {
			if (m.Path == "[vdso]") != vdso || m.Prot&unix.PROT_EXEC == 0 || m.Path == "[vsyscall]" {
				continue
			}
			buf := make([]byte, min(m.Len(), 4<<20))
			if err := f.ReadMem(m.Start, buf); err != nil {
				continue // a part may be unreadable: try the next mapping
			}
			if i := bytes.Index(buf, []byte{0x0f, 0x05}); i >= 0 {
				f.gadget = m.Start + uint64(i)
				return nil
			}
		}
	}
	return errorf(f.PID, "inject: no syscall instruction found: %w", ErrUnsupported)
}

// callRegs prepares the registers of th for a system call of ours.
func callRegs(th *Thread, rip uint64) kernel.Regs {
	r := th.Regs
	r.Orig_rax = ^uint64(0) // no restart of an interrupted call
	r.Rip = rip
	r.Eflags &^= 1<<8 | 1<<10 // no single steps, no backward strings
	return r
}

// step carries out one system call by stepping over the gadget.
func (f *Frozen) step(ctx context.Context, th *Thread, nr uint64, args ...uint64) (ret int64, err error) {
	if err := f.sys.Check("inject "+syscallName(nr), f.PID); err != nil {
		return 0, err
	}
	if err := f.abortRseq(th); err != nil {
		return 0, err
	}
	r := callRegs(th, f.gadget)
	r.Rax = nr
	for i, p := range []*uint64{&r.Rdi, &r.Rsi, &r.Rdx, &r.R10, &r.R8, &r.R9} {
		if i < len(args) {
			*p = args[i]
		}
	}
	defer func() { err = errors.Join(err, f.settle(th)) }()
	if err := f.load(th, &r); err != nil {
		return 0, err
	}
	return f.stepOver(th, deadlineOf(ctx))
}

// maxStops bounds the stops of other kinds (SIGSTOP, a group stop, a trap that
// was pending) that may come before the one that a single step leads to.
const maxStops = 100

// stepOver steps th over the gadget and returns what the call answered.
func (f *Frozen) stepOver(th *Thread, deadline time.Time) (int64, error) {
	for range maxStops {
		th.running = true
		if err := f.sys.SingleStep(th.TID); err != nil {
			th.running = false
			return 0, err
		}
		ws, err := f.wait(th, deadline)
		if err != nil {
			return 0, err
		}
		now, err := f.sys.GetRegs(th.TID)
		if err != nil {
			return 0, err
		}
		switch now.Rip {
		case f.gadget: // another stop came first
			if sig := ws.StopSignal(); int(ws)>>16 == 0 && sig != unix.SIGTRAP && sig != unix.SIGSTOP {
				return 0, errorf(f.PID, "inject: thread %d: signal %v at %#x", th.TID, sig, now.Rip)
			}
		case f.gadget + 2:
			return int64(now.Rax), nil
		default:
			return 0, errorf(f.PID, "inject: thread %d went astray to %#x", th.TID, now.Rip)
		}
	}
	return 0, errorf(f.PID, "inject: thread %d does not leave %#x: %w", th.TID, f.gadget, kernel.ErrTimeout)
}

// load gives th registers of ours and blocks its signals. On an error the
// caller settles.
func (f *Frozen) load(th *Thread, r *kernel.Regs) error {
	th.foreign = true
	if err := f.sys.SetSigMask(th.TID, ^uint64(sigTrapBit)); err != nil {
		return err
	}
	return f.sys.SetRegs(th.TID, r)
}

// wait waits for th's next stop. Events are returned; a SIGSTOP that came in
// between is noted, to be sent again when th is released.
func (f *Frozen) wait(th *Thread, deadline time.Time) (unix.WaitStatus, error) {
	ws, err := f.sys.WaitStop(th.TID, deadline)
	if err != nil {
		if errors.Is(err, kernel.ErrGone) {
			th.running = false
		}
		return ws, err
	}
	event := int(ws) >> 16
	th.running, th.atSignal = false, event == 0
	th.inCall = event == unix.PTRACE_EVENT_FORK || event == unix.PTRACE_EVENT_VFORK || event == unix.PTRACE_EVENT_CLONE
	if th.atSignal && ws.StopSignal() == unix.SIGSTOP {
		th.sigstop = true
	}
	return ws, nil
}

// halt stops a thread that an injection left running, for the undo path.
func (f *Frozen) halt(th *Thread) error {
	deadline := time.Now().Add(waitLimit)
	if _, err := f.wait(th, time.Now().Add(50*time.Millisecond)); err == nil || errors.Is(err, kernel.ErrGone) {
		return err
	}
	if err := twice(func() error { return f.sys.Interrupt(th.TID) }); err != nil {
		return err
	}
	return twice(func() error {
		_, err := f.wait(th, deadline)
		return err
	})
}

// leaveCall moves a thread that stopped at the event of a fork or clone behind
// that call, for the undo path: registers that are put back earlier would get
// the call's answer in rax.
func (f *Frozen) leaveCall(th *Thread) error {
	deadline := time.Now().Add(waitLimit)
	for range maxStops {
		th.running = true
		if err := twice(func() error { return f.sys.SingleStep(th.TID) }); err != nil {
			th.running = false
			return err
		}
		err := twice(func() error {
			_, err := f.wait(th, deadline)
			return err
		})
		if err != nil || !th.inCall {
			return err
		}
	}
	return kernel.ErrTimeout
}

// abortRseq moves a thread out of a restartable sequence before it runs code
// of ours, to where the kernel itself would send it when it is preempted.
func (f *Frozen) abortRseq(th *Thread) error {
	if th.foreign || th.rseqDone {
		return nil
	}
	rs, err := f.sys.GetRseq(th.TID)
	if err != nil || rs.Addr == 0 {
		th.rseqDone = err == nil
		return err
	}
	abort, err := f.RseqAbort(rs.Addr, th.Regs.Rip)
	if err != nil {
		return err
	}
	if abort != 0 {
		th.Regs.Rip = abort
		th.dirty = true
	}
	th.rseqDone = true
	return nil
}

// RseqAbort returns the abort address of the restartable sequence that rip is
// in, per the struct rseq at addr, or 0. Source: rseq(2), struct rseq_cs.
func (f *Frozen) RseqAbort(addr, rip uint64) (uint64, error) {
	var ptr [8]byte
	if err := f.ReadMem(addr+8, ptr[:]); err != nil {
		return 0, err
	}
	cs := le64(ptr[:])
	if cs == 0 {
		return 0, nil
	}
	var b [32]byte // version, flags, start_ip, post_commit_offset, abort_ip
	if err := f.ReadMem(cs, b[:]); err != nil {
		return 0, err
	}
	start, offset, abort := le64(b[8:]), le64(b[16:]), le64(b[24:])
	if rip-start < offset {
		return abort, nil
	}
	return 0, nil
}
