package pid1

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Process is one that init started. Its Pidfd stays valid after its end; the
// owner closes it.
type Process struct {
	Outer int      // number in the starter's /proc, -1 when it has ended
	Inner int      // number inside
	Pidfd *os.File // close-on-exec
}

// Error is an error that happened in init; it unwraps to the kernel's.
type Error struct {
	Text  string
	Errno syscall.Errno // 0: none
}

// Error implements error.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the errno, for errors.Is.
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// Client is the starter's end of the socketpair. Safe for concurrent use.
type Client struct {
	sock  int
	ready chan error

	mu      sync.Mutex // guards below, and sending
	next    uint64
	waiting map[uint64]chan reply
	closed  bool
}

type reply struct {
	msg message
	fds []int
}

// NewClient returns a client that owns sock. Its Receive must be running for
// anything else to get on.
func NewClient(sock int) *Client {
	return &Client{sock: sock, ready: make(chan error, 1), waiting: map[uint64]chan reply{}}
}

// Receive takes what init says until init is gone, and calls exited for every
// process that ended, in the order of their ends. Calls that wait go on waiting
// until Close.
func (c *Client) Receive(exited func(pid int, status unix.WaitStatus)) {
	for {
		var m message
		fds, err := receive(c.sock, &m)
		switch {
		case err != nil:
			c.tellReady(err)
			return
		case m.ID != 0:
			c.deliver(reply{m, fds})
			continue
		case m.Exit:
			exited(m.PID, unix.WaitStatus(m.Status))
		case m.Ready:
			c.tellReady(nil)
		case m.Error != "":
			c.tellReady(&Error{m.Error, syscall.Errno(m.Errno)})
		}
		closeAll(fds)
	}
}

// tellReady gives Ready its answer; only the first one counts.
func (c *Client) tellReady(err error) {
	select {
	case c.ready <- err:
	default:
	}
}

func (c *Client) deliver(r reply) {
	c.mu.Lock()
	ch := c.waiting[r.msg.ID]
	delete(c.waiting, r.msg.ID)
	c.mu.Unlock()
	if ch == nil {
		closeAll(r.fds) // the caller gave up
		return
	}
	ch <- r
}

// Close fails all calls, also those that wait, with ErrGone and closes the
// socket. The owner calls it once, after Receive has returned.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, ch := range c.waiting {
		close(ch)
	}
	c.waiting = nil
	_ = unix.Close(c.sock) // both ends are done
}

// Ready waits until init has completed its namespaces. It is called once.
//
// Expected errors: ErrGone; ctx.Err(); *Error with what stopped init.
func (c *Client) Ready(ctx context.Context) error {
	select {
	case err := <-c.ready:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// call sends a request and waits for the answer.
func (c *Client) call(ctx context.Context, req request, fds ...int) (reply, error) {
	ch := make(chan reply, 1)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return reply{}, ErrGone
	}
	c.next++
	req.ID = c.next
	c.waiting[req.ID] = ch
	err := send(c.sock, req, fds...)
	if err != nil {
		delete(c.waiting, req.ID)
	}
	c.mu.Unlock()
	if err != nil {
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			err = ErrGone
		}
		return reply{}, err
	}
	select {
	case r, ok := <-ch:
		if !ok {
			return r, ErrGone
		}
		if r.msg.Error != "" {
			closeAll(r.fds)
			return reply{}, &Error{r.msg.Error, syscall.Errno(r.msg.Errno)}
		}
		return r, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, req.ID)
		c.mu.Unlock()
		return reply{}, ctx.Err()
	}
}

// Start starts a process with files as its descriptors 0, 1, 2, ...; they stay
// the caller's.
//
// Expected errors: ErrGone; ctx.Err(); *Error, which wraps an errno of execve.
func (c *Client) Start(ctx context.Context, s Spec, files ...*os.File) (Process, error) {
	file, err := MemoryFile("spec", s)
	if err != nil {
		return Process{}, err
	}
	defer func() { _ = file.Close() }() // init has its copy
	fds := []int{int(file.Fd())}
	for _, f := range files {
		fds = append(fds, FD(f))
	}
	r, err := c.call(ctx, request{Op: opStart}, fds...)
	runtime.KeepAlive(files)
	if err != nil {
		return Process{}, err
	}
	if len(r.fds) != 1 {
		closeAll(r.fds)
		return Process{}, errors.New("answer without a pidfd")
	}
	p := Process{Inner: r.msg.PID, Pidfd: os.NewFile(uintptr(r.fds[0]), "pidfd")}
	if p.Outer, err = pidOf(r.fds[0]); err != nil {
		return Process{}, errors.Join(err, p.Pidfd.Close())
	}
	return p, nil
}

// Signal sends a signal to every process of the namespace but init; that
// there is none is no error.
//
// Expected errors: ErrGone; ctx.Err(); *Error.
func (c *Client) Signal(ctx context.Context, sig unix.Signal) error {
	_, err := c.call(ctx, request{Op: opSignal, Signal: int(sig)})
	return err
}

// FD returns the number of f, -1 when it is closed, without making it
// blocking, which f.Fd does (os.File.Fd).
func FD(f *os.File) int {
	n := -1
	raw, err := f.SyscallConn()
	if err != nil {
		return n
	}
	_ = raw.Control(func(fd uintptr) { n = int(fd) }) // fails for a closed file: -1
	return n
}

// pidOf returns the number of a pidfd's process in this process's /proc, -1
// when it has ended. Source: the Pid field of fdinfo, pidfd_open(2).
func pidOf(pidfd int) (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0, fmt.Errorf("pidfd: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, errors.New("pidfd: no Pid line in fdinfo")
}
