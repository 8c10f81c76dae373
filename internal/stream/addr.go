package stream

import (
	"fmt"
	"net/netip"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// addrPort turns a socket address into the form of marks and images, where an
// IPv4 address is one, also on an IPv6 socket.
func addrPort(sa unix.Sockaddr) (netip.AddrPort, error) {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("address of kind %T", sa)
}

// sockaddr is the reverse, for a socket of a family.
func sockaddr(family int, a netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET6 {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// parseAddr parses ip:port of an image and checks that a socket of the family
// can have it.
func parseAddr(family int, text string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		return a, err
	}
	a = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	if family != unix.AF_INET && family != unix.AF_INET6 {
		return a, fmt.Errorf("address family %d", family)
	}
	if family == unix.AF_INET && !a.Addr().Is4() {
		return a, fmt.Errorf("address %q on an IPv4 socket", text)
	}
	return a, nil
}

// tuple is the kernel's form of a connection's addresses, for TCPDestroy.
func tuple(family int, local, remote netip.AddrPort) kernel.TCPTuple {
	t := kernel.TCPTuple{Family: family, LocalPort: local.Port(), RemotePort: remote.Port()}
	if family == unix.AF_INET6 && !local.Addr().Is4() {
		t.Local, t.Remote = local.Addr().As16(), remote.Addr().As16()
		return t
	}
	t.Family = unix.AF_INET
	l, r := local.Addr().As4(), remote.Addr().As4()
	copy(t.Local[:], l[:])
	copy(t.Remote[:], r[:])
	return t
}

// shift is how far the stream from one address to another is moved in the
// sequence space in generation gen. Both ends compute it alike.
func shift(gen uint64, from, to netip.AddrPort) uint32 {
	b, _ := from.MarshalBinary() // never fails
	c, _ := to.MarshalBinary()
	return uint32(xxh3.HashSeed(append(b, c...), gen))
}
