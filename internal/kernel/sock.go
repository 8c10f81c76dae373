package kernel

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// This file and its neighbours tcp.go and sock_unsafe.go are the calls on
// sockets that internal/stream is made of. The descriptors are ours, most of
// them duplicates of a rank's (PidfdGetfd); pid in errors is therefore 0 and
// the caller names the connection. All calls are safe from any goroutine.

// SockInt reads an int option of a socket.
//
// Expected errors: *Error with ENOPROTOOPT, EOPNOTSUPP. Source: getsockopt(2).
func (s *Sys) SockInt(fd, level, opt int) (int, error) {
	var v int
	err := s.do("getsockopt", 0, func() (err error) {
		v, err = unix.GetsockoptInt(fd, level, opt)
		return err
	})
	return v, err
}

// SetSockInt sets an int option of a socket.
//
// Expected errors: *Error with EPERM, EINVAL, ENOPROTOOPT.
func (s *Sys) SetSockInt(fd, level, opt, value int) error {
	return s.do("setsockopt", 0, func() error { return unix.SetsockoptInt(fd, level, opt, value) })
}

// SockString reads a string option (TCP_CONGESTION, TCP_ULP).
//
// Expected errors: *Error with ENOPROTOOPT.
func (s *Sys) SockString(fd, level, opt int) (string, error) {
	var v string
	err := s.do("getsockopt", 0, func() (err error) {
		v, err = unix.GetsockoptString(fd, level, opt)
		return err
	})
	return v, err
}

// SetSockString sets a string option; value may hold raw bytes.
//
// Expected errors: *Error with EPERM, EINVAL, ENOENT.
func (s *Sys) SetSockString(fd, level, opt int, value string) error {
	return s.do("setsockopt", 0, func() error { return unix.SetsockoptString(fd, level, opt, value) })
}

// SockLinger reads SO_LINGER.
func (s *Sys) SockLinger(fd int) (on bool, seconds int, err error) {
	err = s.do("getsockopt", 0, func() error {
		l, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER)
		if err == nil {
			on, seconds = l.Onoff != 0, int(l.Linger)
		}
		return err
	})
	return on, seconds, err
}

// SetSockLinger sets SO_LINGER.
func (s *Sys) SetSockLinger(fd int, on bool, seconds int) error {
	l := &unix.Linger{Linger: int32(seconds)}
	if on {
		l.Onoff = 1
	}
	return s.do("setsockopt", 0, func() error { return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, l) })
}

// SockTimeout reads SO_RCVTIMEO or SO_SNDTIMEO in microseconds, 0 for none.
func (s *Sys) SockTimeout(fd, opt int) (int64, error) {
	var us int64
	err := s.do("getsockopt", 0, func() error {
		tv, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, opt)
		if err == nil {
			us = tv.Sec*1e6 + tv.Usec
		}
		return err
	})
	return us, err
}

// SetSockTimeout sets SO_RCVTIMEO or SO_SNDTIMEO to us microseconds.
func (s *Sys) SetSockTimeout(fd, opt int, us int64) error {
	tv := unix.NsecToTimeval(us * 1000)
	return s.do("setsockopt", 0, func() error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &tv) })
}

// SockCookie returns SO_COOKIE: a number that no other socket of the running
// kernel has or had, equal for all descriptors of one socket.
//
// Source: socket(7), Linux 4.6.
func (s *Sys) SockCookie(fd int) (uint64, error) {
	var v uint64
	err := s.do("getsockopt", 0, func() (err error) {
		v, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		return err
	})
	return v, err
}

// SockName and PeerName return the addresses of a socket.
//
// Expected errors: *Error with ENOTCONN (PeerName).
func (s *Sys) SockName(fd int) (unix.Sockaddr, error) {
	var sa unix.Sockaddr
	err := s.do("getsockname", 0, func() (err error) {
		sa, err = unix.Getsockname(fd)
		return err
	})
	return sa, err
}

// PeerName returns the address of the other end; see SockName.
func (s *Sys) PeerName(fd int) (unix.Sockaddr, error) {
	var sa unix.Sockaddr
	err := s.do("getpeername", 0, func() (err error) {
		sa, err = unix.Getpeername(fd)
		return err
	})
	return sa, err
}

// FileFlags returns the O_* flags of an open file description.
func (s *Sys) FileFlags(fd int) (int, error) {
	var v int
	err := s.do("fcntl getfl", 0, func() (err error) {
		v, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		return err
	})
	return v, err
}

// SetFileFlags sets the O_* flags of an open file description.
func (s *Sys) SetFileFlags(fd, flags int) error {
	return s.do("fcntl setfl", 0, func() error {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
		return err
	})
}

// SockIoctl reads SIOCINQ (unread bytes) or SIOCOUTQ (bytes not acknowledged).
//
// Expected errors: *Error with EINVAL (listening socket). Source: tcp(7).
func (s *Sys) SockIoctl(fd int, req uint) (int, error) {
	var v int
	err := s.do("ioctl socket", 0, func() (err error) {
		v, err = unix.IoctlGetInt(fd, req)
		return err
	})
	return v, err
}

// Peek copies bytes from the queue of a socket into buf without taking them
// out, and without waiting; flags are further MSG_* bits. It returns 0 with an
// empty queue.
//
// Expected errors: *Error with EFAULT when a send queue does not fit.
func (s *Sys) Peek(fd int, buf []byte, flags int) (int, error) {
	var n int
	err := s.do("recv peek", 0, func() error {
		var err error
		n, _, err = unix.Recvfrom(fd, buf, flags|unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			n, err = 0, nil
		}
		return err
	})
	return n, err
}

// Send writes bytes to a socket without waiting and without SIGPIPE. It
// returns how many were taken; 0 means that there is no room now.
//
// Expected errors: *Error with EPIPE, ECONNRESET, ENOMEM.
func (s *Sys) Send(fd int, buf []byte) (int, error) {
	var n int
	err := s.do("send", 0, func() error {
		var err error
		n, err = unix.SendmsgN(fd, buf, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EAGAIN) {
			n, err = 0, nil
		}
		return err
	})
	return n, err
}

// Socket makes a close-on-exec TCP socket of a family inside the network
// namespace behind netns, or inside the caller's own when netns < 0.
//
// Expected errors: *Error with EPERM (setns), EMFILE.
func (s *Sys) Socket(netns, family int) (int, error) {
	fd := -1
	err := s.do("socket", 0, func() error {
		return inNetNS(netns, func() (err error) {
			fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
			return err
		})
	})
	return fd, err
}

// inNetNS runs fn on an OS thread inside a network namespace. A thread that
// cannot be brought back is thrown away with its goroutine.
func inNetNS(netns int, fn func() error) error {
	if netns < 0 {
		return fn()
	}
	done := make(chan error, 1)
	go func() { done <- onForeignThread(netns, fn) }()
	return <-done
}

func onForeignThread(netns int, fn func() error) error {
	runtime.LockOSThread()
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(own)
	if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = fn()
	if back := unix.Setns(own, unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // still locked: the runtime ends the thread
	}
	runtime.UnlockOSThread()
	return err
}

// Bind gives a socket its local address.
//
// Expected errors: *Error with EINVAL (it has one), EADDRINUSE, EADDRNOTAVAIL.
func (s *Sys) Bind(fd int, sa unix.Sockaddr) error {
	return s.do("bind", 0, func() error { return unix.Bind(fd, sa) })
}

// Connect connects a socket. Under TCP_REPAIR it completes at once and no
// packet is sent.
//
// Expected errors: *Error with ENETUNREACH, EADDRNOTAVAIL (the connection
// exists).
func (s *Sys) Connect(fd int, sa unix.Sockaddr) error {
	return s.do("connect", 0, func() error { return unix.Connect(fd, sa) })
}

// Listen makes a socket accept connections.
func (s *Sys) Listen(fd, backlog int) error {
	return s.do("listen", 0, func() error { return unix.Listen(fd, backlog) })
}

// Accept takes a connection out of a listener's queue; ok is false when the
// queue is empty. It never waits, whatever the listener's flags are.
func (s *Sys) Accept(fd int) (conn int, ok bool, err error) {
	err = s.do("accept", 0, func() error {
		ready, err := poll(fd, unix.POLLIN, 0)
		if err != nil || ready&unix.POLLIN == 0 {
			return err
		}
		conn, _, err = unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		ok = err == nil
		return err
	})
	return conn, ok, err
}

// Shutdown ends one or both directions (SHUT_RD, SHUT_WR).
//
// Expected errors: *Error with ENOTCONN.
func (s *Sys) Shutdown(fd, how int) error {
	return s.do("shutdown", 0, func() error { return unix.Shutdown(fd, how) })
}

// Poll returns which of events a descriptor has, waiting up to waitMS
// milliseconds (0: not at all). Errors and hang-ups are always reported.
func (s *Sys) Poll(fd int, events int16, waitMS int) (int16, error) {
	var ready int16
	err := s.do("poll", 0, func() (err error) {
		ready, err = poll(fd, events, waitMS)
		return err
	})
	return ready, err
}

func poll(fd int, events int16, waitMS int) (int16, error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(p, waitMS)
		if !errors.Is(err, unix.EINTR) {
			return p[0].Revents, err
		}
	}
}

// MaxSendFDs is how many descriptors one SendFDs can carry (SCM_MAX_FD).
const MaxSendFDs = 253

// SendFDs passes descriptors over a connected AF_UNIX socket, with one byte.
//
// Precondition: len(fds) <= MaxSendFDs. Source: unix(7), SCM_RIGHTS.
func (s *Sys) SendFDs(sock int, fds []int) error {
	return s.do("sendmsg scm_rights", 0, func() error {
		n, err := unix.SendmsgN(sock, []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == nil && n != 1 {
			err = fmt.Errorf("sent %d bytes of 1", n)
		}
		return err
	})
}

// Close closes a descriptor of ours. The number is free afterwards, also when
// an error is returned.
func (s *Sys) Close(fd int) error {
	return wrap("close", 0, unix.Close(fd))
}
