package migrate

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
)

// buildUnix makes both ends of a socketpair with what each had not read.
func (b *builder) buildUnix(id int, d *image.Description) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, d.Unix.Type|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	ends := [2]*os.File{os.NewFile(uintptr(fds[0]), "unix"), os.NewFile(uintptr(fds[1]), "unix")}
	peer := b.m.Description(d.Unix.Peer)
	if peer != nil && peer.Unix == nil {
		peer = nil
	}
	b.keep(id, ends[0])
	if peer != nil {
		b.keep(d.Unix.Peer, ends[1])
	} else {
		defer ends[1].Close() //nolint:errcheck // the end that was closed before
	}
	if err := writeQueue(fds[1], d.Unix.Queue); err != nil {
		return err
	}
	if peer != nil {
		if err := writeQueue(fds[0], peer.Unix.Queue); err != nil {
			return err
		}
		if err := endUnix(fds[1], peer); err != nil {
			return err
		}
	}
	return endUnix(fds[0], d)
}

// writeQueue sends messages; the buffers must take them all.
func writeQueue(fd int, queue [][]byte) error {
	total := 0
	for _, m := range queue {
		total += len(m)
	}
	if total == 0 && len(queue) == 0 {
		return nil
	}
	old, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return fmt.Errorf("socket buffer: %w", err)
	}
	// The kernel doubles the value and caps it; what does not fit is an error below.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, max(old/2, 2*total)); err != nil {
		return fmt.Errorf("socket buffer: %w", err)
	}
	for _, m := range queue {
		n, err := unix.SendmsgN(fd, m, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == nil && n < len(m) {
			err = unix.ENOBUFS
		}
		if err != nil {
			return fmt.Errorf("put back %d bytes in a socket: %w", total, err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, old/2); err != nil {
		return fmt.Errorf("socket buffer: %w", err)
	}
	return nil
}

func endUnix(fd int, d *image.Description) error {
	var err error
	if d.Unix.ShutR {
		err = unix.Shutdown(fd, unix.SHUT_RD)
	}
	if d.Unix.ShutW {
		err = errors.Join(err, unix.Shutdown(fd, unix.SHUT_WR))
	}
	if err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	return setFlags(fd, d.Flags)
}
