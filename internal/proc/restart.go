package proc

import (
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// Answers of interrupted system calls that user code never sees; the kernel
// turns them into a restart or EINTR on the way out. linux/errno.h.
const (
	restartSys     = 512
	restartNoIntr  = 513
	restartNoHand  = 514
	restartBlock   = 516
	syscallInsnLen = 2
)

// Normalise returns r for an image: a system call that the stop interrupted
// and that the kernel would restart is put back before its `syscall`
// instruction, so that it runs again wherever the registers are loaded. A
// relative sleep begins anew.
func Normalise(r kernel.Regs) kernel.Regs {
	if int64(r.Orig_rax) < 0 {
		return r
	}
	switch -int64(r.Rax) {
	case restartSys, restartNoIntr, restartNoHand, restartBlock:
		return again(r)
	}
	r.Orig_rax = ^uint64(0) // the call is over: nothing is to be restarted
	return r
}

// again moves r back to its system call.
func again(r kernel.Regs) kernel.Regs {
	r.Rip -= syscallInsnLen
	r.Rax = r.Orig_rax
	r.Orig_rax = ^uint64(0)
	return r
}

// leaksEINTR reports whether system call nr answers a stop by a tracer with a
// plain EINTR, which the program would see. Measured with blocking calls of
// Linux 6.18; the kernel restarts all others. The socket calls do so only when
// the socket has a timeout.
func leaksEINTR(nr uint64) bool {
	switch nr {
	case unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2,
		unix.SYS_IO_URING_ENTER, unix.SYS_IO_GETEVENTS, unix.SYS_IO_PGETEVENTS,
		unix.SYS_SEMOP, unix.SYS_SEMTIMEDOP,
		unix.SYS_RT_SIGTIMEDWAIT,
		unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_RECVMMSG, unix.SYS_READ, unix.SYS_READV,
		unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_WRITE, unix.SYS_WRITEV,
		unix.SYS_ACCEPT, unix.SYS_ACCEPT4, unix.SYS_CONNECT:
		return true
	}
	return false
}

// hideStop makes th repeat a call that our stop, and no signal, made answer
// EINTR.
func (f *Frozen) hideStop(th *Thread) error {
	r := &th.Regs
	if th.Signal != 0 || int64(r.Orig_rax) < 0 || int64(r.Rax) != -int64(unix.EINTR) || !leaksEINTR(r.Orig_rax) {
		return nil
	}
	st, err := ReadStatus(th.TID)
	if err != nil {
		return err
	}
	if (st.SigPnd|st.ShdPnd)&^th.SigMask != 0 {
		return nil // a signal did it, and its handler comes next
	}
	th.Regs, th.dirty = again(th.Regs), true
	return nil
}
