package nodelink

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/job"
)

// PrefixBits is the length of the pods' network prefix: all pods of a cluster
// share one /16 with its nodes.
const PrefixBits = 16

// Buffer limits of the pod's sockets, in bytes: least, default, most. All
// buffers are large from the start, so that what was in flight at a checkpoint
// always fits when it is put back, and bounded, so that a checkpoint is. They
// are sysctls of the network namespace because raising one socket's buffer
// over them needs a privilege that S does not have (socket(7),
// SO_SNDBUFFORCE).
const (
	tcpWmem = "4096 4194304 4194304"
	tcpRmem = "4096 2097152 2097152"
)

// Links with a larger MTU than any Ethernet has are memory: they lose nothing
// and never queue, so the congestion control that thinks least is best. Against
// BBR, which paces every segment, reno saves 4 % of the time of a short message.
const (
	maxEthernetMTU = 9216 // bytes
	congestion     = "reno"
)

// Inside configures the link of the pod that this process is in: limits first,
// then address, hardware address and neighbours, then up. self is this pod's
// line of book. It may be repeated with another book.
//
// Precondition: CAP_NET_ADMIN in the user namespace that owns the current
// network namespace; Attach has made the link.
//
// Expected errors: those of the kernel, and netlink.LinkNotFoundError before
// Attach.
func Inside(self job.PodAddress, book []job.PodAddress) error {
	if err := limits(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("nodelink: lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("nodelink: lo up: %w", err)
	}
	link, err := netlink.LinkByName(Name)
	if err != nil {
		return fmt.Errorf("nodelink: pod's link: %w", err)
	}
	if link.Attrs().MTU > maxEthernetMTU {
		// Every kernel has it; without, the default does as well.
		_ = os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte(congestion), 0)
	}
	if err := identify(link, self); err != nil {
		return err
	}
	if err := neighbours(link, self, book); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("nodelink: %s up: %w", Name, err)
	}
	return nil
}

// Neighbours replaces the neighbour entries of this pod by those of book: what
// a survivor does when pods have moved.
//
// Expected errors: as Inside.
func Neighbours(self job.PodAddress, book []job.PodAddress) error {
	link, err := netlink.LinkByName(Name)
	if err != nil {
		return fmt.Errorf("nodelink: pod's link: %w", err)
	}
	return neighbours(link, self, book)
}

// CutOff downs the link of the pod this process is in: nothing of it reaches
// anybody any more, whatever its processes do. A pod without a link is cut off.
// The kernel forgets the neighbours with it (permanent ones, too); Inside
// undoes all of it.
//
// Expected errors: those of the kernel.
func CutOff() error {
	link, err := netlink.LinkByName(Name)
	if missing(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("nodelink: pod's link: %w", err)
	}
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("nodelink: %s down: %w", Name, err)
	}
	return nil
}

// limits sets what holds for all sockets of the namespace.
func limits() error {
	for _, s := range []struct{ path, value string }{
		{"ipv4/tcp_wmem", tcpWmem},
		{"ipv4/tcp_rmem", tcpRmem},
	} {
		if err := os.WriteFile("/proc/sys/net/"+s.path, []byte(s.value), 0); err != nil {
			return fmt.Errorf("nodelink: limit: %w", err)
		}
	}
	// Silence on the link; the kernel may be without IPv6.
	err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("nodelink: no IPv6: %w", err)
	}
	return nil
}

// identify gives the link its hardware address and its one IPv4 address.
func identify(link netlink.Link, self job.PodAddress) error {
	mac, err := net.ParseMAC(self.MAC)
	if err != nil {
		return fmt.Errorf("nodelink: pod %d: %w", self.Pod, err)
	}
	if link.Attrs().HardwareAddr.String() != mac.String() {
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			return fmt.Errorf("nodelink: hardware address %v: %w", mac, err)
		}
	}
	want := &net.IPNet{IP: self.IP.AsSlice(), Mask: net.CIDRMask(PrefixBits, 8*net.IPv4len)}
	have, err := netlink.AddrList(link, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("nodelink: addresses: %w", err)
	}
	found := false
	for _, a := range have {
		if a.IPNet.String() == want.String() {
			found = true
			continue
		}
		// MPI libraries publish whatever address they find: there must be one.
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("nodelink: remove address %v: %w", a.IPNet, err)
		}
	}
	if found {
		return nil
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: want}); err != nil {
		return fmt.Errorf("nodelink: address %v: %w", want, err)
	}
	return nil
}

// neighbours makes a permanent entry for every other pod, so that nothing is
// ever asked on the network and a stale pod, whose hardware address is in no
// entry, completes no handshake. Permanent entries of pods that are not in
// book go.
func neighbours(link netlink.Link, self job.PodAddress, book []job.PodAddress) error {
	wanted := make(map[string]bool, len(book))
	for _, p := range book {
		if p.Pod == self.Pod {
			continue
		}
		mac, err := net.ParseMAC(p.MAC)
		if err != nil {
			return fmt.Errorf("nodelink: pod %d: %w", p.Pod, err)
		}
		err = netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
			IP: p.IP.AsSlice(), HardwareAddr: mac,
		})
		if err != nil {
			return fmt.Errorf("nodelink: neighbour %v is %v: %w", p.IP, mac, err)
		}
		wanted[p.IP.String()] = true
	}
	have, err := netlink.NeighList(link.Attrs().Index, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("nodelink: neighbours: %w", err)
	}
	for _, n := range have {
		if n.State&netlink.NUD_PERMANENT == 0 || wanted[n.IP.String()] {
			continue
		}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("nodelink: forget neighbour %v: %w", n.IP, err)
		}
	}
	return nil
}
