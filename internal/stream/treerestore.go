package stream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// How long the parts of a connection that is made anew may take.
const (
	// connectLimit is for the three steps of the handshake, which need no
	// network.
	connectLimit = 5 * time.Second
	// forgetLimit is how long addresses are waited for that the kernel has not
	// forgotten: it gives those of loopback connections free after a second.
	forgetLimit = 3 * time.Second
)

// restoreTree puts the sockets of a tree back: see NewTree. Connections whose
// two ends are as they were are emptied and stay; all others are connected
// anew.
func (r *Restored) restoreTree(ctx context.Context) error {
	for _, e := range r.rec.Ends {
		k := &socket{sys: r.streams.sys, netns: r.streams.netns, fd: -1, stand: -1, flags: e.Flags, want: e.TCP, fresh: true}
		if err := k.parse(); err != nil {
			return k.named("parse", err)
		}
		r.sockets = append(r.sockets, k)
		r.byOld[e.TCP.Cookie] = k
	}
	r.pairUp()
	kept := r.match()
	if err := r.live.cut(kept); err != nil {
		return err
	}
	for _, k := range r.sockets {
		if k.fresh {
			continue
		}
		if err := k.named("empty", k.empty(ctx)); err != nil {
			return err
		}
	}
	for _, k := range r.sockets {
		if k.connected() {
			continue
		}
		if err := k.named("make", k.plain()); err != nil {
			return err
		}
	}
	if err := r.connectAll(ctx); err != nil {
		return err
	}
	r.streams.log.Debug().Int("sockets", len(r.sockets)).Int("fresh", r.fresh()).
		Int64("size_bytes", r.rec.Bytes()).Msg("connections of a tree put back")
	return nil
}

// pairUp joins the two ends of every connection.
func (r *Restored) pairUp() {
	ends := map[flow]*socket{}
	for _, k := range r.sockets {
		if k.want.Remote != "" {
			ends[flow{k.local, k.remote}] = k
		}
	}
	for _, k := range r.sockets {
		if k.want.Remote != "" && !k.want.Pending && !k.want.PeerGone {
			k.peer = ends[flow{k.local, k.remote}.reverse()]
		}
	}
}

// match finds the live sockets that can become what they were, and returns
// them.
func (r *Restored) match() map[*end]bool {
	kept := map[*end]bool{}
	byFlow := map[flow]*end{}
	for _, e := range r.live.ends {
		byFlow[flow{e.local, e.remote}] = e
	}
	find := func(k *socket) *end {
		e := r.live.byCookie[k.want.Cookie]
		if e == nil { // rebuilt since the image was made
			e = byFlow[flow{k.local, k.remote}]
		}
		if e == nil || kept[e] || !k.suits(e) {
			return nil
		}
		return e
	}
	keep := func(k *socket, e *end) {
		k.fd, k.cookie, k.fresh = e.fd, e.tcp.Cookie, false
		kept[e] = true
	}
	for _, k := range r.sockets {
		if !k.fresh || k.connected() && k.peer == nil {
			continue
		}
		e := find(k)
		if e == nil {
			continue
		}
		if k.peer == nil {
			keep(k, e)
		} else if p := find(k.peer); p != nil && e.peer == p {
			keep(k, e)
			keep(k.peer, p)
		}
	}
	return kept
}

// suits reports whether the live socket e can stay in the place of k.
func (k *socket) suits(e *end) bool {
	if e.tcp.Family != k.want.Family || e.local != k.local || len(e.refused) > 0 && e.tcp.State != stateListen {
		return false
	}
	switch {
	case k.want.State == stateListen:
		return e.tcp.State == stateListen
	case !k.connected():
		return e.tcp.State == stateClose && !e.over
	}
	ready, err := e.sys.Poll(e.fd, unix.POLLRDHUP, 0)
	return err == nil && ready&(unix.POLLRDHUP|unix.POLLERR|unix.POLLHUP) == 0 && e.remote == k.remote &&
		e.tcp.State == stateEstablished && k.want.State == stateEstablished && !k.want.EOF && !k.want.Closed
}

// cut ends the connections of a tree that do not stay, drops what waits to be
// accepted, and makes way for sockets with the same addresses.
func (set *Set) cut(kept map[*end]bool) error {
	for _, e := range set.ends {
		err := func() error {
			if e.tcp.State == stateListen {
				if err := reject(e); err != nil {
					return err
				}
			}
			if !kept[e] {
				if err := e.sys.Disconnect(e.fd); err != nil {
					return err
				}
				if _, err := e.sys.SockInt(e.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil { // reading clears it
					return err
				}
			}
			return e.sys.SetSockInt(e.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}()
		if err != nil {
			return fmt.Errorf("stream: cut %s: %w", e.name(), err)
		}
	}
	return nil
}

// reject resets what waits to be accepted.
func reject(listener *end) error {
	for {
		fd, ok, err := listener.sys.Accept(listener.fd)
		if err != nil || !ok {
			return err
		}
		err = listener.sys.SetSockLinger(fd, true, 0)
		if err = errors.Join(err, listener.sys.Close(fd)); err != nil {
			return err
		}
	}
}

// empty discards what is on its way to k, and gives k its options.
func (k *socket) empty(ctx context.Context) error {
	if k.peer == nil {
		return nil
	}
	from := &end{sys: k.sys, fd: k.peer.fd, peer: &end{fd: k.fd}}
	limit, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	if err := k.sys.SetSockInt(k.peer.fd, unix.IPPROTO_TCP, unix.TCP_CORK, 0); err != nil {
		return err
	}
	for {
		_, done, err := drainOnce(from)
		if err != nil {
			return err
		}
		if done {
			return k.common(false)
		}
		if limit.Err() != nil {
			return context.Cause(limit)
		}
	}
}

// plain makes a listener, or a socket that was not connected.
func (k *socket) plain() error {
	if !k.fresh { // its options follow at the release
		return k.undefer()
	}
	if err := k.create(); err != nil {
		return err
	}
	if err := k.common(k.want.State == stateListen); err != nil {
		return err
	}
	if err := k.undefer(); err != nil {
		return err
	}
	if k.local.Port() != 0 {
		if err := k.sys.SetSockInt(k.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := k.sys.Bind(k.fd, sockaddr(k.want.Family, k.local)); err != nil {
			return taken(k.local, err)
		}
	}
	if k.want.State != stateListen {
		return nil
	}
	return k.sys.Listen(k.fd, k.want.Backlog)
}

// undefer lets a listener accept what has sent nothing yet.
func (k *socket) undefer() error {
	if k.want.State != stateListen {
		return nil
	}
	return k.sys.SetSockInt(k.fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 0)
}

// taken says in words what an address in use means here.
func taken(a netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("another program has address %v, or the kernel has not forgotten its last connections: %w", a, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("address %v cannot be had here: %w", a, err)
	}
	return err
}

// endTree writes what was on its way and ends the streams that had ended; the
// sockets get the rest of their options. It is the release of a tree.
func (r *Restored) endTree(ctx context.Context) error {
	for _, k := range r.sockets {
		if k.connected() {
			if err := k.named("refill", k.refillTree(ctx)); err != nil {
				return err
			}
		}
	}
	for _, k := range r.sockets {
		if err := k.named("finish", k.finishTree(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// refillTree writes what k had not read, from the other end.
func (k *socket) refillTree(ctx context.Context) error {
	from := k.stand
	if k.peer != nil {
		from = k.peer.fd
	}
	for k.sent < len(k.want.Recv) {
		n, err := k.sys.Send(from, k.want.Recv[k.sent:])
		if err != nil {
			return err
		}
		if k.sent += n; n > 0 {
			continue
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%d of %d bytes written: %w", k.sent, len(k.want.Recv), context.Cause(ctx))
		}
		if _, err := k.sys.Poll(from, unix.POLLOUT, int(pollSlice.Milliseconds())); err != nil {
			return err
		}
	}
	return nil
}

// finishTree ends what had ended, and sets the options that had to wait.
func (k *socket) finishTree(ctx context.Context) error {
	if k.released {
		return nil
	}
	listener := k.want.State == stateListen
	if k.stand >= 0 {
		if err := k.leave(ctx); err != nil {
			return err
		}
	}
	if k.connected() && k.want.Closed {
		if err := k.sys.Shutdown(k.fd, unix.SHUT_WR); err != nil && !errors.Is(err, unix.ENOTCONN) {
			return err
		}
	}
	if k.peer != nil && k.want.EOF && !k.peer.want.Closed {
		if err := k.sys.Shutdown(k.fd, unix.SHUT_RD); err != nil && !errors.Is(err, unix.ENOTCONN) {
			return err
		}
	}
	if err := k.common(listener); err != nil {
		return err
	}
	if listener {
		if err := k.sys.Listen(k.fd, k.want.Backlog); err != nil { // sets the backlog only
			return err
		}
		if n := k.want.Options[optFastOpen]; n > 0 {
			if err := k.sys.SetSockInt(k.fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, n); err != nil {
				return err
			}
		}
	}
	if reuse, ok := k.want.Options[optReuseAddr]; ok {
		if err := k.sys.SetSockInt(k.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse); err != nil {
			return err
		}
	}
	if k.want.Options[optCork] != 0 {
		if err := k.sys.SetSockInt(k.fd, unix.IPPROTO_TCP, unix.TCP_CORK, 1); err != nil {
			return err
		}
	}
	k.released = true
	return k.lockBuffers()
}

// leave lets the end go that stands in for one that nobody has any more.
func (k *socket) leave(ctx context.Context) error {
	if k.want.Reset {
		if err := k.sys.SetSockLinger(k.stand, true, 0); err != nil {
			return err
		}
	}
	err := k.sys.Close(k.stand)
	if k.stand = -1; err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	for {
		ready, err := k.sys.Poll(k.fd, unix.POLLRDHUP, int(pollSlice.Milliseconds()))
		if err != nil || ready&unix.POLLRDHUP != 0 {
			return err
		}
		if limit.Err() != nil {
			return fmt.Errorf("the end of the stream did not arrive: %w", context.Cause(limit))
		}
	}
}
