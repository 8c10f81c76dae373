package pmi

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/job"
)

// conn is the socketpair of one rank. The server keeps the rank's end open,
// too: a checkpoint reads from there what the rank has not taken yet, and a
// rank that was killed does not look like one that closed its end. Guarded by
// the server's lock.
type conn struct {
	id     job.Rank
	server *os.File // non-blocking
	raw    syscall.RawConn
	rank   *os.File // blocking, as MPICH expects
	in     []byte   // read, not yet a whole line
	broken bool     // the rank broke the protocol: nothing more is taken from it
}

func newConn(r job.Rank) (*conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(fmt.Errorf("set non-blocking: %w", err), unix.Close(fds[0]), unix.Close(fds[1]))
	}
	name := "pmi-" + strconv.Itoa(int(r))
	c := &conn{id: r, server: os.NewFile(uintptr(fds[0]), name), rank: os.NewFile(uintptr(fds[1]), name+"-rank")}
	if c.raw, err = c.server.SyscallConn(); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *conn) close() {
	_ = c.server.Close() // nothing is buffered
	_ = c.rank.Close()
}

// wait calls f until it returns true, pausing for readability in between.
func (c *conn) wait(f func() bool) error {
	return c.raw.Read(func(uintptr) bool { return f() })
}

// fill reads what is there, at most one buffer; more tells whether to look
// again at once, false means to wait for readability.
func (c *conn) fill() (more bool, err error) {
	n, buf, err := recv(c.raw)
	if n > 0 && !c.broken {
		c.in = append(c.in, buf[:n]...)
	}
	if errors.Is(err, unix.EAGAIN) {
		return false, nil
	}
	return true, err
}

// line takes one complete line out of the buffer.
func (c *conn) line() (string, bool) {
	i := bytes.IndexByte(c.in, '\n')
	if i < 0 || c.broken {
		return "", false
	}
	l := string(c.in[:i])
	c.in = c.in[i+1:]
	return l, true
}

// reply writes text to the rank; it never blocks. The socket holds hundreds of
// answers, and a rank waits for each.
//
// Expected errors: unix.EAGAIN when the rank does not read.
func (c *conn) reply(text string) error { return send(c.raw, []byte(text)) }

// drain takes all bytes in flight out of the socketpair: what the rank sent
// goes to c.in, what it has not read is returned. A socket that the rank shut
// down (MPICH does so when it finalizes) is empty. Precondition: the rank is
// frozen.
func (c *conn) drain() (unread []byte, err error) {
	for {
		n, buf, err := recv(c.raw)
		c.in = append(c.in, buf[:n]...)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, errShut) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	raw, err := c.rank.SyscallConn()
	if err != nil {
		return nil, err
	}
	for {
		n, buf, err := recv(raw)
		unread = append(unread, buf[:n]...)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, errShut) {
			return unread, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// errShut says that the rank has shut its end down.
var errShut = errors.New("shut down by the rank")

// recv reads once without blocking (recv(2), MSG_DONTWAIT).
//
// Expected errors: unix.EAGAIN, errShut.
func recv(raw syscall.RawConn) (n int, buf []byte, err error) {
	buf = make([]byte, 16<<10)
	cerr := raw.Control(func(fd uintptr) {
		for {
			n, _, err = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	switch {
	case cerr != nil:
		return 0, buf, cerr
	case err != nil:
		return 0, buf, err
	case n == 0:
		return 0, buf, errShut
	}
	return n, buf, nil
}

// send writes all of b without blocking (send(2), MSG_DONTWAIT).
func send(raw syscall.RawConn, b []byte) error {
	var err error
	cerr := raw.Control(func(fd uintptr) {
		for len(b) > 0 {
			var n int
			n, err = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return
			}
			b = b[n:]
		}
	})
	return errors.Join(cerr, err)
}
