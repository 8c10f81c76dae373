package stream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// connector makes connections between sockets of our own.
type connector struct {
	r         *Restored
	temporary map[netip.AddrPort]int // listeners for ends whose own is gone
	low, high uint16                 // ports that connect chooses from
}

// connectAll makes every connection that does not live. Those that wait to be
// accepted come last, so that nothing stands before them in a queue.
func (r *Restored) connectAll(ctx context.Context) (err error) {
	c := &connector{r: r, temporary: map[netip.AddrPort]int{}}
	if b, rerr := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); rerr == nil {
		_, _ = fmt.Sscan(string(b), &c.low, &c.high) // without, ports are bound
	}
	defer func() {
		for _, fd := range c.temporary {
			err = errors.Join(err, r.streams.sys.Close(fd))
		}
	}()
	for _, k := range r.sockets {
		if !k.connected() || k.fd >= 0 || k.want.Pending {
			continue
		}
		if err := k.named("connect", c.pair(ctx, k)); err != nil {
			return err
		}
	}
	for _, k := range r.sockets {
		if k.connected() && k.want.Pending {
			if err := k.named("connect", c.client(ctx, k, k.remote)); err != nil {
				return err
			}
		}
	}
	return nil
}

// pair connects k with its other end, or with a stand-in for it.
func (c *connector) pair(ctx context.Context, k *socket) error {
	peer := k.peer
	if peer == nil {
		peer = &socket{sys: k.sys, netns: k.netns, fd: -1, stand: -1, want: k.want, local: k.remote, remote: k.local, fresh: true}
		if k.over() { // who it was is forgotten
			peer.local = netip.AddrPortFrom(k.local.Addr(), 0)
		}
	}
	server, client := k, peer
	if c.listener(k) == nil && (c.listener(peer) != nil || c.chosen(k.local.Port()) || k.peer == nil) {
		server, client = peer, k
	}
	err := c.connect(ctx, client, server)
	if k.peer == nil {
		k.stand = peer.fd
	}
	if err == nil {
		err = widen(ctx, peer, k, len(k.want.Recv))
	}
	if err == nil && k.peer != nil {
		err = widen(ctx, k, peer, len(peer.want.Recv))
	}
	return err
}

// connect makes one connection.
func (c *connector) connect(ctx context.Context, client, server *socket) error {
	listener, to, err := c.listen(server, server.local.Port() == 0)
	if err != nil {
		return err
	}
	if err := c.client(ctx, client, to); err != nil {
		return err
	}
	if server.fd, err = c.accept(ctx, client, listener); err != nil {
		return err
	}
	if server.cookie, err = server.sys.SockCookie(server.fd); err != nil {
		return err
	}
	if err := server.common(false); err != nil {
		return err
	}
	return errors.Join(client.lockBuffers(), server.lockBuffers())
}

// chosen reports whether connect would choose the port by itself.
func (c *connector) chosen(port uint16) bool { return port >= c.low && port <= c.high && c.low > 0 }

// listener returns the listener of the record that server was accepted from.
func (c *connector) listener(server *socket) *socket {
	var any *socket
	for _, l := range c.r.sockets {
		if l.want.State != stateListen || l.local.Port() != server.local.Port() || l.want.Family != server.want.Family {
			continue
		}
		if l.local.Addr() == server.local.Addr() {
			return l
		}
		if l.local.Addr().IsUnspecified() {
			any = l
		}
	}
	return any
}

// listen returns a listener for server, and the address to connect to.
func (c *connector) listen(server *socket, anyPort bool) (fd int, to netip.AddrPort, err error) {
	if l := c.listener(server); l != nil {
		return l.fd, server.local, nil
	}
	at := server.local
	sys := c.r.streams.sys
	fd, ok := c.temporary[at]
	if !ok {
		if fd, err = sys.Socket(-1, server.want.Family); err != nil {
			return -1, at, err
		}
		c.temporary[at] = fd
		if err := sys.SetSockInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return -1, at, err
		}
		if err := sys.Bind(fd, sockaddr(server.want.Family, at)); err != nil {
			return -1, at, taken(at, err)
		}
		if err := sys.Listen(fd, 1); err != nil {
			return -1, at, err
		}
	}
	if !anyPort {
		return fd, at, nil
	}
	sa, err := sys.SockName(fd)
	if err != nil {
		return -1, at, err
	}
	to, err = addrPort(sa)
	return fd, to, err
}

// client makes a socket and connects it to an address, where somebody listens.
func (c *connector) client(ctx context.Context, k *socket, to netip.AddrPort) error {
	begin := time.Now()
	for {
		err := c.tryClient(ctx, k, to, time.Since(begin) > forgetLimit)
		if err == nil {
			k.cookie, err = k.sys.SockCookie(k.fd)
			return err
		}
		if k.fd >= 0 {
			err = errors.Join(err, k.sys.Close(k.fd))
			k.fd = -1
		}
		if !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EADDRINUSE) || time.Since(begin) > 2*forgetLimit {
			return taken(k.local, err)
		}
		if gone := k.sys.TCPDestroy(k.netns, tuple(k.want.Family, k.local, to)); gone == nil {
			continue // permitted to CAP_NET_ADMIN
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

func (c *connector) tryClient(ctx context.Context, k *socket, to netip.AddrPort, insist bool) (err error) {
	if k.fd, err = k.sys.Socket(k.netns, k.want.Family); err != nil {
		return err
	}
	if err := k.common(false); err != nil {
		return err
	}
	// Without, a socket that answered requests would keep the last step of the
	// handshake back for a while.
	if err := k.sys.SetSockInt(k.fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1); err != nil {
		return err
	}
	if err := c.choosePort(k, to, insist); err != nil {
		return err
	}
	if err := k.sys.StartConnect(k.fd, sockaddr(k.want.Family, to)); err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	for {
		ready, err := k.sys.Poll(k.fd, unix.POLLOUT, int(pollSlice.Milliseconds()))
		if err != nil {
			return err
		}
		if ready&(unix.POLLERR|unix.POLLHUP) != 0 {
			no, err := k.sys.SockInt(k.fd, unix.SOL_SOCKET, unix.SO_ERROR)
			return errors.Join(fmt.Errorf("connect to %v: %w", to, unix.Errno(no)), err) //nolint:gosec // an errno
		}
		if ready&unix.POLLOUT != 0 {
			break
		}
		if limit.Err() != nil {
			return fmt.Errorf("connect to %v: %w", to, context.Cause(limit))
		}
	}
	if k.over() {
		return nil // who it was is forgotten
	}
	return k.verifyLocal(true)
}

// choosePort gives k its old address, the way it got it: a port that connect
// had chosen is not bound, unless insist.
func (c *connector) choosePort(k *socket, to netip.AddrPort, insist bool) error {
	if !insist && c.chosen(k.local.Port()) {
		if k.local.Addr() != to.Addr() {
			if err := k.sys.SetSockInt(k.fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
				return err
			}
			if err := k.sys.Bind(k.fd, sockaddr(k.want.Family, netip.AddrPortFrom(k.local.Addr(), 0))); err != nil {
				return err
			}
		}
		err := k.sys.PreferPort(k.fd, k.local.Port())
		if !unknownOption(err) {
			return err
		}
	}
	if err := k.sys.SetSockInt(k.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	return k.sys.Bind(k.fd, sockaddr(k.want.Family, k.local))
}

// accept takes the connection of client out of a listener's queue. Programs
// from outside that were faster are turned away, as a restarting server does.
func (c *connector) accept(ctx context.Context, client *socket, listener int) (int, error) {
	if err := client.sys.PreferPort(client.fd, 0); err != nil && !unknownOption(err) {
		return -1, err
	}
	sa, err := client.sys.SockName(client.fd)
	if err != nil {
		return -1, err
	}
	want, err := addrPort(sa)
	if err != nil {
		return -1, err
	}
	limit, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	for {
		fd, ok, err := client.sys.Accept(listener)
		if err != nil {
			return -1, err
		}
		if ok {
			ours, err := client.cameFrom(fd, want)
			if err == nil && ours {
				return fd, nil
			}
			if err = errors.Join(err, client.sys.Close(fd)); err != nil {
				return -1, err
			}
			continue
		}
		if limit.Err() != nil {
			return -1, fmt.Errorf("accept: %w", context.Cause(limit))
		}
		if _, err := client.sys.Poll(listener, unix.POLLIN, int(pollSlice.Milliseconds())); err != nil {
			return -1, err
		}
	}
}

// cameFrom reports whether an accepted connection is that of want.
func (k *socket) cameFrom(fd int, want netip.AddrPort) (bool, error) {
	sa, err := k.sys.PeerName(fd)
	if errors.Is(err, unix.ENOTCONN) { // reset already
		return false, nil
	}
	if err != nil {
		return false, err
	}
	have, err := addrPort(sa)
	return have == want, err
}

// Connections start with small buffers, which grow with their use.
const (
	narrow     = 32 << 10 // what every connection takes
	widenTurns = 64
)

// widen uses a new connection until it takes n bytes in one direction that
// nobody reads.
func widen(ctx context.Context, from, to *socket, n int) error {
	if n <= narrow {
		return nil
	}
	way := &end{sys: from.sys, fd: from.fd, peer: &end{fd: to.fd}}
	junk := make([]byte, 64<<10)
	for range widenTurns {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		took := 0
		for took < n+n/4 {
			k, err := from.sys.Send(from.fd, junk)
			if err != nil {
				return err
			}
			if took += k; k > 0 {
				continue
			}
			ready, err := from.sys.Poll(from.fd, unix.POLLOUT, 1)
			if err != nil {
				return err
			}
			if ready&unix.POLLOUT == 0 {
				break
			}
		}
		for done := false; !done; {
			var err error
			if _, done, err = drainOnce(way); err != nil {
				return err
			}
		}
		if took >= n+n/4 {
			return nil
		}
	}
	return fmt.Errorf("no room for %d bytes on their way: %w", n, unix.ENOBUFS)
}
