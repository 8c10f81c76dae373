package stream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
)

// Restored are the sockets of an epoch, put back and silent: nothing is sent
// before Release. It holds a duplicate of each; close it before the processes
// go on.
type Restored struct {
	streams *Streams
	rec     *Record
	live    *Set // owns the duplicates of sockets that were kept
	sockets []*socket
	byOld   map[uint64]*socket // by the identity in the record that was given
}

// socket is one end that comes back.
type socket struct {
	sys      *kernel.Sys
	netns    int
	gen      uint64
	fd       int
	fresh    bool // made by us: ours to close, and to be installed
	flags    int
	want     *image.TCPEnd // of the record: not changed
	local    netip.AddrPort
	remote   netip.AddrPort
	cookie   uint64 // of the socket as it now is
	sent     int    // bytes of want.Send (of a tree: want.Recv) written by Release
	released bool

	// Of trees.
	peer  *socket
	stand int // our descriptor that stands in for an end that nobody has; -1 for none
}

// Restore puts the TCP sockets of a pod back to what rec says. live is the
// inventory of the pod's frozen processes, or nil for a pod that is built anew;
// live sockets of the record stay the same sockets, the others are made new.
// Live connections that are not in the record are cut silently; closing their
// descriptors is the caller's part.
//
// gen must be equal in all pods of one recovery and another one in every
// recovery of the job.
//
// Nothing is undone on failure: live connections are gone then. The call can
// be repeated with the same record, after a new Scan.
//
// Precondition: the record was trimmed; the pod's addresses are up.
// Expected errors: kernel errors with EADDRNOTAVAIL, ENETUNREACH (address or
// route missing), EPERM, EMFILE; one that names the connection and says that a
// buffer is too small.
func (s *Streams) Restore(ctx context.Context, rec *Record, live *Set, gen uint64) (_ *Restored, err error) {
	if live == nil {
		live = &Set{streams: s}
	}
	r := &Restored{streams: s, rec: rec, live: live, byOld: make(map[uint64]*socket, len(rec.Ends))}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if s.local {
		if err := r.restoreTree(ctx); err != nil {
			return nil, err
		}
		return r, nil
	}
	if err := live.silence(ctx, rec); err != nil {
		return nil, err
	}
	for _, e := range rec.Ends {
		if err := r.add(e, gen); err != nil {
			return nil, err
		}
	}
	// Listeners first: a port can be listened on while connections use it only
	// if they all allow it, which those under repair do.
	for _, k := range r.sockets {
		if k.want.State == stateListen {
			if err := k.named("listen", k.listen()); err != nil {
				return nil, err
			}
		}
	}
	err = each(ctx, len(r.sockets), grain, func(i int) error {
		if k := r.sockets[i]; k.want.State != stateListen {
			return k.named("rebuild", k.build())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.log.Debug().Int("sockets", len(r.sockets)).Int("fresh", r.fresh()).
		Int64("size_bytes", rec.Bytes()).Msg("connections put back")
	return r, nil
}

func (r *Restored) fresh() (n int) {
	for _, k := range r.sockets {
		if k.fresh {
			n++
		}
	}
	return n
}

// silence cuts every live connection without a packet, and closes listeners
// that the record does not know. The sockets drop what still arrives, and stay
// in repair mode.
func (set *Set) silence(ctx context.Context, rec *Record) error {
	return each(ctx, len(set.ends), grain, func(i int) error {
		e := set.ends[i]
		if e.tcp.State == stateListen {
			if want := rec.Find(e.tcp.Cookie); want != nil && want.State == stateListen {
				return nil
			}
			if err := flush(e.sys, e.fd); err != nil {
				return fmt.Errorf("stream: cut %s: %w", e.name(), err)
			}
			// Its port may be wanted; repair mode is for closed sockets only.
			if err := e.sys.Disconnect(e.fd); err != nil {
				return fmt.Errorf("stream: cut %s: %w", e.name(), err)
			}
		}
		if err := silence(e.sys, e.fd); err != nil {
			return fmt.Errorf("stream: cut %s: %w", e.name(), err)
		}
		return nil
	})
}

func silence(sys *kernel.Sys, fd int) error {
	if err := sys.TCPDropAll(fd); err != nil {
		return err
	}
	if err := sys.TCPRepair(fd); err != nil {
		return err
	}
	if err := sys.Disconnect(fd); err != nil {
		return err
	}
	_, err := sys.SockInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) // reading clears it
	return err
}

// add finds or makes the socket of a record's end.
func (r *Restored) add(e End, gen uint64) error {
	k := &socket{sys: r.streams.sys, netns: r.streams.netns, gen: gen, fd: -1, stand: -1, flags: e.Flags, want: e.TCP}
	if err := k.parse(); err != nil {
		return k.named("parse", err)
	}
	if l := r.live.byCookie[e.TCP.Cookie]; l != nil && l.reusable(e.TCP) {
		k.fd, k.cookie = l.fd, e.TCP.Cookie
	} else if err := k.create(); err != nil {
		return k.named("create", err)
	}
	r.sockets = append(r.sockets, k)
	r.byOld[e.TCP.Cookie] = k
	return nil
}

// reusable reports whether a live socket can become what it was: a listener
// stays one for ever, and a connection never becomes one.
func (e *end) reusable(want *image.TCPEnd) bool {
	return (e.tcp.State == stateListen) == (want.State == stateListen) && e.tcp.Family == want.Family
}

func (k *socket) parse() (err error) {
	if k.local, err = parseAddr(k.want.Family, k.want.Local); err != nil {
		return err
	}
	switch {
	case k.over():
		// Nobody knows any more who the other end was. Any stands in for it:
		// no packet of it will be let in.
		k.remote = netip.AddrPortFrom(k.local.Addr(), uint16(k.want.Cookie%standIns)+1)
	case k.connected():
		k.remote, err = parseAddr(k.want.Family, k.want.Remote)
	}
	return err
}

// standIns is the number of ports that the other end of a connection that is
// over may get.
const standIns = 1000

// over reports whether both directions of the connection had ended: its bytes
// can be read, and then its end.
func (k *socket) over() bool { return k.want.State == stateClose && k.want.EOF }

func (k *socket) create() (err error) {
	if k.fd, err = k.sys.Socket(k.netns, k.want.Family); err != nil {
		return err
	}
	k.fresh = true
	k.cookie, err = k.sys.SockCookie(k.fd)
	return err
}

// connected reports whether the end has a stream.
func (k *socket) connected() bool { return k.want.Remote != "" || k.over() }

// named adds operation and addresses to an error.
func (k *socket) named(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("stream: %s tcp %s-%s: %w", op, k.want.Local, k.want.Remote, err)
}

// Socket returns our duplicate of the socket that has the given identity in
// the record. It stays ours; it is valid until Close.
func (r *Restored) Socket(cookie uint64) (fd int, ok bool) {
	k := r.byOld[cookie]
	if k == nil {
		return -1, false
	}
	return k.fd, true
}

// Plan returns what must be installed in a process so that its descriptors are
// those of want (of which PID and Rank are not looked at): the descriptors that
// are not, at the moment of the inventory, the socket that was put back.
//
// Expected errors: one that names the descriptor when the record has no such
// socket.
func (r *Restored) Plan(pid int, want []Slot) ([]Item, error) {
	var items []Item
	for _, w := range want {
		k := r.byOld[w.Cookie]
		if k == nil {
			return nil, fmt.Errorf("stream: descriptor %d: no socket %d in the record", w.FD, w.Cookie)
		}
		if have, ok := r.live.At(pid, w.FD); ok && !k.fresh && have == k.cookie {
			continue
		}
		items = append(items, Item{FD: w.FD, CloExec: w.CloExec, Socket: k.fd})
	}
	return items, nil
}

// Record returns the record with the identities of the sockets as they now
// are: what the next recovery to the same epoch must be given.
func (r *Restored) Record() *Record {
	now := &Record{local: r.rec.local, Ends: make([]End, len(r.sockets)), Slots: append([]Slot(nil), r.rec.Slots...)}
	for i, k := range r.sockets {
		t := *k.want
		t.Cookie = k.cookie
		now.Ends[i] = End{Flags: k.flags, TCP: &t}
	}
	for i := range now.Slots {
		if k := r.byOld[now.Slots[i].Cookie]; k != nil {
			now.Slots[i].Cookie = k.cookie
		}
	}
	return now
}

// Close gives all duplicates back. A new socket that was not installed
// disappears without a packet. It may be called again.
func (r *Restored) Close() error {
	errs := []error{r.live.Close()}
	for _, k := range r.sockets {
		if k.fresh && k.fd >= 0 {
			errs = append(errs, k.sys.Close(k.fd))
		}
		k.fd = -1
		if k.stand >= 0 {
			errs = append(errs, k.sys.Close(k.stand))
			k.stand = -1
		}
	}
	return errors.Join(errs...)
}
