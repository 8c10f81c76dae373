package proc

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// ErrClosed is returned by a Tracer after Close.
var ErrClosed = errors.New("proc: tracer is closed")

// waitLimit bounds the wait for a stop when the caller's context has no
// deadline, and the waits of the undo paths.
const waitLimit = 5 * time.Second

// Tracer owns the OS thread that all tracees of one group are attached to.
// It is safe for concurrent use; functions given to Do run one at a time.
type Tracer struct {
	sys *kernel.Sys

	mu     sync.Mutex // guards the fields below
	loop   *loop
	closed bool
}

// loop is one locked goroutine. When it ends without unlocking, the runtime
// ends its OS thread and the kernel releases whatever was still attached.
type loop struct {
	work chan task
	stop chan struct{} // closed by the Tracer
	done chan struct{} // closed when the goroutine ends
	tid  int
}

type task struct {
	fn   func() error
	done chan error
}

// NewTracer starts the goroutine. Close it when no tracee is left.
func NewTracer(sys *kernel.Sys) *Tracer {
	return &Tracer{sys: sys, loop: startLoop()}
}

// Sys returns the kernel calls of t.
func (t *Tracer) Sys() *kernel.Sys { return t.sys }

func startLoop() *loop {
	l := &loop{work: make(chan task), stop: make(chan struct{}), done: make(chan struct{})}
	ready := make(chan struct{})
	go l.run(ready)
	<-ready
	return l
}

// run is the body of the locked goroutine. The main thread of the process does
// not end when its goroutine does, so it is passed by.
func (l *loop) run(ready chan struct{}) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		go l.run(ready) // another thread: this one is held until then
		<-ready
		runtime.UnlockOSThread()
		return
	}
	l.tid = unix.Gettid()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // naps of 20 us, not of 70; only faster
	close(ready)
	defer close(l.done)
	for {
		select {
		case w := <-l.work:
			w.done <- w.fn()
		case <-l.stop:
			return // still locked: the thread ends with us
		}
	}
}

// Do runs fn on the tracer's OS thread and returns its error. Called from
// within Do, it runs fn at once.
//
// Expected errors: ErrClosed, and those of fn.
func (t *Tracer) Do(fn func() error) error {
	t.mu.Lock()
	l, closed := t.loop, t.closed
	t.mu.Unlock()
	if unix.Gettid() == l.tid {
		return fn()
	}
	if closed {
		return ErrClosed
	}
	w := task{fn: fn, done: make(chan error, 1)}
	select {
	case l.work <- w:
		return <-w.done
	case <-l.done:
		return ErrClosed
	}
}

// Close ends the goroutine and its OS thread. Tracees that are still attached
// are released by the kernel and run on as they are. It may be called twice,
// but not from within Do.
func (t *Tracer) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	l := t.loop
	t.mu.Unlock()
	close(l.stop)
	<-l.done
	return nil
}

// renew replaces the OS thread, which releases every tracee of it: the last
// resort for a thread that was seized but never stopped. It is called from
// within Do; the old thread ends when that function returns.
func (t *Tracer) renew() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	old := t.loop
	t.loop = startLoop()
	close(old.stop)
}

// errorf names the operation and the process.
func errorf(pid int, format string, args ...any) error {
	return fmt.Errorf("proc: pid %d: %w", pid, fmt.Errorf(format, args...))
}
