package stream

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// NewTree returns Streams for the processes of one tree that live in the
// caller's network namespace. It needs no privilege: instead of repair mode,
// which only CAP_NET_ADMIN permits, it makes use of having both ends of every
// connection at hand. Their bytes are peeked at; those that the receiver has no
// room for are read and written again. Connections come back by connecting.
//
// Connections with one end outside of the tree are obstacles, but for those
// that the other end has closed. A Set of such Streams needs no Trim, and its
// Record none of the marks of others.
func NewTree(sys *kernel.Sys, log zerolog.Logger) *Streams {
	return &Streams{sys: sys, netns: -1, local: true, log: log.With().Str("component", "stream").Logger()}
}

// flow names one direction of a connection.
type flow struct{ local, remote netip.AddrPort }

func (f flow) reverse() flow { return flow{f.remote, f.local} }

// join finds the other end of every connection of a tree, and obstacles where
// there is none.
func (set *Set) join() error {
	ends := map[flow]*end{}
	for _, e := range set.ends {
		if e.connected() {
			ends[flow{e.local, e.remote}] = e
		}
	}
	for _, e := range set.ends {
		if !e.connected() || len(e.refused) > 0 {
			continue
		}
		e.peer = ends[flow{e.local, e.remote}.reverse()]
		if e.peer == e {
			e.refuse("connected to itself", false)
		}
		if e.peer != nil {
			continue
		}
		if err := set.joinAlone(e); err != nil {
			return fmt.Errorf("stream: scan %s: %w", e.name(), err)
		}
	}
	set.countWaiting()
	return nil
}

// ResetOnClose makes every connection of the set end at its close without a
// trace: the kernel keeps no addresses of it (TIME_WAIT).
//
// Expected errors: kernel errors. Source: socket(7), SO_LINGER.
func (set *Set) ResetOnClose() error {
	for _, e := range set.ends {
		if e.tcp.State == stateListen {
			continue
		}
		if err := e.sys.SetSockLinger(e.fd, true, 0); err != nil {
			return fmt.Errorf("stream: %s: %w", e.name(), err)
		}
	}
	return nil
}

// joinAlone finds out what became of the other end of e, which no process of
// the tree has.
func (set *Set) joinAlone(e *end) error {
	outside := fmt.Sprintf("connection to %s, outside of the process tree", e.remote)
	found, err := e.sys.TCPLookup(set.streams.netns, tuple(e.tcp.Family, e.remote, e.local))
	gone := errors.Is(err, unix.ENOENT) || err == nil && (found.State == stateListen || found.State == stateTimeWait)
	if err != nil && !gone {
		return err
	}
	here := e.remote.Addr().IsLoopback() || e.remote.Addr() == e.local.Addr()
	ended := finReceived(e.tcp.State) && here
	waiting := set.listenerOf(e.remote) != nil
	switch {
	case gone && ended, !gone && found.Ino == 0 && ended && !waiting:
		e.tcp.PeerGone = true
	case gone && here && waiting, found.State == stateSynRecv:
		e.refuse("connection is being set up", true)
	case gone, found.Ino != 0:
		e.refuse(outside, false)
	case !waiting:
		e.refuse("the other end was closed, and its last bytes are on their way", true)
	default:
		unread := int(found.Unread)
		if found.State == stateCloseWait {
			unread-- // the end of the stream
		}
		if unread > 0 {
			e.refuse(fmt.Sprintf("%d bytes wait behind a connection that was not accepted yet", unread), true)
		}
		e.tcp.Pending = true
	}
	return nil
}

// listenerOf returns the tree's listener that a connection to addr comes to.
func (set *Set) listenerOf(addr netip.AddrPort) *end {
	var any *end
	for _, e := range set.ends {
		if e.tcp.State != stateListen || e.local.Port() != addr.Port() {
			continue
		}
		if e.local.Addr() == addr.Addr() {
			return e
		}
		if e.local.Addr().IsUnspecified() {
			any = e
		}
	}
	return any
}

// countWaiting compares what waits to be accepted with the ends in the tree.
func (set *Set) countWaiting() {
	ours := map[*end]int{}
	for _, e := range set.ends {
		if e.tcp.Pending {
			ours[set.listenerOf(e.remote)]++
		}
	}
	for _, e := range set.ends {
		if e.tcp.State == stateListen && e.waiting > ours[set.listenerOf(e.local)] {
			e.refuse(fmt.Sprintf("%d connections from outside of the process tree wait to be accepted",
				e.waiting-ours[set.listenerOf(e.local)]), true)
		}
	}
}
