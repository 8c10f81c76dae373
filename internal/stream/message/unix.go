package message

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
)

// DescribeUnix describes a unix socket, without its queue and without the other
// sockets that it knows. cwd is the working directory of its process. why is
// not empty when it cannot come back.
func DescribeUnix(sys *kernel.Sys, fd int, info *kernel.UnixInfo, cwd string) (u *image.UnixEnd, why string, err error) {
	u = &image.UnixEnd{Type: info.Type, ShutR: info.Shutdown&1 != 0, ShutW: info.Shutdown&2 != 0}
	u.Name, u.Backlog = info.Name, info.Backlog
	listens, err := sys.SockInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, "", err
	}
	if u.Listen = listens != 0; !u.Listen {
		u.Backlog = 0
	}
	if info.Peered {
		sa, err := sys.PeerName(fd)
		if err != nil && !errors.Is(err, unix.ENOTCONN) {
			return nil, "", err
		}
		u.Remote = unixName(sa)
	}
	if u.Options, err = readOptions(sys, fd, unix.AF_UNIX); err != nil {
		return nil, "", err
	}
	if len(u.Name) == 0 || u.Name[0] == 0 {
		return u, "", nil
	}
	path := string(u.Name)
	if !filepath.IsAbs(path) {
		u.NameDir, path = cwd, filepath.Join(cwd, path)
	}
	var st unix.Stat_t
	err = unix.Lstat(path, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK && uint32(st.Ino) == info.FileIno { //nolint:gosec // what the kernel tells of it
		u.Mode = st.Mode & 0o7777
		return u, "", nil
	}
	if u.Deleted = true; u.NameDir != "" && !accepted(u) {
		return u, fmt.Sprintf("the file of its name, %s, is not in the working directory", u.Name), nil
	}
	return u, "", nil
}

// accepted reports whether u came out of a listener's queue: it has the
// listener's name, and nothing that was bound by itself.
func accepted(u *image.UnixEnd) bool {
	return !u.Listen && len(u.Remote) == 0 && u.Type != unix.SOCK_DGRAM
}

// UnixSocket is a unix socket of an image that comes back.
type UnixSocket struct {
	Want *image.UnixEnd
	// FD is our descriptor of a live socket that stays, or -1; Make fills it
	// in. It is the caller's.
	FD    int
	stand int  // our other end, where nobody has one; -1 for none
	kept  bool // FD was given
}

// Unix makes the unix sockets of an image. Sockets are indexed by description,
// from 1.
type Unix struct {
	sys     *kernel.Sys
	sockets map[int]*UnixSocket
	ids     []int // ascending
	// mine says which names live sockets of the same processes have: their
	// files may be replaced.
	mine map[string]bool
	// temporary are listeners for connections whose own is gone, by name.
	temporary map[string]*UnixSocket
	dirs      map[string]string // by name: what it is relative to
}

// NewUnix returns the maker of the unix sockets among descs. mine are names
// that live sockets of the same processes have, nil for none.
func NewUnix(sys *kernel.Sys, descs []image.Description, mine map[string]bool) *Unix {
	x := &Unix{sys: sys, sockets: map[int]*UnixSocket{}, mine: mine, temporary: map[string]*UnixSocket{}, dirs: map[string]string{}}
	for i := range descs {
		if u := descs[i].Unix; u != nil {
			x.sockets[i+1] = &UnixSocket{Want: u, FD: -1, stand: -1}
			x.ids = append(x.ids, i+1)
			if len(u.Name) > 0 {
				x.dirs[string(u.Name)] = u.NameDir
			}
		}
	}
	return x
}

// Socket returns the socket of a description, nil for none.
func (x *Unix) Socket(desc int) *UnixSocket { return x.sockets[desc] }

// Keep says that the live socket fd stays in the place of a description.
func (x *Unix) Keep(desc, fd int) {
	k := x.sockets[desc]
	k.FD, k.kept = fd, true
}

// Make makes every socket that is not there, and empties those that are.
//
// Expected errors: kernel errors with EADDRINUSE (another program has the
// name), ENOENT (the directory of a path is gone), ECONNREFUSED (nobody answers
// to a name).
func (x *Unix) Make() error {
	for _, step := range []func(k *UnixSocket) error{x.empty, x.unconnected, x.connected, x.datagrams, x.waiting} {
		for _, id := range x.ids {
			k := x.sockets[id]
			if err := step(k); err != nil {
				return fmt.Errorf("unix socket %s: %w", k.name(), err)
			}
		}
	}
	return nil
}

// name is for people.
func (k *UnixSocket) name() string {
	switch n := k.Want.Name; {
	case len(n) == 0 && len(k.Want.Remote) == 0:
		return "without a name"
	case len(n) == 0:
		return fmt.Sprintf("to %q", bytes.ReplaceAll(k.Want.Remote, []byte{0}, []byte{'@'}))
	default:
		return fmt.Sprintf("%q", bytes.ReplaceAll(n, []byte{0}, []byte{'@'}))
	}
}

// empty drops what a live socket holds.
func (x *Unix) empty(k *UnixSocket) error {
	if !k.kept {
		return nil
	}
	if !k.Want.Listen {
		return drain(x.sys, k.FD, k.Want.Type)
	}
	for {
		fd, ok, err := x.sys.Accept(k.FD)
		if err != nil || !ok {
			return err
		}
		if err := x.sys.Close(fd); err != nil {
			return err
		}
	}
}

// unconnected makes listeners, and sockets that have no other end (yet).
func (x *Unix) unconnected(k *UnixSocket) (err error) {
	if k.FD >= 0 {
		return nil
	}
	w := k.Want
	if !w.Listen && (w.Type != unix.SOCK_DGRAM && (w.Peer != 0 || len(w.Remote) > 0 || w.ShutR || w.ShutW || w.Gone) ||
		w.Type == unix.SOCK_DGRAM && len(w.Name) == 0 && len(w.Remote) == 0 && (w.Peer != 0 || w.Gone)) {
		return nil
	}
	if k.FD, err = x.sys.NewSocket(unix.AF_UNIX, w.Type); err != nil {
		return err
	}
	if err := x.bind(k.FD, w); err != nil || !w.Listen {
		return err
	}
	return x.sys.Listen(k.FD, w.Backlog)
}

// bind gives a socket its name.
func (x *Unix) bind(fd int, w *image.UnixEnd) error {
	if len(w.Name) == 0 {
		return nil
	}
	if w.Name[0] == 0 {
		return x.taken(x.sys.Bind(fd, address(w.Name)))
	}
	return kernel.InDirectory(w.NameDir, func() error {
		path := string(w.Name)
		if err := x.clear(path); err != nil {
			return err
		}
		if err := x.sys.Bind(fd, address(w.Name)); err != nil {
			return x.taken(err)
		}
		if w.Deleted {
			return unix.Unlink(path)
		}
		return unix.Chmod(path, w.Mode)
	})
}

func (x *Unix) taken(err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("another program has the name: %w", err)
	}
	return err
}

// clear removes the file that a socket left behind, unless somebody answers
// there.
func (x *Unix) clear(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil //nolint:nilerr // bind tells
	}
	if !x.mine[path] {
		fd, err := x.sys.NewSocket(unix.AF_UNIX, unix.SOCK_DGRAM)
		if err != nil {
			return err
		}
		err = x.sys.Connect(fd, &unix.SockaddrUnix{Name: path})
		if cerr := x.sys.Close(fd); cerr != nil {
			return cerr
		}
		if !errors.Is(err, unix.ECONNREFUSED) { // it lives: connected, or EPROTOTYPE
			return nil
		}
	}
	return unix.Unlink(path)
}

// listener returns the listener that a connection to name comes to, one for
// the moment if need be.
func (x *Unix) listener(name []byte, typ int) (*UnixSocket, error) {
	for _, id := range x.ids {
		if l := x.sockets[id]; l.Want.Listen && l.Want.Type == typ && bytes.Equal(l.Want.Name, name) {
			return l, nil
		}
	}
	if l := x.temporary[string(name)]; l != nil {
		return l, nil
	}
	l := &UnixSocket{FD: -1, stand: -1, Want: &image.UnixEnd{Type: typ}}
	l.Want.Name, l.Want.NameDir, l.Want.Listen, l.Want.Backlog = name, x.dirs[string(name)], true, 1
	if l.Want.Mode = 0o600; name[0] != 0 {
		err := kernel.InDirectory(l.Want.NameDir, func() error {
			var st unix.Stat_t
			return unix.Lstat(string(name), &st)
		})
		l.Want.Deleted = err != nil
	}
	w := *l.Want
	w.Deleted = false // not before the connections are made
	var err error
	if l.FD, err = x.sys.NewSocket(unix.AF_UNIX, typ); err != nil {
		return nil, err
	}
	x.temporary[string(name)] = l
	if err := x.bind(l.FD, &w); err != nil {
		return nil, err
	}
	return l, x.sys.Listen(l.FD, 1)
}

// connected makes streams and socketpairs, with both ends.
func (x *Unix) connected(k *UnixSocket) error {
	if k.FD >= 0 || x.waits(k) {
		return nil
	}
	peer := x.sockets[k.Want.Peer]
	if peer == nil {
		peer = &UnixSocket{FD: -1, stand: -1, Want: &image.UnixEnd{Type: k.Want.Type}}
		peer.Want.Name, peer.Want.Remote = k.Want.Remote, k.Want.Name
	}
	err := x.pair(k, peer)
	if x.sockets[k.Want.Peer] == nil {
		k.stand = peer.FD
	}
	return err
}

func (x *Unix) pair(k, peer *UnixSocket) error {
	server, client := k, peer
	if len(k.Want.Name) == 0 && len(peer.Want.Name) == 0 {
		fds, err := x.sys.SocketPair(k.Want.Type)
		if err == nil {
			k.FD, peer.FD = fds[0], fds[1]
		}
		return err
	}
	if !x.listens(k) && (x.listens(peer) || len(k.Want.Name) == 0) {
		server, client = peer, k
	}
	l, err := x.listener(server.Want.Name, server.Want.Type)
	if err != nil {
		return err
	}
	if err := x.connect(client, l); err != nil {
		return err
	}
	fd, ok, err := x.sys.Accept(l.FD)
	if err == nil && !ok {
		err = unix.ECONNABORTED
	}
	if err == nil {
		server.FD = fd
	}
	return err
}

// listens reports whether k is of a listener of the image.
func (x *Unix) listens(k *UnixSocket) bool {
	for _, id := range x.ids {
		if l := x.sockets[id]; l.Want.Listen && len(k.Want.Name) > 0 && bytes.Equal(l.Want.Name, k.Want.Name) {
			return true
		}
	}
	return false
}

// connect makes k and connects it to a listener.
func (x *Unix) connect(k, l *UnixSocket) (err error) {
	if k.FD, err = x.sys.NewSocket(unix.AF_UNIX, k.Want.Type); err != nil {
		return err
	}
	if err := x.bind(k.FD, k.Want); err != nil {
		return err
	}
	return kernel.InDirectory(l.Want.NameDir, func() error { return x.sys.StartConnect(k.FD, address(l.Want.Name)) })
}

// waits reports whether k waits in a listener's queue.
func (x *Unix) waits(k *UnixSocket) bool {
	for _, id := range x.ids {
		for _, w := range x.sockets[id].Want.Waiting {
			if x.sockets[w] == k {
				return true
			}
		}
	}
	return false
}

// waiting fills the queue of a listener.
func (x *Unix) waiting(l *UnixSocket) error {
	for _, id := range l.Want.Waiting {
		k := x.sockets[id]
		if k == nil || k.FD >= 0 {
			return fmt.Errorf("%w: socket %d waits to be accepted", image.ErrCorrupt, id)
		}
		if err := x.connect(k, l); err != nil {
			return err
		}
	}
	return nil
}

// datagrams connects datagram sockets to the names they had chosen.
func (x *Unix) datagrams(k *UnixSocket) error {
	w := k.Want
	if w.Type != unix.SOCK_DGRAM {
		return nil
	}
	if len(w.Remote) == 0 {
		if k.kept && w.Peer == 0 && !w.Gone {
			return x.sys.Disconnect(k.FD)
		}
		return nil
	}
	dir, ok := x.dirs[string(w.Remote)]
	if !ok {
		dir = w.NameDir
	}
	return kernel.InDirectory(dir, func() error {
		err := x.sys.Connect(k.FD, address(w.Remote))
		if err != nil {
			return fmt.Errorf("connect to %q: %w", bytes.ReplaceAll(w.Remote, []byte{0}, []byte{'@'}), err)
		}
		return nil
	})
}
