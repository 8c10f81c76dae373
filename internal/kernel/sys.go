package kernel

import "golang.org/x/sys/unix"

// Hook is asked before a kernel call named op about process or thread pid. A
// non-zero answer makes the call fail with that errno without being made.
// Hooks are for tests; they run on the calling goroutine.
type Hook func(op string, pid int) unix.Errno

// Sys makes kernel calls. The nil *Sys makes them without a hook.
type Sys struct {
	hook Hook
}

// New returns a Sys that asks hook, when it is not nil, before every call.
func New(hook Hook) *Sys { return &Sys{hook: hook} }

// Check asks the hook about an operation that is not a method of Sys, such as
// a system call that a tracer is about to inject.
//
// Expected errors: *Error with the hook's errno.
func (s *Sys) Check(op string, pid int) error {
	if s == nil || s.hook == nil {
		return nil
	}
	if errno := s.hook(op, pid); errno != 0 {
		return &Error{Op: op, PID: pid, Errno: errno}
	}
	return nil
}

// do asks the hook, makes the call and wraps its error.
func (s *Sys) do(op string, pid int, call func() error) error {
	if err := s.Check(op, pid); err != nil {
		return err
	}
	return wrap(op, pid, call())
}
