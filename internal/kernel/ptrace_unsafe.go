package kernel

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ptrace requests that x/sys/unix does not wrap; values of linux/ptrace.h.
const (
	ntX86XState = 0x202 // NT_X86_XSTATE
	xstateMax   = 16384 // more than any XSAVE area in use (AMX: 11008 bytes)

	siginfoSize = 128 // sizeof(siginfo_t)
)

// Event numbers of ptrace stops: int(status) >> 16.
const (
	EventFork  = unix.PTRACE_EVENT_FORK
	EventVfork = unix.PTRACE_EVENT_VFORK
	EventClone = unix.PTRACE_EVENT_CLONE
	EventExec  = unix.PTRACE_EVENT_EXEC
	EventExit  = unix.PTRACE_EVENT_EXIT
	EventStop  = unix.PTRACE_EVENT_STOP
)

// Regs is struct user_regs_struct of x86-64.
type Regs = unix.PtraceRegs

// Words returns r as the 27 words of the image, in the kernel's order.
func Words(r *Regs) [27]uint64 { return *(*[27]uint64)(unsafe.Pointer(r)) }

// FromWords is the inverse of Words.
func FromWords(w *[27]uint64) Regs { return *(*Regs)(unsafe.Pointer(w)) }

func ptrace(req, pid int, addr, data uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(pid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func ptracePtr(req, pid int, addr uintptr, data unsafe.Pointer) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(pid), addr, uintptr(data), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Seize attaches to thread tid without stopping it. Options are PTRACE_O_*.
//
// Expected errors: *Error with EPERM (not permitted, traced by another, or a
// dead thread not yet reaped), ESRCH. Source: ptrace(2), PTRACE_SEIZE.
func (s *Sys) Seize(tid int, options int) error {
	return s.do("ptrace seize", tid, func() error {
		return ptrace(unix.PTRACE_SEIZE, tid, 0, uintptr(options))
	})
}

// Interrupt asks a seized thread to stop; Wait for the EventStop.
//
// Expected errors: *Error with ESRCH when the thread has ended.
func (s *Sys) Interrupt(tid int) error {
	return s.do("ptrace interrupt", tid, func() error {
		return ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0)
	})
}

// Cont resumes a stopped thread, delivering sig (0 for none).
func (s *Sys) Cont(tid int, sig unix.Signal) error {
	return s.do("ptrace cont", tid, func() error {
		return ptrace(unix.PTRACE_CONT, tid, 0, uintptr(sig))
	})
}

// SingleStep lets a stopped thread execute one instruction; a `syscall`
// instruction counts as one, with the whole system call.
func (s *Sys) SingleStep(tid int) error {
	return s.do("ptrace singlestep", tid, func() error {
		return ptrace(unix.PTRACE_SINGLESTEP, tid, 0, 0)
	})
}

// Detach lets a stopped thread go on untraced, delivering sig (0 for none).
func (s *Sys) Detach(tid int, sig unix.Signal) error {
	return s.do("ptrace detach", tid, func() error {
		return ptrace(unix.PTRACE_DETACH, tid, 0, uintptr(sig))
	})
}

// SetOptions sets the PTRACE_O_* of a stopped thread.
func (s *Sys) SetOptions(tid int, options int) error {
	return s.do("ptrace setoptions", tid, func() error {
		return ptrace(unix.PTRACE_SETOPTIONS, tid, 0, uintptr(options))
	})
}

// EventMsg returns the message of the last ptrace event: for forks and clones
// the new thread's id as the tracer's pid namespace sees it.
func (s *Sys) EventMsg(tid int) (uint64, error) {
	var msg uint64
	err := s.do("ptrace geteventmsg", tid, func() error {
		return ptracePtr(unix.PTRACE_GETEVENTMSG, tid, 0, unsafe.Pointer(&msg))
	})
	return msg, err
}

// GetRegs reads the general registers of a stopped thread.
func (s *Sys) GetRegs(tid int) (Regs, error) {
	var r Regs
	err := s.do("ptrace getregs", tid, func() error {
		return ptracePtr(unix.PTRACE_GETREGS, tid, 0, unsafe.Pointer(&r))
	})
	return r, err
}

// SetRegs writes the general registers of a stopped thread.
func (s *Sys) SetRegs(tid int, r *Regs) error {
	return s.do("ptrace setregs", tid, func() error {
		return ptracePtr(unix.PTRACE_SETREGS, tid, 0, unsafe.Pointer(r))
	})
}

// GetXState returns the whole XSAVE area (x87, SSE, AVX, ...) of a stopped
// thread; its length depends on the CPU.
func (s *Sys) GetXState(tid int) ([]byte, error) {
	buf := make([]byte, xstateMax)
	iov := unix.Iovec{Base: &buf[0], Len: uint64(len(buf))}
	err := s.do("ptrace getregset xstate", tid, func() error {
		return ptracePtr(unix.PTRACE_GETREGSET, tid, ntX86XState, unsafe.Pointer(&iov))
	})
	runtime.KeepAlive(buf)
	if err != nil {
		return nil, err
	}
	return append([]byte(nil), buf[:iov.Len]...), nil
}

// SetXState writes what GetXState returned on a CPU with the same features.
//
// Expected errors: *Error with EINVAL or EFAULT when b does not fit the CPU.
func (s *Sys) SetXState(tid int, b []byte) error {
	if len(b) == 0 {
		return &Error{Op: "ptrace setregset xstate", PID: tid, Errno: unix.EINVAL}
	}
	iov := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	err := s.do("ptrace setregset xstate", tid, func() error {
		return ptracePtr(unix.PTRACE_SETREGSET, tid, ntX86XState, unsafe.Pointer(&iov))
	})
	runtime.KeepAlive(b)
	return err
}

// GetSigMask returns the blocked signals of a stopped thread, bit n-1 for
// signal n. For a thread inside a call with a temporary mask (ppoll,
// sigsuspend) it is the mask the call will put back.
func (s *Sys) GetSigMask(tid int) (uint64, error) {
	var mask uint64
	err := s.do("ptrace getsigmask", tid, func() error {
		return ptracePtr(unix.PTRACE_GETSIGMASK, tid, 8, unsafe.Pointer(&mask))
	})
	return mask, err
}

// SetSigMask sets the blocked signals of a stopped thread.
func (s *Sys) SetSigMask(tid int, mask uint64) error {
	return s.do("ptrace setsigmask", tid, func() error {
		return ptracePtr(unix.PTRACE_SETSIGMASK, tid, 8, unsafe.Pointer(&mask))
	})
}

// GetSigInfo returns the siginfo_t (128 bytes) of the signal at which a thread
// is in signal-delivery-stop.
func (s *Sys) GetSigInfo(tid int) ([]byte, error) {
	buf := make([]byte, siginfoSize)
	err := s.do("ptrace getsiginfo", tid, func() error {
		return ptracePtr(unix.PTRACE_GETSIGINFO, tid, 0, unsafe.Pointer(&buf[0]))
	})
	return buf, err
}

// SetSigInfo replaces that siginfo_t; b holds 128 bytes.
func (s *Sys) SetSigInfo(tid int, b []byte) error {
	if len(b) != siginfoSize {
		return &Error{Op: "ptrace setsiginfo", PID: tid, Errno: unix.EINVAL}
	}
	return s.do("ptrace setsiginfo", tid, func() error {
		return ptracePtr(unix.PTRACE_SETSIGINFO, tid, 0, unsafe.Pointer(&b[0]))
	})
}

// peekArgs is struct ptrace_peeksiginfo_args.
type peekArgs struct {
	off   uint64
	flags uint32
	nr    int32
}

// PeekSigInfo returns the queued signals of a stopped thread (shared: of its
// process) in queue order, 128 bytes each, without dequeuing them.
func (s *Sys) PeekSigInfo(tid int, shared bool) ([][]byte, error) {
	const chunk = 32
	op := "ptrace peeksiginfo"
	if err := s.Check(op, tid); err != nil {
		return nil, err
	}
	var out [][]byte
	for {
		buf := make([]byte, chunk*siginfoSize)
		args := peekArgs{off: uint64(len(out)), nr: chunk}
		if shared {
			args.flags = unix.PTRACE_PEEKSIGINFO_SHARED
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_PEEKSIGINFO, uintptr(tid),
			uintptr(unsafe.Pointer(&args)), uintptr(unsafe.Pointer(&buf[0])), 0, 0)
		if errno != 0 {
			return nil, &Error{Op: op, PID: tid, Errno: errno}
		}
		for i := 0; i < int(n); i++ {
			out = append(out, buf[i*siginfoSize:(i+1)*siginfoSize:(i+1)*siginfoSize])
		}
		if int(n) < chunk {
			return out, nil
		}
	}
}

// Rseq is what rseq(2) registered for a thread; Addr 0 means nothing.
type Rseq struct {
	Addr  uint64
	Len   uint32
	Sig   uint32
	flags uint32
	_     uint32
}

// GetRseq returns the restartable-sequences registration of a stopped thread.
//
// Source: PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13.
func (s *Sys) GetRseq(tid int) (Rseq, error) {
	var r Rseq
	err := s.do("ptrace rseq configuration", tid, func() error {
		return ptracePtr(unix.PTRACE_GET_RSEQ_CONFIGURATION, tid, unsafe.Sizeof(r), unsafe.Pointer(&r))
	})
	return r, err
}
