package migrate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/proc"
)

// maxRights is how many descriptors travel at once (SCM_MAX_FD is 253).
const maxRights = 200

func putWord(b []byte, v uint64) { binary.LittleEndian.PutUint64(b, v) }

// handOver sends our descriptors to the process of batch, which receives them
// on its descriptor sock, and returns their numbers there, in order. Only one
// process at a time receives on a seed's socket.
// Source: unix(7), SCM_RIGHTS; the layout of msghdr and cmsghdr on x86-64.
func handOver(ctx context.Context, s Seed, batch *proc.Batch, sock int, fds []int) ([]int, error) {
	var out []int
	for len(fds) > 0 {
		n := min(len(fds), maxRights)
		got, err := handSome(ctx, s, batch, sock, fds[:n])
		if err != nil {
			return nil, fmt.Errorf("hand over %d descriptors: %w", n, err)
		}
		out, fds = append(out, got...), fds[n:]
	}
	return out, nil
}

func handSome(ctx context.Context, s Seed, batch *proc.Batch, sock int, fds []int) ([]int, error) {
	if err := sendRights(ctx, int(s.Sock.Fd()), fds); err != nil {
		return nil, err
	}
	room := unix.CmsgSpace(4 * len(fds))
	data, control := batch.Alloc(16), batch.Alloc(room)
	iov := batch.Words(data, 16)
	header := batch.Words(0, 0, iov, 1, control, uint64(room), 0) //nolint:gosec // a small size
	batch.Call(unix.SYS_RECVMSG, uint64(sock), header, unix.MSG_DONTWAIT)
	if err := batch.Run(ctx); err != nil {
		return nil, err
	}
	b, err := batch.Read(control, room)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint64(b) != uint64(unix.CmsgLen(4*len(fds))) || le.Uint32(b[12:]) != unix.SCM_RIGHTS { //nolint:gosec // a small size
		return nil, errors.New("they did not arrive whole; is there room for so many?")
	}
	out := make([]int, len(fds))
	for i := range out {
		out[i] = int(le.Uint32(b[unix.CmsgLen(0)+4*i:]))
	}
	return out, nil
}

// sendRights sends one message. The socket is empty, so it never blocks long;
// the deadline guards against a peer that went away.
func sendRights(ctx context.Context, sock int, fds []int) error {
	for {
		err := unix.Sendmsg(sock, []byte{1}, unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Millisecond):
			}
		default:
			return err
		}
	}
}

// descriptors gives the process its descriptors. The lowest numbers are free
// when they arrive in the order of their wanted numbers, so the i-th never
// arrives above where it belongs; moving the last one first overwrites none.
func (b *builder) descriptors(ctx context.Context, p *process, s Seed) error {
	want := p.img.FDs
	sock := freeNumber(want)
	batch := p.f.Batch(p.f.Leader())
	if sock != seedSock {
		batch.Call(unix.SYS_DUP3, seedSock, uint64(sock), 0)
	}
	if sock > 0 {
		batch.Call(unix.SYS_CLOSE_RANGE, 0, uint64(sock-1), 0)
	}
	batch.Call(unix.SYS_CLOSE_RANGE, uint64(sock+1), 0xffffffff, 0)
	if err := batch.Run(ctx); err != nil {
		return fmt.Errorf("descriptors: %w", err)
	}
	ours := make([]int, len(want))
	if err := b.openProcFiles(ctx, want); err != nil {
		return err
	}
	b.late.Lock()
	for i, fd := range want {
		ours[i] = b.fds[fd.Desc]
	}
	b.late.Unlock()
	got, err := handOver(ctx, s, batch, sock, ours)
	if err != nil {
		return fmt.Errorf("descriptors: %w", err)
	}
	for i := len(want) - 1; i >= 0; i-- {
		have, num := uint64(got[i]), uint64(want[i].Num) //nolint:gosec // descriptors
		cloexec := uint64(0)
		if want[i].CloExec {
			cloexec = 1
		}
		if have == num {
			batch.Call(unix.SYS_FCNTL, num, unix.F_SETFD, cloexec*unix.FD_CLOEXEC)
			continue
		}
		batch.Call(unix.SYS_DUP3, have, num, cloexec*unix.O_CLOEXEC)
		batch.Call(unix.SYS_CLOSE, have)
	}
	batch.Call(unix.SYS_CLOSE, uint64(sock)) //nolint:gosec // a descriptor
	if err := batch.Run(ctx); err != nil {
		return fmt.Errorf("descriptors: %w", err)
	}
	return nil
}

// ofProcess reports whether a description is a file of /proc that stands for a
// process.
func ofProcess(d *image.Description) bool {
	rest, ok := strings.CutPrefix(d.Path, "/proc/")
	return ok && d.Kind == image.FDFile && rest != "" && rest[0] >= '0' && rest[0] <= '9'
}

// openProcFiles opens those of list that were left out because there was no
// process yet.
func (b *builder) openProcFiles(ctx context.Context, list []image.FD) error {
	b.late.Lock()
	defer b.late.Unlock()
	for _, fd := range list {
		d := b.m.Description(fd.Desc)
		if _, ok := b.fds[fd.Desc]; ok || !ofProcess(d) {
			continue
		}
		if err := b.buildOne(ctx, fd.Desc, d); err != nil {
			return fmt.Errorf("descriptor %d: %s: %w", fd.Num, d.Path, err)
		}
	}
	return nil
}

// freeNumber returns the lowest number that no descriptor of list has.
// list ascends.
func freeNumber(list []image.FD) int {
	n := 0
	for _, fd := range list {
		if fd.Num == n {
			n++
		}
	}
	return n
}

// tfdSetTicks is TFD_IOC_SET_TICKS of linux/timerfd.h.
const tfdSetTicks = 0x40085400

// registrations fills the epoll sets that p is the first to have, and sets
// the unread ticks of timers.
func (b *builder) registrations(ctx context.Context, p *process) error {
	at := map[int]int{} // description by number
	for _, fd := range p.img.FDs {
		at[fd.Num] = fd.Desc
	}
	batch := p.f.Batch(p.f.Leader())
	for _, fd := range p.img.FDs {
		if b.registrar(fd.Desc) != p.img {
			continue
		}
		d := b.m.Description(fd.Desc)
		for _, it := range d.Epoll {
			if it.Desc != 0 && at[it.FD] != it.Desc {
				return fmt.Errorf("epoll set %d: %w: it watches descriptor %d, which was closed", fd.Num, image.ErrMismatch, it.FD)
			}
			var ev [16]byte
			binary.LittleEndian.PutUint32(ev[:], it.Events)
			putWord(ev[4:], it.Data)
			batch.Call(unix.SYS_EPOLL_CTL, uint64(fd.Num), unix.EPOLL_CTL_ADD, uint64(it.FD), batch.Bytes(ev[:12])) //nolint:gosec // descriptors
		}
		if d.Kind == image.FDTimerfd && d.Timer.Ticks > 0 {
			batch.Call(unix.SYS_IOCTL, uint64(fd.Num), tfdSetTicks, batch.Words(d.Timer.Ticks)) //nolint:gosec // a descriptor
		}
	}
	if err := batch.Run(ctx); err != nil {
		return fmt.Errorf("epoll and timer descriptors: %w", err)
	}
	return nil
}

// registrar returns the process that registers for description id: the first
// that has it and, of an epoll set, all that it watches.
func (b *builder) registrar(id int) *image.Process {
	d := b.m.Description(id)
	var first *image.Process
	for i := range b.m.Processes {
		p := &b.m.Processes[i]
		at := map[int]int{}
		has := false
		for _, fd := range p.FDs {
			at[fd.Num] = fd.Desc
			has = has || fd.Desc == id
		}
		if !has {
			continue
		}
		if first == nil {
			first = p
		}
		all := true
		for _, it := range d.Epoll {
			all = all && (it.Desc == 0 || at[it.FD] == it.Desc)
		}
		if all {
			return p
		}
	}
	return first
}
