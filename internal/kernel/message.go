package kernel

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Message is one message of a unix or UDP socket.
type Message struct {
	Data    []byte
	Rights  []int         // descriptors that came with it, now ours
	From    unix.Sockaddr // of the sender; nil on streams
	Cut     bool          // it was longer than the buffer
	Dropped bool          // it came with credentials or the like, which were dropped
}

// controlRoom takes the largest set of descriptors (SCM_MAX_FD).
const controlRoom = 16 + 4*(MaxSendFDs+1)

// TakeMessage reads a message without waiting, or, with MSG_PEEK in flags,
// copies it. ok is false when there is none; at the end of a stream it is an
// empty one. The message's bytes are part of buf; its descriptors are
// duplicates of those sent, which the caller closes.
//
// Expected errors: *Error with ECONNRESET, EMFILE. Source: recvmsg(2),
// unix(7).
func (s *Sys) TakeMessage(fd int, buf []byte, flags int) (m Message, ok bool, err error) {
	control := make([]byte, controlRoom)
	var n, size, got int
	err = s.do("recvmsg", 0, func() error {
		for {
			n, size, got, m.From, err = unix.Recvmsg(fd, buf, control, flags|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		ok = err == nil
		return err
	})
	if !ok {
		return m, false, err
	}
	m.Data, m.Cut, m.Dropped = buf[:n:n], got&unix.MSG_TRUNC != 0, got&unix.MSG_CTRUNC != 0
	list, err := unix.ParseSocketControlMessage(control[:size])
	if err != nil {
		return m, true, fmt.Errorf("kernel: recvmsg: control message: %w", err)
	}
	for i := range list {
		fds, err := unix.ParseUnixRights(&list[i])
		if err != nil {
			m.Dropped = true
			continue
		}
		m.Rights = append(m.Rights, fds...)
	}
	return m, true, nil
}

// PeekBelow tells how many bytes of a unix stream, from its peek offset on, are
// in parts of the queue that fit into room bytes whole. That is where the part
// begins which does not: a peek with descriptors ends with the part that has
// them, and says nothing of its beginning. The kernel copies part by part and
// gives up at the first that it cannot store; so it is given memory that ends.
//
// Expected errors: those of mmap(2); *Error. Source: net/unix/af_unix.c,
// unix_stream_read_generic.
func (s *Sys) PeekBelow(fd, room int) (n int, err error) {
	page := unix.Getpagesize()
	size := (room + page - 1) / page * page
	mem, err := unix.Mmap(-1, 0, size+page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, wrap("mmap", 0, err)
	}
	defer func() { err = errors.Join(err, wrap("munmap", 0, unix.Munmap(mem))) }()
	if err := unix.Mprotect(mem[size:], unix.PROT_NONE); err != nil {
		return 0, wrap("mprotect", 0, err)
	}
	err = s.do("recv peek", 0, func() error {
		n, _, err = unix.Recvfrom(fd, mem[size-room:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EFAULT) {
			n, err = 0, nil
		}
		return err
	})
	return max(n, 0), err
}

// GiveMessage sends a message with descriptors, to an address unless that is
// nil, without waiting. It returns how many bytes were taken.
//
// Expected errors: *Error with EAGAIN (no room), ECONNREFUSED, EPIPE.
func (s *Sys) GiveMessage(fd int, data []byte, rights []int, to unix.Sockaddr) (n int, err error) {
	var control []byte
	if len(rights) > 0 {
		control = unix.UnixRights(rights...)
	}
	err = s.do("sendmsg", 0, func() (err error) {
		n, err = unix.SendmsgN(fd, data, control, to, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return err
	})
	return n, err
}

// NewSocket makes a close-on-exec socket in the caller's network namespace.
//
// Expected errors: *Error with EMFILE.
func (s *Sys) NewSocket(domain, typ int) (fd int, err error) {
	err = s.do("socket", 0, func() (err error) {
		fd, err = unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// SocketPair makes two connected unix sockets, close-on-exec.
//
// Expected errors: *Error with EMFILE.
func (s *Sys) SocketPair(typ int) (fds [2]int, err error) {
	err = s.do("socketpair", 0, func() (err error) {
		fds, err = unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
		return err
	})
	return fds, err
}

// InDirectory runs fn on a thread of its own with another working directory,
// so that relative names of unix sockets mean what they mean to a program. With
// an empty dir it just runs fn.
//
// Expected errors: those of unshare(2), chdir(2) and fn.
func InDirectory(dir string, fn func() error) error {
	if dir == "" {
		return fn()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(dir)
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}
