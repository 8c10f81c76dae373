package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// TCPFound is what the kernel tells of a connection that is looked for by its
// addresses.
type TCPFound struct {
	State  uint8  // TCP_ESTABLISHED, ... of linux/tcp_states.h
	Ino    uint32 // inode of the socket; 0 when no process has it: not accepted, or closed
	Unread uint32 // bytes received and not read, with the end of the stream
}

// TCPLookup asks for the connection with exactly these addresses in the
// caller's network namespace. It needs no privilege. When there is no such
// connection the kernel answers with a listener that would take it, or with
// ENOENT.
//
// Expected errors: *Error with ENOENT. Source: sock_diag(7), struct
// inet_diag_msg of linux/inet_diag.h.
func (s *Sys) TCPLookup(netns int, t TCPTuple) (found TCPFound, err error) {
	err = s.do("sock_diag tcp", 0, func() error {
		return withDiag(netns, func(fd int) error {
			request := diagRequest(diagByFamily, unix.NLM_F_REQUEST, t.Family, allStates, t.id())
			return diagAsk(fd, request, func(typ uint16, body []byte) (bool, error) {
				const inodeAt = 4 + diagIDLen + 16
				switch {
				case typ == unix.NLMSG_ERROR:
					return true, diagStatus(body)
				case len(body) < inodeAt+4:
					return true, fmt.Errorf("socket description of %d bytes", len(body))
				}
				found.State = body[1]
				found.Unread = binary.NativeEndian.Uint32(body[4+diagIDLen+4:])
				found.Ino = binary.NativeEndian.Uint32(body[inodeAt:])
				return true, nil
			})
		})
	})
	return found, err
}

// ipLocalPortRange is IP_LOCAL_PORT_RANGE of linux/in.h.
const ipLocalPortRange = 51

// PreferPort makes connect(2) choose this local port, as if by chance: unlike
// bind(2) it may be one whose earlier connections the kernel has not forgotten,
// and the socket does not count as bound by the program. Port 0 takes the
// preference back. Ports outside of ip_local_port_range are not preferred.
//
// Expected errors: *Error with ENOPROTOOPT. Source: ip(7),
// IP_LOCAL_PORT_RANGE, Linux 6.3.
func (s *Sys) PreferPort(fd int, port uint16) error {
	return s.SetSockInt(fd, unix.IPPROTO_IP, ipLocalPortRange, int(uint32(port)<<16|uint32(port)))
}

// Receive takes bytes, or one message, out of a socket without waiting. ok is
// false when there is nothing; n is 0 at the end of a stream as well.
//
// Expected errors: *Error with ECONNRESET.
func (s *Sys) Receive(fd int, buf []byte) (n int, ok bool, err error) {
	err = s.do("recv", 0, func() error {
		for {
			n, _, err = unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.EAGAIN):
				n = 0
				return nil
			}
			ok = err == nil
			return err
		}
	})
	return n, ok, err
}

// StartConnect begins to connect; the connection exists when the socket becomes
// writable (Poll). The flags of the open file description are not changed.
//
// Expected errors: *Error with EADDRNOTAVAIL, ECONNREFUSED, ENETUNREACH.
func (s *Sys) StartConnect(fd int, sa unix.Sockaddr) (err error) {
	return s.do("connect", 0, func() error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil {
			return err
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_NONBLOCK); err != nil {
			return err
		}
		err = unix.Connect(fd, sa)
		if errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
		_, back := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
		return errors.Join(err, back)
	})
}
