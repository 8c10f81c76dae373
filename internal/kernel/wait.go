package kernel

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// WaitStop waits until the traced thread tid stops and returns the status.
// Event stops have int(status)>>16 set to an Event* number. It polls: first
// spinning, then sleeping up to 0.2 ms at a time, so that the deadline holds
// without signals.
//
// Expected errors: ErrTimeout; ErrGone, when the thread ended (it is reaped
// then, and the status returned tells how); *Error with ECHILD when tid is not
// ours.
func (s *Sys) WaitStop(tid int, deadline time.Time) (unix.WaitStatus, error) {
	const op = "wait4"
	if err := s.Check(op, tid); err != nil {
		return 0, err
	}
	nap := 20 * time.Microsecond
	for i := 0; ; i++ {
		ws, ok, err := s.tryWait(tid)
		if err != nil {
			return 0, wrap(op, tid, err)
		}
		if ok {
			if ws.Exited() || ws.Signaled() {
				return ws, fmt.Errorf("kernel: wait4: pid %d: status %#x: %w", tid, uint32(ws), ErrGone)
			}
			return ws, nil
		}
		if i < 100 {
			continue // a stop takes some 10 us
		}
		if i < 150 {
			SchedYield()
			continue
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("kernel: wait4: pid %d: %w", tid, ErrTimeout)
		}
		ts := unix.NsecToTimespec(int64(nap))
		_ = unix.Nanosleep(&ts, nil) // an early wake-up only polls sooner
		if nap < 200*time.Microsecond {
			nap += nap / 2
		}
	}
}

// TryWait polls the child or tracee pid once: ok is false when nothing has
// happened. It reaps a process that ended.
//
// Expected errors: *Error with ECHILD.
func (s *Sys) TryWait(pid int) (ws unix.WaitStatus, ok bool, err error) {
	if err := s.Check("wait4", pid); err != nil {
		return 0, false, err
	}
	ws, ok, err = s.tryWait(pid)
	return ws, ok, wrap("wait4", pid, err)
}

func (s *Sys) tryWait(pid int) (unix.WaitStatus, bool, error) {
	for {
		var ws unix.WaitStatus
		n, err := unix.Wait4(pid, &ws, unix.WALL|unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		return ws, n == pid, err
	}
}
