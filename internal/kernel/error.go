package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Sentinels of the package; match them with errors.Is.
var (
	// ErrNotSupported says that the running kernel lacks a feature. The
	// wrapping error names the feature and the first kernel that has it.
	ErrNotSupported = errors.New("not supported by this kernel")
	// ErrTimeout says that a tracee did not reach a stop before the deadline.
	ErrTimeout = errors.New("deadline exceeded")
	// ErrGone says that the process or thread ended.
	ErrGone = errors.New("process is gone")
)

// Error is a failed kernel call.
type Error struct {
	Op    string     // "ptrace seize", "process_vm_readv", ...
	PID   int        // thread or process the call was about; 0 for none
	Errno unix.Errno // why
}

// Error implements error.
func (e *Error) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("kernel: %s: %v", e.Op, e.Errno)
	}
	return fmt.Sprintf("kernel: %s: pid %d: %v", e.Op, e.PID, e.Errno)
}

// Unwrap returns the errno, so that errors.Is(err, unix.ESRCH) works.
func (e *Error) Unwrap() error { return e.Errno }

// Is matches ErrGone for ESRCH and ErrNotSupported for ENOSYS.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrGone:
		return e.Errno == unix.ESRCH
	case ErrNotSupported:
		return e.Errno == unix.ENOSYS
	}
	return false
}

// wrap turns err, an errno of a kernel call or nil, into an *Error or nil.
func wrap(op string, pid int, err error) error {
	if err == nil {
		return nil
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return &Error{Op: op, PID: pid, Errno: errno}
	}
	return fmt.Errorf("kernel: %s: pid %d: %w", op, pid, err)
}
