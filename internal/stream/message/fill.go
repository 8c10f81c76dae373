package message

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
)

// Fill sends what was on its way, when every description exists: fd gives our
// descriptor of one. Streams that had ended are ended, and all sockets get
// their options.
//
// Expected errors: kernel errors with EAGAIN (no room for the messages).
func (x *Unix) Fill(fd func(desc int) (int, error)) error {
	for _, id := range x.ids {
		k := x.sockets[id]
		if k.FD < 0 {
			continue
		}
		if err := x.fill(k, fd); err != nil {
			return fmt.Errorf("unix socket %s: %w", k.name(), err)
		}
	}
	for _, id := range x.ids {
		k := x.sockets[id]
		if k.FD < 0 {
			continue
		}
		if err := x.finish(k); err != nil {
			return fmt.Errorf("unix socket %s: %w", k.name(), err)
		}
	}
	return nil
}

// Close lets go of what is ours; sockets that Make made are the caller's.
func (x *Unix) Close() error {
	var errs []error
	for _, id := range x.ids {
		if k := x.sockets[id]; k.stand >= 0 {
			errs = append(errs, x.sys.Close(k.stand))
			k.stand = -1
		}
	}
	for name, l := range x.temporary {
		errs = append(errs, x.sys.Close(l.FD))
		if l.Want.Deleted {
			errs = append(errs, kernel.InDirectory(l.Want.NameDir, func() error { return unix.Unlink(name) }))
		}
		delete(x.temporary, name)
	}
	return errors.Join(errs...)
}

func (x *Unix) fill(k *UnixSocket, fd func(desc int) (int, error)) error {
	rights := map[int][]int{}
	for _, p := range k.Want.Passed {
		for _, desc := range p.Descs {
			n, err := fd(desc)
			if err != nil {
				return err
			}
			rights[p.Message] = append(rights[p.Message], n)
		}
	}
	if len(k.Want.Queue) == 0 {
		return nil
	}
	total := 0
	for _, m := range k.Want.Queue {
		total += len(m)
	}
	var nobody int = -1 // a socket without a name
	defer func() {
		if nobody >= 0 {
			_ = x.sys.Close(nobody) // its messages have arrived
		}
	}()
	for i, m := range k.Want.Queue {
		from, to, err := x.sender(k, i, &nobody)
		if err != nil {
			return err
		}
		send := func() error {
			n, err := x.sys.GiveMessage(from, m, rights[i], to)
			if err == nil && n < len(m) {
				err = unix.EAGAIN
			}
			if err != nil {
				return fmt.Errorf("put back a message of %d bytes: %w", len(m), err)
			}
			return nil
		}
		if to != nil {
			err = kernel.InDirectory(k.Want.NameDir, func() error { return x.roomy(from, total, send) })
		} else {
			err = x.roomy(from, total, send)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sender returns the socket that sends message i of k's queue again, and the
// address to send it to, nil for a connected one.
func (x *Unix) sender(k *UnixSocket, i int, nobody *int) (fd int, to unix.Sockaddr, err error) {
	if k.stand >= 0 {
		return k.stand, nil, nil
	}
	peer := x.sockets[k.Want.Peer]
	var from []byte
	if i < len(k.Want.From) {
		from = k.Want.From[i]
	}
	if k.Want.Type != unix.SOCK_DGRAM || len(k.Want.Name) == 0 {
		if peer == nil || peer.FD < 0 {
			return -1, nil, fmt.Errorf("%w: messages without a sender", image.ErrCorrupt)
		}
		return peer.FD, nil, nil
	}
	to = address(k.Want.Name)
	if len(from) > 0 {
		for _, id := range x.ids {
			if s := x.sockets[id]; s.FD >= 0 && s.Want.Type == unix.SOCK_DGRAM && bytes.Equal(s.Want.Name, from) {
				return s.FD, to, nil
			}
		}
		return -1, nil, fmt.Errorf("%w: no socket has the name %q of a sender", image.ErrMismatch, from)
	}
	if peer != nil && peer.Want.Peer != 0 && x.sockets[peer.Want.Peer] == k && len(peer.Want.Name) == 0 {
		return peer.FD, to, nil
	}
	if *nobody < 0 {
		if *nobody, err = x.sys.NewSocket(unix.AF_UNIX, unix.SOCK_DGRAM); err != nil {
			return -1, nil, err
		}
	}
	return *nobody, to, nil
}

// roomy runs fn while the send buffer of fd takes total bytes at once.
func (x *Unix) roomy(fd, total int, fn func() error) (err error) {
	old, err := x.sys.SockInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil || 2*total+bufferSlack <= old {
		return errors.Join(err, fn())
	}
	// The kernel doubles what is set, and caps it.
	if err := x.sys.SetSockInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 2*total+bufferSlack); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.sys.SetSockInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, old/2)) }()
	return fn()
}

// bufferSlack is what the kernel's bookkeeping of messages takes, about.
const bufferSlack = 64 << 10

// finish ends what had ended.
func (x *Unix) finish(k *UnixSocket) error {
	if k.stand >= 0 {
		err := x.sys.Close(k.stand)
		if k.stand = -1; err != nil {
			return err
		}
	}
	if k.Want.ShutR {
		if err := x.sys.Shutdown(k.FD, unix.SHUT_RD); err != nil {
			return err
		}
	}
	if k.Want.ShutW {
		if err := x.sys.Shutdown(k.FD, unix.SHUT_WR); err != nil {
			return err
		}
	}
	return writeOptions(x.sys, k.Want.Options, k.FD, unix.AF_UNIX)
}
