package pause

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
)

// unsupportedSocket is the obstacle of sockets that nothing here knows.
const unsupportedSocket = "this kind of socket is not supported"

// unixMessage bounds one message of a unix socket that is captured, in bytes;
// the kernel's own default limit is 208 KB.
const unixMessage = 4 << 20

// identifyUnix admits the ends of socketpairs: connected unix sockets without
// a name.
func (t *fileTable) identifyUnix(o *openFile, id identity) (identity, *kernel.UnixInfo, string) {
	fd, err := t.dup(o)
	if err != nil {
		return id, nil, unsupportedSocket
	}
	defer func() { _ = unix.Close(fd) }() // a duplicate
	if domain, err := t.sys.SockInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain != unix.AF_UNIX {
		return id, nil, unsupportedSocket
	}
	if listens, err := t.sys.SockInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens != 0 {
		return id, nil, "listening unix sockets are not supported"
	}
	info, err := t.sys.UnixSocket(o.stat.Ino)
	if err != nil {
		return id, nil, "unix socket that the kernel does not describe: " + err.Error()
	}
	if _, err := unix.Getpeername(fd); err != nil || info.Named {
		return id, nil, "unix sockets with names are not supported"
	}
	id.kind = image.FDUnixPair
	return id, &info, ""
}

// captureUnix describes one end and copies what it has not read.
func (t *fileTable) captureUnix(d *description, o *openFile, obs *obstacles) error {
	u := &image.UnixEnd{Type: d.unix.Type, ShutR: d.unix.Shutdown&1 != 0, ShutW: d.unix.Shutdown&2 != 0}
	d.Unix = u
	if d.unix.PeerIno != 0 {
		if u.Peer = t.byInode(d.unix.PeerIno); u.Peer == 0 {
			obs.add(o.p, "descriptor %d (%s): the other end of the socketpair is in no captured process", o.num, o.link)
			return nil
		}
	} else {
		u.ShutR, u.ShutW = false, false // follows from the close of the other end
	}
	return t.withDup(d, func(fd int) (err error) {
		u.Queue, err = peekUnix(fd, d.unix.Type)
		if errors.Is(err, errPassed) {
			obs.add(o.p, "descriptor %d (%s): %v", o.num, o.link, err)
			return nil
		}
		return err
	})
}

// byInode returns the number of the socket's description, or 0.
func (t *fileTable) byInode(ino uint64) int {
	for i, d := range t.descs {
		if d.id.kind == image.FDUnixPair && d.id.ino == ino {
			return i + 1
		}
	}
	return 0
}

var errPassed = errors.New("messages with descriptors or credentials are not supported")

// peekUnix copies the unread messages of fd; a stream's are one. The peek
// offset moves over messages and is put back.
// Source: unix(7), SO_PEEK_OFF.
func peekUnix(fd, typ int) (queue [][]byte, err error) {
	old, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err != nil {
		return nil, fmt.Errorf("peek offset: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return nil, fmt.Errorf("peek offset: %w", err)
	}
	defer func() {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, old))
	}()
	size := 256 << 10
	for {
		buf := make([]byte, size)
		n, _, flags, _, err := unix.Recvmsg(fd, buf, nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN), err == nil && n == 0:
			return queue, nil
		case err != nil:
			return nil, fmt.Errorf("peek: %w", err)
		case flags&unix.MSG_CTRUNC != 0:
			return nil, errPassed
		case flags&unix.MSG_TRUNC != 0:
			return nil, fmt.Errorf("a message of more than %d bytes: %w", size, errShort)
		}
		if typ == unix.SOCK_STREAM && len(queue) > 0 {
			queue[0] = append(queue[0], buf[:n]...)
		} else {
			queue = append(queue, buf[:n:n])
		}
		if len(queue) > 1<<16 {
			return nil, fmt.Errorf("more than %d messages: %w", len(queue), errShort)
		}
	}
}

// splitUnix gives up socketpairs whose live ends do not belong together, or
// that are closed for a direction, which cannot be filled again: those are made
// anew.
func (pl *filePlan) splitUnix() {
	for i := range pl.descs {
		d := &pl.descs[i]
		if d.want.Kind != image.FDUnixPair || d.live == nil {
			continue
		}
		want, peer := d.want.Unix, pl.unixPeer(d)
		ok := peer != nil && peer.live != nil && d.live.unix.PeerIno == peer.live.id.ino
		for _, e := range []*planned{d, peer} {
			ok = ok && e.live.unix.Type == want.Type && e.live.unix.Shutdown == 0 &&
				!e.want.Unix.ShutR && !e.want.Unix.ShutW
		}
		if !ok {
			d.live = nil
			if peer != nil {
				peer.live = nil
			}
		}
	}
}

// unixPeer returns the other end of d, nil when it was closed at the epoch.
func (pl *filePlan) unixPeer(d *planned) *planned {
	if n := d.want.Unix.Peer; n >= 1 && n <= len(pl.descs) && pl.descs[n-1].want.Unix != nil {
		return &pl.descs[n-1]
	}
	return nil
}

// createUnix makes a socketpair with its contents for d and its other end.
func (pl *filePlan) createUnix(d *planned) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, d.want.Unix.Type|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d.fd = fds[0]
	peer := pl.unixPeer(d)
	if peer == nil {
		return errors.Join(sendAll(fds[1], d.want.Unix.Queue), unix.Close(fds[1]))
	}
	peer.fd = fds[1]
	return nil
}

// resetUnix empties an end and fills it through the other one.
func (pl *filePlan) resetUnix(d *planned) error {
	peer := pl.unixPeer(d)
	if peer == nil {
		return nil // made anew, with its contents
	}
	buf := make([]byte, unixMessage)
	for {
		n, _, err := unix.Recvfrom(d.fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) || err == nil && n == 0 {
			break
		}
		if err != nil {
			return fmt.Errorf("drain: %w", err)
		}
	}
	return sendAll(peer.fd, d.want.Unix.Queue)
}

// endUnix closes directions of new pairs, once both ends are filled.
func (pl *filePlan) endUnix() error {
	for i := range pl.descs {
		d := &pl.descs[i]
		if d.want.Kind != image.FDUnixPair || d.live != nil || d.fd < 0 {
			continue
		}
		if d.want.Unix.ShutR {
			if err := unix.Shutdown(d.fd, unix.SHUT_RD); err != nil {
				return fmt.Errorf("shutdown: %w", err)
			}
		}
		if d.want.Unix.ShutW {
			if err := unix.Shutdown(d.fd, unix.SHUT_WR); err != nil {
				return fmt.Errorf("shutdown: %w", err)
			}
		}
	}
	return nil
}

// sendAll sends messages, all of which the buffers must take.
func sendAll(fd int, queue [][]byte) (err error) {
	total := 0
	for _, m := range queue {
		total += len(m)
	}
	if len(queue) == 0 {
		return nil
	}
	old, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return fmt.Errorf("socket buffer: %w", err)
	}
	// The kernel doubles what is set, and caps it.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, max(old/2, 2*total)); err != nil {
		return fmt.Errorf("socket buffer: %w", err)
	}
	defer func() {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, old/2))
	}()
	for _, m := range queue {
		n, err := unix.SendmsgN(fd, m, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == nil && n < len(m) {
			err = errShort
		}
		if err != nil {
			return fmt.Errorf("put back %d bytes: %w", total, err)
		}
	}
	return nil
}
