package mpirun

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// grace is how long ranks have between TERM and KILL.
const grace = 5 * time.Second

// orders is what signals need of the control client.
type orders interface {
	Signal(ctx context.Context, id job.ID, n int) error
	Do(ctx context.Context, id job.ID, v control.Verb) error
}

// forwarded lists the signals that a client handles.
func forwarded() []os.Signal {
	return []os.Signal{
		syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGTSTP, syscall.SIGCONT,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE,
	}
}

// warden turns signals to this process into orders to the job.
type warden struct {
	to      orders
	id      job.ID
	signals <-chan os.Signal
	stop    func()       // stops this process until SIGCONT
	detach  func()       // ends the session, not the job
	note    func(string) // a line on stderr
	broken  <-chan struct{}

	ending    bool
	suspended bool
	deadline  <-chan time.Time // when to kill
}

// run handles signals until ctx ends. A closed w.broken means that the output
// has no reader any more; the job is ended as by Ctrl-C.
func (w *warden) run(ctx context.Context) {
	broken := w.broken
	for {
		select {
		case <-ctx.Done():
			return
		case <-broken:
			broken = nil
			w.end(ctx)
		case <-w.deadline:
			w.deadline = nil
			w.note(fmt.Sprintf("the ranks did not end within %v: killing them", grace))
			w.order(ctx, "kill", func() error { return w.to.Do(ctx, w.id, control.Kill) })
		case s := <-w.signals:
			w.handle(ctx, s)
		}
	}
}

func (w *warden) handle(ctx context.Context, s os.Signal) {
	switch s {
	case syscall.SIGINT, syscall.SIGTERM:
		w.end(ctx)
	case syscall.SIGHUP:
		w.detach()
	case syscall.SIGTSTP:
		w.order(ctx, "suspend", func() error { return w.to.Do(ctx, w.id, control.Suspend) })
		w.suspended = true
		select {
		case next := <-w.signals:
			// What came meanwhile, most likely the order to go on, would lie here
			// until somebody sends another one.
			w.handle(ctx, next)
		default:
			w.stop()
		}
	case syscall.SIGCONT:
		if w.suspended { // else somebody stopped mpirun alone
			w.suspended = false
			w.order(ctx, "resume", func() error { return w.to.Do(ctx, w.id, control.Resume) })
		}
	case syscall.SIGUSR1, syscall.SIGUSR2:
		n, _ := s.(syscall.Signal)
		w.order(ctx, "signal", func() error { return w.to.Signal(ctx, w.id, int(n)) })
	}
}

// end asks the ranks to end; the second time it kills them.
func (w *warden) end(ctx context.Context) {
	if w.ending {
		w.deadline = nil
		w.order(ctx, "kill", func() error { return w.to.Do(ctx, w.id, control.Kill) })
		return
	}
	w.ending = true
	w.deadline = time.After(grace)
	w.note(fmt.Sprintf("ending job %v; once more to kill it at once", w.id))
	w.order(ctx, "terminate", func() error { return w.to.Signal(ctx, w.id, int(syscall.SIGTERM)) })
}

// order carries one out beside the loop's other work being blocked: orders
// keep their sequence, and the second Ctrl-C must not wait for the first
// longer than orderLimit.
func (w *warden) order(ctx context.Context, what string, do func() error) {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		if err != nil && ctx.Err() == nil {
			w.note(fmt.Sprintf("cannot %s job %v: %v", what, w.id, err))
		}
	case <-ctx.Done():
	case <-time.After(orderLimit):
		w.note(fmt.Sprintf("%s of job %v takes long", what, w.id))
	}
}

const orderLimit = 2 * time.Second

// stopSelf stops this process as the terminal would have done.
func stopSelf() { _ = syscall.Kill(syscall.Getpid(), syscall.SIGSTOP) }
