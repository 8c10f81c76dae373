package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// TCPTuple is the address part of struct inet_diag_sockid.
type TCPTuple struct {
	Family     int // AF_INET, AF_INET6
	Local      [16]byte
	Remote     [16]byte
	LocalPort  uint16
	RemotePort uint16
}

// TCPDestroy makes the kernel forget a connection of the namespace that no
// process may hold any more: TIME_WAIT, or bytes that linger after close.
//
// Expected errors: *Error with ENOENT (there is none), EOPNOTSUPP (kernel
// without CONFIG_INET_DIAG_DESTROY). Source: sock_diag(7), SOCK_DESTROY.
func (s *Sys) TCPDestroy(netns int, t TCPTuple) error {
	return s.do("SOCK_DESTROY", 0, func() error {
		return withDiag(netns, func(fd int) error { return diagDestroy(fd, t.Family, t.id()) })
	})
}

// TCPDestroyAll makes the kernel forget every connection of the namespace,
// those that no process holds any more as well; n is how many there were.
// Peers are reset.
//
// Expected errors: as of TCPDestroy.
func (s *Sys) TCPDestroyAll(netns int) (n int, err error) {
	err = s.do("SOCK_DESTROY all", 0, func() error {
		return withDiag(netns, func(fd int) error {
			for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
				ids, err := diagDump(fd, family)
				if err != nil {
					return err
				}
				for _, id := range ids {
					err := diagDestroy(fd, family, id)
					if err != nil && !errors.Is(err, unix.ENOENT) {
						return err
					}
					n++
				}
			}
			return nil
		})
	})
	return n, err
}

// From linux/sock_diag.h and linux/inet_diag.h.
const (
	diagByFamily = 20
	diagKill     = 21
	diagIDLen    = 48 // struct inet_diag_sockid
	diagWait     = 1000
	allStates    = ^uint32(0)
	openStates   = allStates &^ (1<<10 | 1<<6) // not listeners, not TIME_WAIT
)

// id lays t out as struct inet_diag_sockid: ports (big endian), addresses,
// interface, and a cookie of ones, which means any.
func (t TCPTuple) id() []byte {
	b := make([]byte, 0, diagIDLen)
	b = binary.BigEndian.AppendUint16(b, t.LocalPort)
	b = binary.BigEndian.AppendUint16(b, t.RemotePort)
	b = append(b, t.Local[:]...)
	b = append(b, t.Remote[:]...)
	b = append(b, 0, 0, 0, 0)
	return append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
}

// diagRequest lays out struct nlmsghdr (16 bytes) and struct inet_diag_req_v2:
// family, protocol, ext, pad; states (4); id (48).
func diagRequest(typ, flags, family int, states uint32, id []byte) []byte {
	b := make([]byte, 0, 72)
	b = binary.NativeEndian.AppendUint32(b, 72)
	b = binary.NativeEndian.AppendUint16(b, uint16(typ))
	b = binary.NativeEndian.AppendUint16(b, uint16(flags))
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence number and port
	b = append(b, byte(family), unix.IPPROTO_TCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, states)
	return append(b, id...)
}

// withDiag runs fn with a sock_diag socket of a namespace.
func withDiag(netns int, fn func(fd int) error) error {
	var fd int
	err := inNetNS(netns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(fn(fd), unix.Close(fd))
}

// diagAsk sends a request and gives every message of the answer to each, until
// that says that it was the last.
func diagAsk(fd int, request []byte, each func(typ uint16, body []byte) (last bool, err error)) error {
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		if ready, err := poll(fd, unix.POLLIN, diagWait); err != nil || ready&unix.POLLIN == 0 {
			return errors.Join(err, ErrTimeout)
		}
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return fmt.Errorf("netlink message of %d bytes in %d", size, len(b))
			}
			last, err := each(binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:size])
			if last || err != nil {
				return err
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

// diagStatus reads the body of NLMSG_ERROR and NLMSG_DONE.
func diagStatus(body []byte) error {
	if len(body) < 4 {
		return fmt.Errorf("netlink status of %d bytes", len(body))
	}
	if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

func diagDestroy(fd, family int, id []byte) error {
	request := diagRequest(diagKill, unix.NLM_F_REQUEST|unix.NLM_F_ACK, family, allStates, id)
	return diagAsk(fd, request, func(typ uint16, body []byte) (bool, error) {
		if typ != unix.NLMSG_ERROR {
			return false, nil
		}
		return true, diagStatus(body)
	})
}

// diagDump returns the ids of all open connections of a family.
func diagDump(fd, family int) (ids [][]byte, err error) {
	request := diagRequest(diagByFamily, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, family, openStates, make([]byte, diagIDLen))
	err = diagAsk(fd, request, func(typ uint16, body []byte) (bool, error) {
		switch {
		case typ == unix.NLMSG_ERROR || typ == unix.NLMSG_DONE:
			return true, diagStatus(body)
		case len(body) < 4+diagIDLen:
			return true, fmt.Errorf("socket description of %d bytes", len(body))
		}
		ids = append(ids, append([]byte(nil), body[4:4+diagIDLen]...)) // after family, state, timer, retransmits
		return false, nil
	})
	return ids, err
}
