package progtest

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Fault fails the n-th kernel or injected call: its Hook is a kernel.Hook. The
// zero value fails none. It is safe for concurrent use.
type Fault struct {
	mu       sync.Mutex
	calls, n int
	hit      string
}

// Hook counts a call and answers EIO to the one that is to fail.
func (f *Fault) Hook(op string, _ int) unix.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.calls == f.n {
		f.hit = op
		return unix.EIO
	}
	return 0
}

// Arm makes the n-th call from now on fail, none when n is 0, and returns the
// name of the one that failed since the last Arm, "" when none did.
func (f *Fault) Arm(n int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	hit := f.hit
	f.calls, f.n, f.hit = 0, n, ""
	return hit
}
