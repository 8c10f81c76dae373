package message

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
)

// DescribeUDP describes a UDP socket with its queue. why is not empty when it
// cannot come back; it may be gone soon then.
func DescribeUDP(sys *kernel.Sys, fd int) (u *image.UDPEnd, why string, err error) {
	u = &image.UDPEnd{}
	if u.Family, err = sys.SockInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
		return nil, "", err
	}
	if u.Local, err = UDPName(sys, fd); err != nil {
		return nil, "", err
	}
	sa, err := sys.PeerName(fd)
	if err == nil {
		u.Remote = addrPort(sa).String()
	} else if !errors.Is(err, unix.ENOTCONN) {
		return nil, "", err
	}
	if u.Options, err = readOptions(sys, fd, u.Family); err != nil {
		return nil, "", err
	}
	q, err := Peek(sys, fd, unix.SOCK_DGRAM, false)
	if err != nil {
		return nil, "", err
	}
	for i, m := range q.Messages {
		from := addrPort(q.From[i])
		if here, err := local(sys, from.Addr()); err != nil || !here {
			return u, fmt.Sprintf("an unread datagram came from %v, another host", from), err
		}
		u.Queue = append(u.Queue, image.Datagram{From: from.String(), Data: m})
	}
	return u, "", nil
}

// UDPName returns the address that a UDP socket is bound to, empty for none.
func UDPName(sys *kernel.Sys, fd int) (string, error) {
	sa, err := sys.SockName(fd)
	if a := addrPort(sa); err == nil && a.Port() != 0 {
		return a.String(), nil
	}
	return "", err
}

// local reports whether an address is one of this host.
func local(sys *kernel.Sys, a netip.Addr) (ok bool, err error) {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	fd, err := sys.NewSocket(family, unix.SOCK_DGRAM)
	if err != nil {
		return false, err
	}
	ok = sys.Bind(fd, sockaddr(family, netip.AddrPortFrom(a, 0))) == nil
	return ok, sys.Close(fd)
}

// Yield lets a socket that is about to be closed share its address with the one
// that takes its place.
func Yield(sys *kernel.Sys, fd int) error {
	return sys.SetSockInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}

// UDP makes the UDP sockets of an image, by description, from 1.
type UDP struct {
	sys     *kernel.Sys
	sockets map[int]*udpSocket
	ids     []int
}

type udpSocket struct {
	want          *image.UDPEnd
	fd            int
	kept          bool
	local, remote netip.AddrPort // zero for none
}

// NewUDP returns the maker of the UDP sockets among descs.
//
// Expected errors: image.ErrCorrupt for an address that is none.
func NewUDP(sys *kernel.Sys, descs []image.Description) (*UDP, error) {
	x := &UDP{sys: sys, sockets: map[int]*udpSocket{}}
	for i := range descs {
		u := descs[i].UDP
		if u == nil {
			continue
		}
		k := &udpSocket{want: u, fd: -1}
		for _, a := range []struct {
			text string
			to   *netip.AddrPort
		}{{u.Local, &k.local}, {u.Remote, &k.remote}} {
			if a.text == "" {
				continue
			}
			var err error
			if *a.to, err = netip.ParseAddrPort(a.text); err != nil {
				return nil, fmt.Errorf("%w: udp address: %w", image.ErrCorrupt, err)
			}
		}
		x.sockets[i+1] = k
		x.ids = append(x.ids, i+1)
	}
	return x, nil
}

// Keep says that the live socket fd, bound to the right address, stays in the
// place of a description.
func (x *UDP) Keep(desc, fd int) { x.sockets[desc].fd, x.sockets[desc].kept = fd, true }

// FD returns the descriptor of a description that Make made, which is the
// caller's; -1 for none.
func (x *UDP) FD(desc int) int {
	if k := x.sockets[desc]; k != nil {
		return k.fd
	}
	return -1
}

// Make makes every socket that is not there, and empties those that are.
//
// Expected errors: kernel errors with EADDRINUSE (another program has the
// address), EADDRNOTAVAIL.
func (x *UDP) Make() error {
	for _, id := range x.ids {
		k := x.sockets[id]
		if err := x.make(k); err != nil {
			return fmt.Errorf("udp socket %s: %w", k.want.Local, err)
		}
	}
	return nil
}

func (x *UDP) make(k *udpSocket) (err error) {
	if k.kept {
		if err := drain(x.sys, k.fd, unix.SOCK_DGRAM); err != nil {
			return err
		}
		if !k.remote.IsValid() {
			if _, err := x.sys.PeerName(k.fd); err == nil {
				return x.sys.Disconnect(k.fd)
			}
			return nil
		}
		return x.sys.Connect(k.fd, sockaddr(k.want.Family, k.remote))
	}
	if k.fd, err = x.sys.NewSocket(k.want.Family, unix.SOCK_DGRAM); err != nil {
		return err
	}
	if err := writeOptions(x.sys, k.want.Options, k.fd, k.want.Family); err != nil {
		return err
	}
	if k.local.IsValid() {
		if err := x.bind(k); err != nil {
			return err
		}
	}
	if !k.remote.IsValid() {
		return nil
	}
	return x.sys.Connect(k.fd, sockaddr(k.want.Family, k.remote))
}

// bind gives k its address. Only where sockets of the program share one is
// SO_REUSEADDR set before; it would share with other programs as well.
func (x *UDP) bind(k *udpSocket) error {
	if reuse := k.want.Options[optReuseAddr]; reuse != 0 {
		if err := x.sys.SetSockInt(k.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse); err != nil {
			return err
		}
	}
	err := x.sys.Bind(k.fd, sockaddr(k.want.Family, k.local))
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("another program has the address: %w", err)
	}
	return err
}

// Fill sends the unread datagrams again, and gives kept sockets their options.
func (x *UDP) Fill() error {
	for _, id := range x.ids {
		k := x.sockets[id]
		if k.fd < 0 {
			continue
		}
		for _, d := range k.want.Queue {
			if err := x.send(k, d); err != nil {
				return fmt.Errorf("udp socket %s: put back a datagram from %s: %w", k.want.Local, d.From, err)
			}
		}
		if k.kept {
			if err := writeOptions(x.sys, k.want.Options, k.fd, k.want.Family); err != nil {
				return fmt.Errorf("udp socket %s: %w", k.want.Local, err)
			}
		}
	}
	return nil
}

// send sends a datagram to k from where it came from.
func (x *UDP) send(k *udpSocket, d image.Datagram) (err error) {
	from, err := netip.ParseAddrPort(d.From)
	if err != nil {
		return fmt.Errorf("%w: %w", image.ErrCorrupt, err)
	}
	to := k.local
	if to.Addr().IsUnspecified() {
		to = netip.AddrPortFrom(from.Addr(), to.Port())
	}
	fd, family := -1, unix.AF_INET
	if from.Addr().Is6() {
		family = unix.AF_INET6
	}
	for _, id := range x.ids {
		s := x.sockets[id]
		if s.fd >= 0 && s.local.Port() == from.Port() && (s.local.Addr() == from.Addr() || s.local.Addr().IsUnspecified()) {
			fd, family = s.fd, s.want.Family
			break
		}
	}
	if fd < 0 {
		if fd, err = x.sys.NewSocket(family, unix.SOCK_DGRAM); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, x.sys.Close(fd)) }()
		if err := x.sys.SetSockInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := x.sys.Bind(fd, sockaddr(family, from)); err != nil {
			return err
		}
	}
	n, err := x.sys.GiveMessage(fd, d.Data, nil, sockaddr(family, to))
	if err == nil && n < len(d.Data) {
		err = unix.EAGAIN
	}
	return err
}
