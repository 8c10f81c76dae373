// Package nodelink gives a pod its network: one link, called eth0 inside the
// pod, that hangs on the link of the node.
//
// # Who does what
//
// The pod's network namespace is owned by the supervisor's user namespace S.
// A link of the node can only be made by somebody with CAP_NET_ADMIN over the
// node's network namespace *and* over the pod's. That is lamd: as root on a
// host, or in the user namespace U of a local cluster, whose capabilities hold
// in every user namespace below it, S included (user_namespaces(7)). It calls a
// PodLink. Everything inside, addresses, neighbours, limits, is done by the
// supervisor with Inside, which needs no more than being uid 0 of S.
//
// # Why macvlan
//
// A pod needs a hardware address of its own, so that address and neighbour
// entries can move together. Measured on a 4-core VM between pods of two nodes
// (8-byte TCP round trip, busy polling): node to node, no pods, 10.6 us;
// macvlan on the nodes' links 13.1 us; a bridge in each node with a veth per
// pod 16.7 us; equal bandwidth. A macvlan also needs no change to the node's
// own address. The price: on a real link a pod cannot speak to its own node's
// address; no part of lampause wants to.
//
// Where the node's link is a macvlan itself, as in a local cluster, the kernel
// hangs the pod's beside it, on the link below: macvlans do not stack. So a
// pod's packets pass as many links as its node's do.
//
// Nothing here starts goroutines. Methods are safe for concurrent use, also
// for several pods; the kernel serialises.
package nodelink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Name is the pod's link inside the pod.
const Name = "eth0"

// Link is what a pod's link shall be.
type Link struct {
	NetnsPID int              // a process in the pod's network namespace: its supervisor
	MAC      net.HardwareAddr // from the address book; another one in every incarnation
	MTU      int              // bytes, 0 = that of the node's link
}

// PodLink makes and removes the links of pods. Implementations for other
// networks can be put beside Macvlan.
type PodLink interface {
	// Attach gives the namespace its link, down and without an address. It may
	// be repeated: a link with the wanted MAC stays as it is, one with another
	// MAC is replaced.
	Attach(ctx context.Context, l Link) error
	// Down cuts the pod off at once; its link stays.
	Down(ctx context.Context, netnsPID int) error
	// Detach removes the link. When the namespace ends the kernel does so.
	Detach(ctx context.Context, netnsPID int) error
}

// ErrNoNamespace says that the process that stands for a pod's network
// namespace is gone.
var ErrNoNamespace = errors.New("no such network namespace")

// Macvlan is a PodLink of macvlan links in bridge mode on the node's link.
type Macvlan struct {
	parent string
}

var _ PodLink = (*Macvlan)(nil)

// NewMacvlan returns a PodLink on the node's link of that name.
func NewMacvlan(parent string) *Macvlan { return &Macvlan{parent: parent} }

// ParentOf returns the name of the link that holds addr: where pods of a node
// with this address hang.
//
// Expected errors: one that names the address when no link has it.
func ParentOf(addr netip.Addr) (string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("nodelink: list links: %w", err)
	}
	for _, l := range links {
		addrs, err := l.Addrs()
		if err != nil {
			continue // went away between the two calls
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr.Unmap() {
				return l.Name, nil
			}
		}
	}
	return "", fmt.Errorf("nodelink: no link has the address %v", addr)
}

// Attach implements PodLink.
//
// Expected errors: ErrNoNamespace; those of the kernel, among them EPERM
// without CAP_NET_ADMIN over both namespaces and EOPNOTSUPP without macvlan.
func (m *Macvlan) Attach(ctx context.Context, l Link) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("nodelink: attach: %w", err)
	}
	return within(l.NetnsPID, "attach", func(inside *netlink.Handle, ns netns.NsHandle) error {
		old, err := inside.LinkByName(Name)
		switch {
		case err == nil && old.Attrs().HardwareAddr.String() == l.MAC.String():
			return nil
		case err == nil:
			if err := inside.LinkDel(old); err != nil {
				return fmt.Errorf("remove the previous link: %w", err)
			}
		case !missing(err):
			return err
		}
		return m.make(inside, ns, l)
	})
}

// make makes the link inside the namespace.
func (m *Macvlan) make(inside *netlink.Handle, ns netns.NsHandle, l Link) error {
	parent, err := netlink.LinkByName(m.parent)
	if err != nil {
		return fmt.Errorf("node's link %s: %w", m.parent, err)
	}
	// Not yet called eth0: the kernel looks for that name on the node, too.
	temp := fmt.Sprintf("pod%d", l.NetnsPID)
	if half, err := inside.LinkByName(temp); err == nil { // of an attempt that was cut short
		if err := inside.LinkDel(half); err != nil {
			return fmt.Errorf("remove half a link: %w", err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.HardwareAddr = temp, parent.Attrs().Index, l.MAC
	attrs.MTU = parent.Attrs().MTU
	if l.MTU > 0 {
		attrs.MTU = l.MTU
	}
	attrs.Namespace = netlink.NsFd(ns)
	if err := netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
		return fmt.Errorf("add macvlan on %s: %w", m.parent, err)
	}
	link, err := inside.LinkByName(temp)
	if err != nil {
		return err
	}
	if err := inside.LinkSetName(link, Name); err != nil {
		return fmt.Errorf("name the link %s: %w", Name, err)
	}
	return nil
}

// Down implements PodLink. A pod without a link is cut off already.
//
// Expected errors: ErrNoNamespace.
func (m *Macvlan) Down(ctx context.Context, netnsPID int) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("nodelink: down: %w", err)
	}
	return within(netnsPID, "down", func(inside *netlink.Handle, _ netns.NsHandle) error {
		return ifPresent(inside, inside.LinkSetDown)
	})
}

// Detach implements PodLink. A pod without a link, or one that has ended, is
// as wanted.
func (m *Macvlan) Detach(ctx context.Context, netnsPID int) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("nodelink: detach: %w", err)
	}
	err := within(netnsPID, "detach", func(inside *netlink.Handle, _ netns.NsHandle) error {
		return ifPresent(inside, inside.LinkDel)
	})
	if errors.Is(err, ErrNoNamespace) {
		return nil
	}
	return err
}

// within runs f with a netlink handle in the network namespace of a process.
func within(pid int, op string, f func(*netlink.Handle, netns.NsHandle) error) error {
	ns, err := netns.GetFromPid(pid)
	if errors.Is(err, os.ErrNotExist) {
		err = ErrNoNamespace
	}
	if err != nil {
		return fmt.Errorf("nodelink: %s pod of process %d: %w", op, pid, err)
	}
	defer func() { _ = ns.Close() }()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("nodelink: %s pod of process %d: enter: %w", op, pid, err)
	}
	defer inside.Close()
	if err := f(inside, ns); err != nil {
		return fmt.Errorf("nodelink: %s pod of process %d: %w", op, pid, err)
	}
	return nil
}

// ifPresent applies f to the pod's link unless there is none.
func ifPresent(h *netlink.Handle, f func(netlink.Link) error) error {
	link, err := h.LinkByName(Name)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return f(link)
}

func missing(err error) bool {
	var e netlink.LinkNotFoundError
	return errors.As(err, &e)
}
