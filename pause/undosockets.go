package pause

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/stream/message"
)

// splitSockets gives up live unix sockets that cannot become what they were.
func (pl *filePlan) splitSockets() {
	waits := map[int]bool{}
	for i := range pl.descs {
		if u := pl.descs[i].want.Unix; u != nil {
			for _, id := range u.Waiting {
				waits[id] = true
			}
		}
	}
	for i := range pl.descs {
		d := &pl.descs[i]
		if d.want.Unix == nil || d.live == nil {
			continue
		}
		if peer := pl.unixPeer(d); !pl.stays(d, peer) || waits[i+1] {
			d.live = nil
			if peer != nil && pl.unixPeer(peer) == d {
				peer.live = nil
			}
		}
	}
}

// stays reports whether the live socket of d can become what it was.
func (pl *filePlan) stays(d, peer *planned) bool {
	want, live := d.want.Unix, d.live.unix
	if want.Type != live.Type || string(want.Name) != string(live.Name) || live.Shutdown != 0 || want.ShutR || want.ShutW || want.Gone {
		return false
	}
	if len(want.Name) > 0 && want.Name[0] != 0 && !want.Deleted {
		path := string(want.Name)
		if want.NameDir != "" {
			path = filepath.Join(want.NameDir, path)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || uint32(st.Ino) != live.FileIno {
			return false // somebody took the name away
		}
	}
	switch {
	case want.Listen:
		return true
	case want.Type == unix.SOCK_DGRAM && (len(want.Remote) > 0 || want.Peer == 0):
		return true // it can be connected again, or not be
	case peer == nil:
		return !live.Peered
	}
	return peer.live != nil && live.PeerIno == peer.live.id.ino && peer.live.unix.Shutdown == 0 &&
		!peer.want.Unix.ShutR && !peer.want.Unix.ShutW
}

// unixPeer returns the other end of d, nil when it was closed at the epoch.
func (pl *filePlan) unixPeer(d *planned) *planned {
	if n := d.want.Unix.Peer; n >= 1 && n <= len(pl.descs) && pl.descs[n-1].want.Unix != nil {
		return &pl.descs[n-1]
	}
	return nil
}

// isMessage reports whether descriptions of kind k are made by package message.
func isMessage(k image.FDKind) bool {
	return k == image.FDUnix || k == image.FDUnixPair || k == image.FDUDP
}

// openSockets makes the unix and UDP sockets that do not live, and empties
// those that do.
func (pl *filePlan) openSockets() (err error) {
	mine := map[string]bool{}
	for _, l := range pl.live.descs {
		if l.unix != nil && len(l.unix.Name) > 0 {
			mine[string(l.unix.Name)] = true
		}
	}
	sys := pl.live.sys
	pl.unix = message.NewUnix(sys, pl.snap.descs, mine)
	if pl.udp, err = message.NewUDP(sys, pl.snap.descs); err != nil {
		return err
	}
	for i := range pl.descs {
		d := &pl.descs[i]
		switch {
		case d.fd < 0 || d.live == nil:
		case d.want.Unix != nil:
			pl.unix.Keep(i+1, d.fd)
		case d.want.UDP != nil:
			pl.udp.Keep(i+1, d.fd)
		}
	}
	if err := pl.makeWay(); err != nil {
		return err
	}
	err = errors.Join(pl.unix.Make(), pl.udp.Make())
	for i := range pl.descs {
		d := &pl.descs[i]
		switch {
		case d.fd >= 0:
		case d.want.Unix != nil:
			d.fd = pl.unix.Socket(i + 1).FD
		case d.want.UDP != nil:
			d.fd = pl.udp.FD(i + 1)
		}
	}
	return err
}

// makeWay lets sockets that are about to be closed share their addresses with
// those that take their place.
func (pl *filePlan) makeWay() error {
	stays := map[*description]bool{}
	for i := range pl.descs {
		stays[pl.descs[i].live] = true
	}
	for _, l := range pl.live.descs {
		if l.Kind != image.FDUDP || stays[l] {
			continue
		}
		err := pl.live.withDup(l, func(fd int) error {
			return message.Yield(pl.live.sys, fd)
		})
		if err != nil {
			return fmt.Errorf("make way: %w", err)
		}
	}
	return nil
}

// closeSockets lets go of what was there for the moment only.
func (pl *filePlan) closeSockets() error {
	if pl.unix == nil {
		return nil
	}
	return pl.unix.Close()
}

// loseSockets makes every rank with a unix or UDP socket a lost one when err is
// not nil: it is not known whose messages are missing.
func (pl *filePlan) loseSockets(lost *losses, err error) {
	if err == nil {
		return
	}
	pl.torn = true
	for i := range pl.descs {
		if d := &pl.descs[i]; isMessage(d.want.Kind) && d.holder.c != nil && !lost.has(d.holder.c.rank) {
			lost.add(d.holder.c.rank, err)
		}
	}
}

// fillSockets sends what was on its way.
func (pl *filePlan) fillSockets() error {
	if pl.torn {
		return nil
	}
	err := pl.unix.Fill(func(desc int) (int, error) {
		if desc < 1 || desc > len(pl.descs) || pl.descs[desc-1].fd < 0 {
			return -1, fmt.Errorf("%w: no description %d", image.ErrCorrupt, desc)
		}
		return pl.descs[desc-1].fd, nil
	})
	return errors.Join(err, pl.udp.Fill())
}

// holdPassed finds a process for the descriptions that were only on their way,
// whose files it leads to.
func (pl *filePlan) holdPassed(jobs []*undo) {
	for i := range pl.descs {
		u := pl.descs[i].want.Unix
		if u == nil || len(jobs) == 0 {
			continue
		}
		for _, p := range u.Passed {
			for _, id := range p.Descs {
				if d := &pl.descs[id-1]; d.holder.c == nil {
					d.holder = holder{c: jobs[0].c, num: -1}
				}
			}
		}
	}
}
