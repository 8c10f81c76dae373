package migrate

import (
	"errors"
	"fmt"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/stream/message"
)

// isMessage reports whether descriptions of kind k are made by package message.
func isMessage(k image.FDKind) bool {
	return k == image.FDUnix || k == image.FDUnixPair || k == image.FDUDP
}

// buildSockets makes the unix and UDP sockets with their messages. It comes
// last: messages may carry any other description.
func (b *builder) buildSockets() (err error) {
	pairs := message.NewUnix(b.cfg.Sys, b.m.Descriptions, nil)
	defer func() { err = errors.Join(err, pairs.Close()) }()
	udp, err := message.NewUDP(b.cfg.Sys, b.m.Descriptions)
	if err != nil {
		return err
	}
	err = errors.Join(pairs.Make(), udp.Make())
	for id := 1; id <= len(b.m.Descriptions); id++ {
		fd := udp.FD(id)
		if k := pairs.Socket(id); k != nil {
			fd = k.FD
		}
		if fd >= 0 {
			err = errors.Join(err, b.keepFD(id, fd, nil)) // also after a failure, to be closed
		}
	}
	if err != nil {
		return err
	}
	err = pairs.Fill(func(desc int) (int, error) {
		fd, ok := b.fds[desc]
		if !ok {
			return -1, fmt.Errorf("%w: no description %d", image.ErrCorrupt, desc)
		}
		return fd, nil
	})
	if err = errors.Join(err, udp.Fill()); err != nil {
		return err
	}
	for id := 1; id <= len(b.m.Descriptions); id++ {
		if d := b.m.Description(id); isMessage(d.Kind) {
			if err := setFlags(b.fds[id], d.Flags); err != nil {
				return err
			}
		}
	}
	return nil
}
