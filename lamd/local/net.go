package local

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// makeBridge makes the cluster's bridge in this process's network namespace.
func makeBridge(mtu int) error {
	// Without IPv6 the links say nothing by themselves.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = bridgeName, mtu
	snooping := false
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge %s: %w", bridgeName, err)
	}
	for _, name := range []string{"lo", bridgeName} {
		if err := linkUp(name); err != nil {
			return err
		}
	}
	return nil
}

// hostLink is the name of the bridge's end of node i's link.
func hostLink(i int) string { return fmt.Sprintf("node%d", i+1) }

// nodeMAC is the hardware address of node i. It is the same after every boot
// of the node, so that no neighbour holds a stale one.
func nodeMAC(i int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x4c, 0x41, 0x4d, byte((i + 1) >> 8), byte(i + 1)}
}

// addNodeLink makes the link of node i: one end on the bridge, up; the other,
// still down and called eth0, in the network namespace of process pid.
func addNodeLink(i, pid, mtu int) error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridgeName, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = hostLink(i), mtu, bridge.Attrs().Index
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = nodeLinkName, nodeMAC(i), netlink.NsPid(pid)
	veth.PeerMTU = uint32(mtu)
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link %s: %w", hostLink(i), err)
	}
	return linkUp(hostLink(i))
}

// nodeLinkDown takes node i's carrier away at once: nothing that its processes
// send when they die, no FIN and no RST, leaves the node any more.
func nodeLinkDown(i int) error {
	link, err := netlink.LinkByName(hostLink(i))
	if err != nil {
		return ignoreMissing(fmt.Errorf("find link %s: %w", hostLink(i), err))
	}
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("link %s down: %w", hostLink(i), err)
	}
	return nil
}

// removeNodeLink removes both ends of node i's link. The kernel does so too,
// some time after the node's network namespace has ended.
func removeNodeLink(i int) error {
	link, err := netlink.LinkByName(hostLink(i))
	if err != nil {
		return ignoreMissing(fmt.Errorf("find link %s: %w", hostLink(i), err))
	}
	if err := netlink.LinkDel(link); err != nil {
		if _, gone := netlink.LinkByName(hostLink(i)); gone != nil {
			return ignoreMissing(gone)
		}
		return fmt.Errorf("remove link %s: %w", hostLink(i), err)
	}
	return nil
}

func ignoreMissing(err error) error {
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	return err
}

// configureNodeNet brings up lo and eth0 inside a node.
func configureNodeNet(addr netip.Prefix) error {
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	if err := linkUp("lo"); err != nil {
		return err
	}
	link, err := netlink.LinkByName(nodeLinkName)
	if err != nil {
		return fmt.Errorf("find link %s: %w", nodeLinkName, err)
	}
	ip := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
		return fmt.Errorf("address %v on %s: %w", addr, nodeLinkName, err)
	}
	return linkUp(nodeLinkName)
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s up: %w", name, err)
	}
	return nil
}
