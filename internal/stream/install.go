package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// Item is a descriptor that a process must get.
type Item struct {
	FD      int // its number there; whatever it was before is replaced
	CloExec bool
	Socket  int // our duplicate of the socket; stays ours

	// Epoll are the registrations that the new descriptor gets. Those that the
	// number had before are removed in any case.
	Epoll []Registration
}

// Registration is an entry of an epoll set of the process.
type Registration struct {
	EpollFD int
	Events  uint32
	Data    uint64
}

// Install gives a frozen process descriptors that it could not make itself. It
// needs no privilege beyond tracing: the process is made to create a pair of
// unix sockets, one of which is duplicated here, and to receive the sockets
// over it (SCM_RIGHTS).
//
// A registration in an epoll set stands for the old socket as long as any
// process holds that one. It is therefore removed before the number is given
// to another socket, and made anew afterwards.
//
// Precondition: sockets of items belong to the caller; item numbers differ.
// Expected errors: kernel errors with EMFILE (the process' limit), EBADF (the
// epoll descriptor of a registration does not exist). The descriptors are then
// partly replaced; the call can be repeated.
func Install(ctx context.Context, sys *kernel.Sys, f *proc.Frozen, items []Item) error {
	for chunk := range slices.Chunk(items, kernel.MaxSendFDs) {
		in := &installer{sys: sys, f: f, items: chunk, ends: [2]int{-1, -1}}
		if err := in.run(ctx); err != nil {
			return fmt.Errorf("stream: install %d sockets in process %d: %w", len(chunk), f.PID, err)
		}
	}
	return nil
}

// installer is one use of a socket pair. Numbers are those of the process.
type installer struct {
	sys   *kernel.Sys
	f     *proc.Frozen
	items []Item
	ends  [2]int       // of the pair
	got   []int        // received sockets
	had   map[int]bool // its descriptors before
}

func (in *installer) run(ctx context.Context) (err error) {
	if in.had, err = descriptorsOf(in.f.PID); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.cleanUp(ctx, err)) }()
	if err := in.makePair(ctx); err != nil {
		return err
	}
	if err := in.receive(ctx); err != nil {
		return err
	}
	if err := in.stepAside(ctx); err != nil {
		return err
	}
	return in.place(ctx)
}

func (in *installer) makePair(ctx context.Context) error {
	b := in.f.Batch(in.f.Leader())
	at := b.Alloc(8)
	b.Call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0, at)
	if err := b.Run(ctx); err != nil {
		return err
	}
	fds, err := readInts(b, at, 2)
	if err == nil {
		in.ends = [2]int{fds[0], fds[1]}
	}
	return err
}

// readInts reads n ints of the process.
func readInts(b *proc.Batch, at uint64, n int) ([]int, error) {
	raw, err := b.Read(at, 4*n)
	if err != nil {
		return nil, err
	}
	v := make([]int, n)
	for i := range v {
		v[i] = int(int32(binary.LittleEndian.Uint32(raw[4*i:])))
	}
	return v, nil
}

// receive sends the sockets and has the process take them.
func (in *installer) receive(ctx context.Context) error {
	if err := in.send(); err != nil {
		return err
	}
	const controlHeader = 16 // struct cmsghdr
	n := len(in.items)
	b := in.f.Batch(in.f.Leader())
	iov := b.Words(b.Alloc(8), 1)
	size := (controlHeader + 4*n + 7) &^ 7
	control := b.Alloc(size)
	// struct msghdr: name, namelen, iov, iovlen, control, controllen, flags
	msg := b.Words(0, 0, iov, 1, control, uint64(size), 0)
	b.Call(unix.SYS_RECVMSG, uint64(in.ends[0]), msg, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err := b.Run(ctx); err != nil {
		return err
	}
	head, err := b.Read(control, controlHeader)
	if err != nil {
		return err
	}
	count := (int(binary.LittleEndian.Uint64(head)) - controlHeader) / 4
	if count < 0 || count > n {
		return fmt.Errorf("control message of %d descriptors", count)
	}
	if in.got, err = readInts(b, control+controlHeader, count); err != nil {
		return err
	}
	if count < n {
		return fmt.Errorf("the process took %d of %d descriptors: %w", count, n, unix.EMFILE)
	}
	return nil
}

func (in *installer) send() (err error) {
	pidfd, err := in.sys.PidfdOpen(in.f.PID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.sys.Close(pidfd)) }()
	end, err := in.sys.PidfdGetfd(pidfd, in.f.PID, in.ends[1])
	if err != nil {
		return err
	}
	fds := make([]int, len(in.items))
	for i, it := range in.items {
		fds[i] = it.Socket
	}
	return errors.Join(in.sys.SendFDs(end, fds), in.sys.Close(end))
}

// stepAside moves our temporary descriptors off the numbers that are wanted.
func (in *installer) stepAside(ctx context.Context) error {
	wanted := map[int]bool{}
	above := 0
	for _, it := range in.items {
		wanted[it.FD] = true
		above = max(above, it.FD+1)
	}
	var slots []*int
	for _, p := range in.temporary() {
		if wanted[*p] {
			slots = append(slots, p)
		}
	}
	if len(slots) == 0 {
		return nil
	}
	b := in.f.Batch(in.f.Leader())
	calls := make([]*proc.Call, len(slots))
	for i, p := range slots {
		calls[i] = b.Call(unix.SYS_FCNTL, uint64(*p), unix.F_DUPFD_CLOEXEC, uint64(above))
	}
	if err := b.Run(ctx); err != nil {
		return err
	}
	// The old numbers are left open: each is about to be replaced.
	for i, p := range slots {
		*p = int(calls[i].Ret)
	}
	return nil
}

// temporary returns the places of all descriptors that we made.
func (in *installer) temporary() []*int {
	list := []*int{&in.ends[0], &in.ends[1]}
	for i := range in.got {
		list = append(list, &in.got[i])
	}
	return list
}

// place puts every socket at its number and into its epoll sets.
func (in *installer) place(ctx context.Context) error {
	old, err := registrations(in.f.PID)
	if err != nil {
		return err
	}
	b := in.f.Batch(in.f.Leader())
	for _, it := range in.items {
		for _, ep := range old[it.FD] {
			// ENOENT: the entry is of another file that had this number.
			b.Call(unix.SYS_EPOLL_CTL, uint64(ep), unix.EPOLL_CTL_DEL, uint64(it.FD), 0)
		}
	}
	if err := b.RunAll(ctx); err != nil {
		return err
	}
	b = in.f.Batch(in.f.Leader())
	for i, it := range in.items {
		flags := uint64(0)
		if it.CloExec {
			flags = unix.O_CLOEXEC
		}
		b.Call(unix.SYS_DUP3, uint64(in.got[i]), uint64(it.FD), flags)
		for _, r := range it.Epoll {
			ev := binary.LittleEndian.AppendUint32(nil, r.Events) // struct epoll_event is packed
			ev = binary.LittleEndian.AppendUint64(ev, r.Data)
			b.Call(unix.SYS_EPOLL_CTL, uint64(r.EpollFD), unix.EPOLL_CTL_ADD, uint64(it.FD), b.Bytes(ev))
		}
	}
	return b.Run(ctx)
}

// cleanUp closes what the process does not need to keep. After a failure it is
// not known how far the process came: then everything goes that was not there.
func (in *installer) cleanUp(ctx context.Context, failed error) error {
	ctx = context.WithoutCancel(ctx)
	var extra []int
	for _, p := range in.temporary() {
		if *p >= 0 {
			extra = append(extra, *p)
		}
	}
	if failed != nil {
		now, err := descriptorsOf(in.f.PID)
		if err != nil {
			return err
		}
		for _, it := range in.items {
			delete(now, it.FD)
		}
		extra = extra[:0]
		for fd := range now {
			if !in.had[fd] {
				extra = append(extra, fd)
			}
		}
	}
	if len(extra) == 0 {
		return nil
	}
	return twice(func() error {
		b := in.f.Batch(in.f.Leader())
		for _, fd := range extra {
			b.Call(unix.SYS_CLOSE, uint64(fd)) // EBADF the second time
		}
		return b.RunAll(ctx)
	})
}

// descriptorsOf returns the descriptor numbers of a process.
func descriptorsOf(pid int) (map[int]bool, error) {
	names, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return nil, err
	}
	fds := make(map[int]bool, len(names))
	for _, n := range names {
		fd, err := strconv.Atoi(n.Name())
		if err != nil {
			return nil, err
		}
		fds[fd] = true
	}
	return fds, nil
}

// registrations returns, for every descriptor number, the epoll descriptors of
// the process that have an entry of that number.
func registrations(pid int) (map[int][]int, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	regs := map[int][]int{}
	for _, n := range names {
		link, err := os.Readlink(dir + "/" + n.Name())
		if err != nil {
			return nil, err
		}
		if link != "anon_inode:[eventpoll]" {
			continue
		}
		ep, err := strconv.Atoi(n.Name())
		if err != nil {
			return nil, err
		}
		info, err := proc.ReadFDInfo(pid, ep)
		if err != nil {
			return nil, err
		}
		for _, t := range info.Epoll {
			regs[t.FD] = append(regs[t.FD], ep)
		}
	}
	return regs, nil
}
