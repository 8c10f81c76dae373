package message

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
)

// Bounds of what is read from one socket: the longest message, and how many.
const (
	maxMessage  = 256 << 10
	maxMessages = 1 << 16
)

// ErrCredentials says that messages carry what cannot be sent again.
var ErrCredentials = errors.New("messages with credentials are not supported")

// Queue are unread messages. The messages of a stream are the parts between
// descriptors.
type Queue struct {
	Messages [][]byte
	From     []unix.Sockaddr // of datagrams; nil without a name
	Rights   map[int][]int   // by message: descriptors, which are the caller's to close
}

// Peek copies the unread messages of a socket of the given type. The peek
// offset moves over messages, and is put back. With strict, messages with
// anything but descriptors are refused.
//
// Expected errors: ErrCredentials; kernel errors with EMFILE.
// Source: unix(7), udp(7), SO_PEEK_OFF.
func Peek(sys *kernel.Sys, fd, typ int, strict bool) (q Queue, err error) {
	q.Rights = map[int][]int{}
	old, err := sys.SockInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err != nil {
		return q, fmt.Errorf("peek offset: %w", err)
	}
	if err := sys.SetSockInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return q, fmt.Errorf("peek offset: %w", err)
	}
	defer func() {
		back := func() error { return sys.SetSockInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, old) }
		if again := back(); again != nil {
			err = errors.Join(err, back())
		}
		if err != nil {
			closeAll(sys, q.Rights)
		}
	}()
	at := 0 // offset of the next message of a stream
	for len(q.Messages) < maxMessages {
		m, ok, err := sys.TakeMessage(fd, make([]byte, maxMessage), unix.MSG_PEEK)
		switch {
		case err != nil:
			return q, fmt.Errorf("peek: %w", err)
		case !ok, len(m.Data) == 0 && typ != unix.SOCK_DGRAM:
			return q, nil
		}
		if len(m.Rights) > 0 {
			q.Rights[len(q.Messages)] = m.Rights
		}
		switch {
		case m.Dropped && strict:
			return q, ErrCredentials
		case m.Cut:
			return q, fmt.Errorf("a message of more than %d bytes is not supported", maxMessage)
		case typ == unix.SOCK_STREAM:
			at, err = q.addStream(sys, fd, at, m)
			if err != nil {
				return q, err
			}
		default:
			q.Messages = append(q.Messages, bytes.Clone(m.Data))
			if typ == unix.SOCK_DGRAM {
				q.From = append(q.From, m.From)
			}
		}
	}
	return q, fmt.Errorf("more than %d messages are not supported", maxMessages)
}

// addStream adds a part of a stream that was read at offset at. Bytes in front
// of those that came with descriptors may be read without them.
func (q *Queue) addStream(sys *kernel.Sys, fd, at int, m kernel.Message) (int, error) {
	n := len(q.Messages)
	if len(m.Rights) == 0 {
		if n > 0 && len(q.Rights[n-1]) == 0 {
			q.Messages[n-1] = append(q.Messages[n-1], m.Data...)
		} else {
			q.Messages = append(q.Messages, bytes.Clone(m.Data))
		}
		return at + len(m.Data), nil
	}
	if err := sys.SetSockInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, at); err != nil {
		return at, err
	}
	low, err := sys.PeekBelow(fd, len(m.Data)-1)
	if err != nil {
		return at, err
	}
	if low > 0 {
		q.Messages = append(q.Messages, bytes.Clone(m.Data[:low]))
		q.Rights[n+1] = q.Rights[n]
		delete(q.Rights, n)
	}
	q.Messages = append(q.Messages, bytes.Clone(m.Data[low:]))
	at += len(m.Data)
	return at, sys.SetSockInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, at)
}

func closeAll(sys *kernel.Sys, rights map[int][]int) {
	for i, list := range rights {
		for _, fd := range list {
			_ = sys.Close(fd) // a duplicate
		}
		delete(rights, i)
	}
}

// drain takes all messages out.
func drain(sys *kernel.Sys, fd, typ int) error {
	buf := make([]byte, maxMessage)
	for {
		m, ok, err := sys.TakeMessage(fd, buf, 0)
		for _, r := range m.Rights {
			err = errors.Join(err, sys.Close(r))
		}
		if err != nil {
			return fmt.Errorf("drain: %w", err)
		}
		if !ok || len(m.Data) == 0 && typ != unix.SOCK_DGRAM {
			return nil
		}
	}
}

// unixName returns the name of a unix address as an image has it.
func unixName(sa unix.Sockaddr) []byte {
	a, ok := sa.(*unix.SockaddrUnix)
	if !ok || a.Name == "" || a.Name == "@" { // the latter is how an address without a name shows
		return nil
	}
	if a.Name[0] == '@' {
		return append([]byte{0}, a.Name[1:]...)
	}
	return []byte(a.Name)
}

// address is the reverse.
func address(name []byte) unix.Sockaddr { return &unix.SockaddrUnix{Name: string(name)} }

// addrPort turns an internet address into the form of images.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)) //nolint:gosec // a port
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)) //nolint:gosec // a port
	}
	return netip.AddrPort{}
}

// sockaddr is the reverse, for a socket of a family.
func sockaddr(family int, a netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET6 {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// option is an int option that comes back.
type option struct {
	name       string
	level, opt int
}

// options lists the options of a kind of socket. Keys never change: images
// hold them.
func options(family int) []option {
	list := []option{
		{"passcred", unix.SOL_SOCKET, unix.SO_PASSCRED},
		{"rcvlowat", unix.SOL_SOCKET, unix.SO_RCVLOWAT},
		{"priority", unix.SOL_SOCKET, unix.SO_PRIORITY},
	}
	if family == unix.AF_UNIX {
		return list
	}
	list = append(list[1:],
		option{"reuseport", unix.SOL_SOCKET, unix.SO_REUSEPORT},
		option{"broadcast", unix.SOL_SOCKET, unix.SO_BROADCAST},
		option{"dontroute", unix.SOL_SOCKET, unix.SO_DONTROUTE},
		option{"timestamp", unix.SOL_SOCKET, unix.SO_TIMESTAMP},
		option{"tos", unix.IPPROTO_IP, unix.IP_TOS},
		option{"ttl", unix.IPPROTO_IP, unix.IP_TTL},
		option{"pktinfo", unix.IPPROTO_IP, unix.IP_PKTINFO},
		option{"recverr", unix.IPPROTO_IP, unix.IP_RECVERR},
		option{"mtu_discover", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER},
		option{"freebind", unix.IPPROTO_IP, unix.IP_FREEBIND},
		option{"multicast_ttl", unix.IPPROTO_IP, unix.IP_MULTICAST_TTL},
		option{"multicast_loop", unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP},
	)
	if family == unix.AF_INET6 {
		list = append(list,
			option{"v6only", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY},
			option{"v6_hops", unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS},
			option{"v6_pktinfo", unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO},
		)
	}
	return list
}

// Keys of options with care of their own.
const (
	optReuseAddr = "reuseaddr"
	optSndBuf    = "sndbuf" // as getsockopt tells: twice what was asked for
	optRcvBuf    = "rcvbuf"
	optRcvTimeo  = "rcvtimeo_us"
	optSndTimeo  = "sndtimeo_us"
)

func timeouts() map[string]int {
	return map[string]int{optRcvTimeo: unix.SO_RCVTIMEO, optSndTimeo: unix.SO_SNDTIMEO}
}

// readOptions reads what writeOptions writes.
func readOptions(sys *kernel.Sys, fd, family int) (map[string]int, error) {
	m := map[string]int{}
	list := append(options(family), option{optSndBuf, unix.SOL_SOCKET, unix.SO_SNDBUF}, option{optRcvBuf, unix.SOL_SOCKET, unix.SO_RCVBUF})
	if family != unix.AF_UNIX {
		list = append(list, option{optReuseAddr, unix.SOL_SOCKET, unix.SO_REUSEADDR})
	}
	for _, o := range list {
		v, err := sys.SockInt(fd, o.level, o.opt)
		if err != nil && !unknown(err) {
			return nil, fmt.Errorf("option %s: %w", o.name, err)
		}
		if err == nil {
			m[o.name] = v
		}
	}
	for name, opt := range timeouts() {
		us, err := sys.SockTimeout(fd, opt)
		if err != nil {
			return nil, fmt.Errorf("option %s: %w", name, err)
		}
		m[name] = int(us)
	}
	return m, nil
}

func unknown(err error) bool {
	return errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP)
}

// writeOptions sets the options that differ, buffers as far as is permitted.
func writeOptions(sys *kernel.Sys, m map[string]int, fd, family int) error {
	for _, o := range options(family) {
		want, ok := m[o.name]
		if !ok {
			continue
		}
		if have, err := sys.SockInt(fd, o.level, o.opt); err == nil && have == want {
			continue
		}
		if err := sys.SetSockInt(fd, o.level, o.opt, want); err != nil && !unknown(err) {
			return fmt.Errorf("option %s to %d: %w", o.name, want, err)
		}
	}
	for name, opt := range map[string]int{optSndBuf: unix.SO_SNDBUF, optRcvBuf: unix.SO_RCVBUF} {
		want, ok := m[name]
		if !ok {
			continue
		}
		if have, err := sys.SockInt(fd, unix.SOL_SOCKET, opt); err == nil && have == want {
			continue
		}
		if err := sys.SetSockInt(fd, unix.SOL_SOCKET, opt, want/2); err != nil {
			return fmt.Errorf("option %s to %d: %w", name, want, err)
		}
	}
	for name, opt := range timeouts() {
		if want, ok := m[name]; ok {
			if err := sys.SetSockTimeout(fd, opt, int64(want)); err != nil {
				return fmt.Errorf("option %s: %w", name, err)
			}
		}
	}
	return nil
}

// Names returns the senders' names, one per message, or nil when none had one.
func (q *Queue) Names() [][]byte {
	out, any := make([][]byte, len(q.From)), false
	for i, sa := range q.From {
		out[i] = unixName(sa)
		any = any || len(out[i]) > 0
	}
	if !any {
		return nil
	}
	return out
}

// Passed joins the descriptors of a queue's messages to descriptions, whose
// numbers describe tells.
func (q *Queue) Passed(describe func(fd int) (desc int, err error)) ([]image.Passed, error) {
	var out []image.Passed
	for i := range q.Messages {
		if len(q.Rights[i]) == 0 {
			continue
		}
		p := image.Passed{Message: i}
		for _, fd := range q.Rights[i] {
			id, err := describe(fd)
			if err != nil {
				return nil, err
			}
			p.Descs = append(p.Descs, id)
		}
		out = append(out, p)
	}
	return out, nil
}
