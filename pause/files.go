package pause

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/internal/stream"
)

// openFile is one descriptor of a frozen process.
type openFile struct {
	p    *process
	num  int
	link string
	info *proc.FDInfo
	stat unix.Stat_t
	desc int // 1-based, into fileTable.descs

	locks []proc.Lock
}

func (o *openFile) path() string {
	return "/proc/" + strconv.Itoa(o.p.pid) + "/fd/" + strconv.Itoa(o.num)
}

// description is an open file description and the descriptors that share it.
type description struct {
	image.Description
	id      identity
	holders []*openFile
	unix    *kernel.UnixInfo // of unix sockets
}

// identity is what can be told of a description from outside. Descriptions of
// equal identity may still be different ones: kcmp decides.
type identity struct {
	kind image.FDKind
	dev  uint64
	ino  uint64
	mode int    // access mode
	name string // external name, or cookie of a TCP socket
}

// fileTable is the inventory of descriptors of all processes of a pod.
type fileTable struct {
	sys    *kernel.Sys
	files  []*openFile
	descs  []*description
	byID   map[identity][]*description
	pidfds map[int]int

	externals []External
	set       *stream.Set
	passed    []int // descriptors on their way through sockets, now also ours
}

// scanFiles lists the descriptors of procs and finds out which of them share
// a description. It holds pidfds: close it.
func scanFiles(sys *kernel.Sys, procs []*process, externals []External, set *stream.Set, obs *obstacles) (_ *fileTable, err error) {
	t := &fileTable{sys: sys, byID: map[identity][]*description{}, pidfds: map[int]int{}, externals: externals, set: set}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	for _, p := range procs {
		if t.pidfds[p.pid], err = sys.PidfdOpen(p.pid); err != nil {
			delete(t.pidfds, p.pid)
			return nil, err
		}
		nums, err := proc.FDs(p.pid)
		if err != nil {
			return nil, err
		}
		for _, num := range nums {
			o := &openFile{p: p, num: num}
			if err := t.look(o, externals, set, obs); err != nil {
				return nil, fmt.Errorf("rank %d descriptor %d: %w", p.rank, num, err)
			}
		}
	}
	return t, nil
}

func (t *fileTable) close() {
	for _, fd := range t.pidfds {
		_ = unix.Close(fd) // a pidfd has nothing to lose
	}
	for _, fd := range t.passed {
		_ = unix.Close(fd) // a duplicate
	}
	t.pidfds, t.passed = nil, nil
}

// look inspects one descriptor and joins it to its description.
func (t *fileTable) look(o *openFile, externals []External, set *stream.Set, obs *obstacles) (err error) {
	if o.link, err = os.Readlink(o.path()); err != nil {
		return err
	}
	if err := unix.Stat(o.path(), &o.stat); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if o.info, err = proc.ReadFDInfo(o.p.pid, o.num); err != nil {
		return err
	}
	id, why := identify(o, externals, set)
	if why == "" {
		o.locks, why = parseLocks(o.info.Locks)
	}
	var pair *kernel.UnixInfo
	if why == unsupportedSocket {
		if id, pair, why, err = t.identifyOther(o, id); err != nil {
			return err
		}
	}
	if why != "" {
		obs.add(o.p, "descriptor %d (%s): %s", o.num, o.link, why)
	}
	for _, d := range t.byID[id] {
		h := d.holders[0]
		order, err := t.sys.Kcmp(o.p.pid, h.p.pid, kernel.KcmpFile, uintptr(o.num), uintptr(h.num))
		if err != nil {
			return err
		}
		if order == 0 {
			d.holders = append(d.holders, o)
			o.desc = d.index(t)
			t.files = append(t.files, o)
			return nil
		}
	}
	d := &description{id: id, holders: []*openFile{o}, unix: pair}
	d.Kind, d.Flags = id.kind, o.info.Flags&^unix.O_CLOEXEC
	d.Locks = imageLocks(o.locks, o.num, false)
	d.External = ""
	if id.kind == image.FDExternal {
		d.External = id.name
	}
	t.descs = append(t.descs, d)
	t.byID[id] = append(t.byID[id], d)
	o.desc = len(t.descs)
	t.files = append(t.files, o)
	return nil
}

func (d *description) index(t *fileTable) int {
	for i, x := range t.descs {
		if x == d {
			return i + 1
		}
	}
	return 0
}

// find returns the open file num of process pid, or nil.
func (t *fileTable) find(pid, num int) *openFile {
	for _, o := range t.files {
		if o.p.pid == pid && o.num == num {
			return o
		}
	}
	return nil
}

// identify classifies a descriptor, or says why it cannot be captured.
func identify(o *openFile, externals []External, set *stream.Set) (id identity, why string) {
	id = identity{dev: o.stat.Dev, ino: o.stat.Ino, mode: o.info.Flags & (unix.O_ACCMODE | unix.O_PATH)}
	for _, x := range externals {
		if x.Dev == id.dev && x.Ino == id.ino {
			id.kind, id.name = image.FDExternal, x.Name
			return id, ""
		}
	}
	switch o.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		id.kind = image.FDFile
		if strings.HasPrefix(o.link, "/memfd:") {
			id.kind = image.FDMemfd
		}
	case unix.S_IFDIR:
		id.kind = image.FDFile
	case unix.S_IFIFO:
		id.kind = image.FDPipe
		if !strings.HasPrefix(o.link, "pipe:[") {
			id.kind = image.FDFifo
		} else if o.info.Flags&unix.O_DIRECT != 0 {
			return id, "pipes in packet mode are not supported"
		}
	case unix.S_IFCHR:
		return identifyDevice(o, id)
	case unix.S_IFSOCK:
		return identifySocket(o, id, set)
	case 0:
		return identifyAnon(o, id)
	default:
		return id, "this kind of file is not supported"
	}
	return id, ""
}

// identifyDevice admits the devices without state, and terminals.
func identifyDevice(o *openFile, id identity) (identity, string) {
	major, minor := unix.Major(o.stat.Rdev), unix.Minor(o.stat.Rdev)
	switch {
	case major == 1 && (minor == 3 || minor == 5 || minor == 7 || minor == 8 || minor == 9):
		id.kind = image.FDDevice
	case major == 5 && minor == 0:
		id.kind = image.FDTTY // whatever terminal the session has
	case major == 4, major >= 136 && major <= 143:
		return id, "a terminal that is not standard input, output or error"
	case major == 5 && minor == 2:
		return id, "pseudo-terminals of the program's own are not supported"
	default:
		return id, fmt.Sprintf("device %d:%d is not supported", major, minor)
	}
	return id, ""
}

func identifySocket(o *openFile, id identity, set *stream.Set) (identity, string) {
	if set != nil {
		if cookie, ok := set.At(o.p.pid, o.num); ok {
			id.kind, id.name = image.FDTCP, strconv.FormatUint(cookie, 10)
			return id, ""
		}
	}
	return id, unsupportedSocket
}

// identifyAnon tells files of the kernel's anonymous inode apart.
func identifyAnon(o *openFile, id identity) (identity, string) {
	switch strings.TrimPrefix(o.link, "anon_inode:") {
	case "[eventfd]":
		id.kind = image.FDEventfd
	case "[eventpoll]":
		id.kind = image.FDEpoll
	case "[timerfd]":
		id.kind = image.FDTimerfd
	case "[signalfd]":
		id.kind = image.FDSignalfd
	default:
		return id, "this kind of descriptor is not supported"
	}
	return id, ""
}

// dup returns a duplicate of the descriptor in our process; the caller closes
// it.
func (t *fileTable) dup(o *openFile) (int, error) {
	return t.sys.PidfdGetfd(t.pidfds[o.p.pid], o.p.pid, o.num)
}

// withDup calls fn with a duplicate of the first holder of d.
func (t *fileTable) withDup(d *description, fn func(fd int) error) error {
	fd, err := t.dup(d.holders[0])
	if err != nil {
		return err
	}
	return errors.Join(fn(fd), unix.Close(fd))
}

// capture fills in the state of every description. TCP ends come from the
// streams, after their own capture.
func (t *fileTable) capture(ctx context.Context, obs *obstacles) error {
	if err := t.captureSockets(obs); err != nil {
		return err
	}
	pipes := map[uint64]bool{}
	for _, d := range t.descs {
		if err := ctx.Err(); err != nil {
			return err
		}
		o := d.holders[0]
		var err error
		switch d.Kind {
		case image.FDFile:
			err = t.captureFile(d, o)
		case image.FDDevice, image.FDTTY:
			d.Path = o.link
		case image.FDExternal:
			err = t.captureTerminal(d, o)
		case image.FDPipe, image.FDFifo:
			err = t.capturePipe(d, o, pipes, obs)
		case image.FDEventfd:
			d.Event = &image.EventState{Count: o.info.EventCount, Semaphore: o.info.EventSemaph}
		case image.FDEpoll:
			t.captureEpoll(d, obs)
		case image.FDTimerfd:
			d.Timer = &image.TimerState{
				Clock: o.info.TimerClock, Flags: o.info.TimerFlags, Ticks: o.info.TimerTicks,
				ValueNS: o.info.TimerValueNS, IntervalNS: o.info.TimerIntvlNS,
			}
		case image.FDSignalfd:
			d.SigMask = o.info.SigMask
		case image.FDMemfd:
			err = t.captureFile(d, o)
		}
		if err != nil {
			return fmt.Errorf("rank %d descriptor %d (%s): %w", o.p.rank, o.num, o.link, err)
		}
	}
	return nil
}

func (t *fileTable) captureFile(d *description, o *openFile) error {
	path, gone := strings.CutSuffix(o.link, " (deleted)")
	gone = gone && o.stat.Nlink == 0
	if !gone {
		path = o.link
	}
	d.Path = path
	d.File = &image.FileState{
		MappedFile: image.MappedFile{Path: path, Dev: o.stat.Dev, Ino: o.stat.Ino, Size: o.stat.Size},
		Offset:     o.info.Pos, Mode: o.stat.Mode, Deleted: gone,
	}
	return nil
}

// capturePipe reads the contents without taking them: tee(2) copies them into
// a pipe of ours. Contents are stored with the first end that is met.
func (t *fileTable) capturePipe(d *description, o *openFile, seen map[uint64]bool, obs *obstacles) error {
	d.Pipe = &image.PipeEnd{ID: o.stat.Ino, Write: d.id.mode == unix.O_WRONLY}
	if d.Kind == image.FDFifo {
		d.Path = o.link
	}
	return t.withDup(d, func(fd int) error {
		size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
		if err != nil {
			return fmt.Errorf("pipe size: %w", err)
		}
		d.Pipe.Size = size
		if seen[o.stat.Ino] {
			return nil
		}
		seen[o.stat.Ino] = true
		if !t.wholePipe(d, fd) {
			obs.add(o.p, "descriptor %d (%s): the other end of the pipe is in no captured process", o.num, o.link)
			return nil
		}
		d.Pipe.Data, err = peekPipe(o.path(), fd, d.id.mode)
		return err
	})
}

// wholePipe reports whether no process outside of the table holds the other
// end of the pipe: either it is in the table or nobody has it.
func (t *fileTable) wholePipe(d *description, fd int) bool {
	for _, x := range t.descs {
		if x != d && x.id.ino == d.id.ino && x.id.dev == d.id.dev && x.id.mode != d.id.mode {
			return true
		}
	}
	if d.id.mode == unix.O_RDWR {
		return true
	}
	poll := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n == 1 && poll[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// peekPipe copies the unread bytes of a pipe. fd is one of its ends; when that
// cannot be read, path (a link in /proc/PID/fd) is opened for reading.
func peekPipe(path string, fd, mode int) (_ []byte, err error) {
	if mode == unix.O_WRONLY {
		if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return nil, fmt.Errorf("open for reading: %w", err)
		}
		defer func() { _ = unix.Close(fd) }() // read only
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil || n == 0 {
		return nil, err
	}
	size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return nil, err
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	defer func() { _, _ = unix.Close(ends[0]), unix.Close(ends[1]) }() // a scratch pipe
	if _, err := unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, size); err != nil {
		return nil, fmt.Errorf("pipe of %d bytes: %w", size, err)
	}
	got, err := unix.Tee(fd, ends[1], n, unix.SPLICE_F_NONBLOCK)
	if err != nil || int(got) != n {
		return nil, fmt.Errorf("tee %d of %d bytes: %w", got, n, errors.Join(err, errShort))
	}
	data := make([]byte, n)
	for at := 0; at < n; {
		k, err := unix.Read(ends[0], data[at:])
		if err != nil || k == 0 {
			return nil, fmt.Errorf("read pipe: %w", errors.Join(err, errShort))
		}
		at += k
	}
	return data, nil
}

var errShort = errors.New("short transfer")

// captureEpoll notes the registrations. One whose descriptor is not open any
// more, or is another file by now, cannot be made again.
func (t *fileTable) captureEpoll(d *description, obs *obstacles) {
	o := d.holders[0]
	d.Epoll = make([]image.EpollItem, 0, len(o.info.Epoll))
	for _, e := range o.info.Epoll {
		target := t.find(o.p.pid, e.FD)
		if target == nil || target.stat.Ino != e.Ino {
			obs.add(o.p, "descriptor %d (%s): registration of descriptor %d, which is closed", o.num, o.link, e.FD)
			continue
		}
		d.Epoll = append(d.Epoll, image.EpollItem{FD: e.FD, Events: e.Events, Data: e.Data, Desc: target.desc})
	}
}
