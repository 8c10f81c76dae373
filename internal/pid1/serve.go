package pid1

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Serve is the life of an init. It calls complete, which finishes the
// namespaces, says so through the socket sock, then starts processes as it is
// asked to, reaps all that end, and returns nil when the Client is gone.
//
// Precondition: the process is pid 1 of its pid namespace, /proc is its own
// after complete, and no other goroutine waits for children.
//
// Expected errors: not pid 1; those of complete, which the Client is told, too.
func Serve(ctx context.Context, sock int, complete func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if os.Getpid() != 1 {
		return errors.New("not pid 1 of a pid namespace")
	}
	warmUp()
	if err := complete(); err != nil {
		return errors.Join(err, send(sock, failure(err)))
	}
	children := make(chan os.Signal, 16)
	signal.Notify(children, unix.SIGCHLD)
	defer signal.Stop(children)
	others := make(chan os.Signal, 1) // taken, not ignored: ignored signals would be inherited
	signal.Notify(others, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT,
		unix.SIGUSR1, unix.SIGUSR2, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	defer signal.Stop(others)
	if err := send(sock, message{Ready: true}); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asks := make(chan ask)
	go readAsks(ctx, sock, asks) // ends with the socket, at the latest with the process
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-children:
		case a := <-asks:
			if errors.Is(a.err, ErrGone) {
				return nil
			}
			if err := answer(sock, a); err != nil {
				return err
			}
		}
		if err := reap(sock); err != nil {
			return err
		}
	}
}

// spareThreads is how many threads init makes before it starts anything.
const spareThreads = 8

// warmUp makes threads and leaves them idle, so that the Go runtime needs no
// new one later: one that it made between the choice of a process number and
// the fork would take that number, and keep it.
func warmUp() {
	var all, made sync.WaitGroup
	all.Add(1)
	for range spareThreads {
		made.Add(1)
		go func() {
			runtime.LockOSThread()
			made.Done()
			all.Wait()
			runtime.UnlockOSThread()
		}()
	}
	made.Wait()
	all.Done()
}

// ask is a request with its descriptors, or the end of the socket.
type ask struct {
	req request
	fds []int
	err error
}

// readAsks receives requests until the Client is gone.
func readAsks(ctx context.Context, sock int, asks chan<- ask) {
	for {
		var a ask
		a.fds, a.err = receive(sock, &a.req)
		select {
		case asks <- a:
		case <-ctx.Done():
			return
		}
		if a.err != nil {
			return
		}
	}
}

// answer carries one request out and closes its descriptors.
func answer(sock int, a ask) error {
	if a.err != nil {
		return a.err
	}
	defer closeAll(a.fds)
	var m message
	var pidfd []int
	switch a.req.Op {
	case opSignal:
		err := unix.Kill(-1, unix.Signal(a.req.Signal))
		if !errors.Is(err, unix.ESRCH) { // there is nobody else
			m = failure(err)
		}
	case opStart:
		pid, fd, err := start(a.fds)
		m = failure(err)
		if err == nil {
			m.PID, pidfd = pid, []int{fd}
		}
	default:
		m.Error = "unknown request " + strconv.Quote(string(a.req.Op))
	}
	m.ID = a.req.ID
	defer closeAll(pidfd)
	if err := send(sock, m, pidfd...); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

// failure turns err into a message; nil is success.
func failure(err error) message {
	if err == nil {
		return message{}
	}
	m := message{Error: err.Error()}
	var no syscall.Errno
	if errors.As(err, &no) {
		m.Errno = int(no)
	}
	return m
}

// reap takes the status of every child that has ended and reports it.
func reap(sock int) error {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG|unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD), err == nil && pid == 0:
			return nil
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case !ws.Exited() && !ws.Signaled():
			continue
		}
		if err := send(sock, message{PID: pid, Exit: true, Status: uint32(ws)}); err != nil {
			return fmt.Errorf("report exit: %w", err)
		}
	}
}
