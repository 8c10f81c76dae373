package pause

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/stream/message"
)

// unsupportedSocket is the obstacle of sockets that nothing here knows.
const unsupportedSocket = "this kind of socket is not supported"

// identifyOther admits unix and UDP sockets.
func (t *fileTable) identifyOther(o *openFile, id identity) (_ identity, _ *kernel.UnixInfo, why string, err error) {
	fd, err := t.dup(o)
	if err != nil {
		return id, nil, "", err
	}
	defer func() { _ = unix.Close(fd) }() // a duplicate
	domain, err := t.sys.SockInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return id, nil, "", err
	}
	protocol, err := t.sys.SockInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	switch {
	case err != nil:
		return id, nil, "", err
	case protocol == unix.IPPROTO_UDP && (domain == unix.AF_INET || domain == unix.AF_INET6):
		id.kind = image.FDUDP
		id.name, err = message.UDPName(t.sys, fd)
		return id, nil, "", err
	case domain != unix.AF_UNIX:
		return id, nil, unsupportedSocket, nil
	}
	info, err := t.sys.UnixSocket(o.stat.Ino)
	if errors.Is(err, unix.ENOENT) {
		return id, nil, "unix socket that the kernel does not describe", nil
	}
	if err != nil {
		return id, nil, "", err
	}
	id.kind = image.FDUnix
	if info.Peered && !info.Named {
		id.kind = image.FDUnixPair
	}
	return id, &info, "", nil
}

// captureSockets describes the unix sockets and what is in them. It comes
// before all else: descriptors on their way belong to the inventory.
func (t *fileTable) captureSockets(obs *obstacles) error {
	waiting := map[uint64]bool{}
	for _, d := range t.descs {
		if d.unix != nil {
			for _, ino := range d.unix.Waiting {
				waiting[ino] = true
			}
		}
	}
	for i := 0; i < len(t.descs); i++ { // it grows
		d := t.descs[i]
		var err error
		o := d.holders[0]
		switch {
		case d.unix != nil:
			err = t.captureUnix(d, o, waiting, obs)
		case d.Kind == image.FDUDP:
			err = t.captureUDP(d, o, obs)
		}
		if err != nil {
			return fmt.Errorf("rank %d descriptor %d (%s): %w", o.p.rank, o.num, o.link, err)
		}
	}
	return nil
}

func (t *fileTable) captureUDP(d *description, o *openFile, obs *obstacles) error {
	return t.withDup(d, func(fd int) error {
		u, why, err := message.DescribeUDP(t.sys, fd)
		if why != "" {
			obs.addRetry(o.p, "descriptor %d (%s): %s", o.num, o.link, why)
		}
		d.UDP = u
		return err
	})
}

// captureUnix describes one unix socket and copies what it has not read.
func (t *fileTable) captureUnix(d *description, o *openFile, waiting map[uint64]bool, obs *obstacles) error {
	cwd, err := os.Readlink("/proc/" + strconv.Itoa(o.p.pid) + "/cwd")
	if err != nil {
		return err
	}
	return t.withDup(d, func(fd int) error {
		u, why, err := message.DescribeUnix(t.sys, fd, d.unix, cwd)
		if err != nil {
			return err
		}
		d.Unix = u
		if why != "" {
			obs.add(o.p, "descriptor %d (%s): %s", o.num, o.link, why)
		}
		if u.Listen {
			t.captureWaiting(d, o, obs)
			return nil
		}
		if d.unix.Peered {
			if err := t.capturePeer(d, o, fd, waiting[o.stat.Ino], obs); err != nil {
				return err
			}
		}
		return t.captureQueue(d, o, fd, obs)
	})
}

// captureWaiting finds the sockets that wait to be accepted.
func (t *fileTable) captureWaiting(d *description, o *openFile, obs *obstacles) {
	for _, ino := range d.unix.Waiting {
		n := t.byInode(ino)
		if n == 0 {
			obs.addRetry(o.p, "descriptor %d (%s): a connection from outside of the processes waits to be accepted", o.num, o.link)
			continue
		}
		d.Unix.Waiting = append(d.Unix.Waiting, n)
	}
}

// capturePeer finds the other end of a connected socket.
func (t *fileTable) capturePeer(d *description, o *openFile, fd int, waits bool, obs *obstacles) error {
	u := d.Unix
	datagram := u.Type == unix.SOCK_DGRAM
	switch {
	case d.unix.PeerIno != 0:
		u.Peer = t.byInode(d.unix.PeerIno)
		if u.Peer == 0 && !(datagram && len(u.Remote) > 0) {
			to := "the other end"
			if len(u.Remote) > 0 {
				to = strconv.Quote(string(u.Remote))
			}
			obs.add(o.p, "descriptor %d (%s): connected to %s, which is in no captured process", o.num, o.link, to)
		}
	case waits:
		n, err := t.sys.SockIoctl(fd, unix.SIOCOUTQ)
		if err != nil {
			return err
		}
		if n > 0 {
			obs.addRetry(o.p, "descriptor %d (%s): data waits behind a connection that was not accepted yet", o.num, o.link)
		}
	case datagram && len(u.Remote) > 0: // who had the name is gone; who has it later is found again
		u.Remote = nil
	default: // closed
		u.Gone, u.ShutR, u.ShutW = true, false, false
	}
	return nil
}

// captureQueue copies the messages that were not read, and takes the
// descriptors that come with them into the inventory.
func (t *fileTable) captureQueue(d *description, o *openFile, fd int, obs *obstacles) error {
	q, err := message.Peek(t.sys, fd, d.Unix.Type, true)
	if errors.Is(err, message.ErrCredentials) {
		obs.add(o.p, "descriptor %d (%s): %v", o.num, o.link, err)
		return nil
	}
	if err != nil {
		return err
	}
	for _, list := range q.Rights {
		t.passed = append(t.passed, list...)
	}
	d.Unix.Queue, d.Unix.From = q.Messages, q.Names()
	for _, from := range d.Unix.From {
		if len(from) > 0 && !t.hasName(from) {
			obs.addRetry(o.p, "descriptor %d (%s): an unread message came from %q, which no captured process has", o.num, o.link, from)
		}
	}
	d.Unix.Passed, err = q.Passed(func(n int) (int, error) { return t.lookPassed(n, o, obs) })
	return err
}

// hasName reports whether a datagram socket of the table has a name.
func (t *fileTable) hasName(name []byte) bool {
	return slices.ContainsFunc(t.descs, func(d *description) bool {
		return d.unix != nil && d.unix.Type == unix.SOCK_DGRAM && string(d.unix.Name) == string(name)
	})
}

// lookPassed takes a descriptor that is on its way, and now ours, into the
// inventory and returns the number of its description.
func (t *fileTable) lookPassed(fd int, through *openFile, obs *obstacles) (int, error) {
	self := os.Getpid()
	if _, ok := t.pidfds[self]; !ok {
		n, err := t.sys.PidfdOpen(self)
		if err != nil {
			return 0, err
		}
		t.pidfds[self] = n
	}
	found := &obstacles{}
	o := &openFile{p: &process{rank: through.p.rank, pid: self}, num: fd}
	if err := t.look(o, t.externals, t.set, found); err != nil {
		return 0, err
	}
	if len(found.list) > 0 {
		obs.add(through.p, "descriptor %d (%s): a descriptor on its way through it, %s, cannot be kept", through.num, through.link, o.link)
	}
	return o.desc, nil
}

// addRetry adds an obstacle that may be gone soon.
func (o *obstacles) addRetry(p *process, format string, a ...any) {
	retry := o.retry
	o.add(p, format, a...)
	o.retry = retry
}

// byInode returns the number of the unix socket's description, or 0.
func (t *fileTable) byInode(ino uint64) int {
	for i, d := range t.descs {
		if d.unix != nil && d.id.ino == ino {
			return i + 1
		}
	}
	return 0
}
