package pause

import (
	"context"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/internal/stream"
)

// descriptors closes what the process opened since, and gives it what it
// lacks.
func (u *undo) descriptors(ctx context.Context, pl *filePlan) error {
	wanted := map[int]bool{}
	var items []stream.Item
	var slots []stream.Slot
	var cloexec []image.FD
	for _, fd := range u.c.image.FDs {
		wanted[fd.Num] = true
		d := &pl.descs[fd.Desc-1]
		if d.want.TCP != nil {
			slots = append(slots, stream.Slot{PID: u.p.pid, FD: fd.Num, CloExec: fd.CloExec, Cookie: d.want.TCP.Cookie})
			continue
		}
		o := pl.live.find(u.p.pid, fd.Num)
		if o != nil && d.live != nil && pl.live.descs[o.desc-1] == d.live {
			if (o.info.Flags&unix.O_CLOEXEC != 0) != fd.CloExec {
				cloexec = append(cloexec, fd)
			}
			continue
		}
		items = append(items, stream.Item{FD: fd.Num, CloExec: fd.CloExec, Socket: d.fd})
	}
	if err := u.closeExtra(ctx, pl.live, wanted); err != nil {
		return err
	}
	if pl.back != nil {
		more, err := pl.back.Plan(u.p.pid, slots)
		if err != nil {
			return err
		}
		items = append(items, more...)
	}
	if len(items) > 0 {
		if err := stream.Install(ctx, u.p.frozen.Tracer().Sys(), u.p.frozen, items); err != nil {
			return err
		}
	}
	if len(cloexec) == 0 {
		return nil
	}
	b := u.p.frozen.Batch(u.p.frozen.Leader())
	for _, fd := range cloexec {
		flag := uint64(0)
		if fd.CloExec {
			flag = unix.FD_CLOEXEC
		}
		b.Call(unix.SYS_FCNTL, uint64(fd.Num), unix.F_SETFD, flag)
	}
	return b.Run(ctx)
}

// closeExtra closes the descriptors that the epoch does not have. They leave
// the epoll sets first: as long as anybody holds the file, closing does not do
// that.
func (u *undo) closeExtra(ctx context.Context, live *fileTable, wanted map[int]bool) error {
	b := u.p.frozen.Batch(u.p.frozen.Leader())
	var closes []*proc.Call
	for _, o := range live.files {
		if o.p.pid != u.p.pid || o.info == nil {
			continue
		}
		for _, e := range o.info.Epoll {
			if !wanted[e.FD] {
				b.Call(unix.SYS_EPOLL_CTL, uint64(o.num), unix.EPOLL_CTL_DEL, uint64(e.FD), 0)
			}
		}
	}
	for _, o := range live.files {
		if o.p.pid == u.p.pid && !wanted[o.num] {
			closes = append(closes, b.Call(unix.SYS_CLOSE, uint64(o.num)))
		}
	}
	if err := b.RunAll(ctx); err != nil {
		return err
	}
	for _, c := range closes {
		if err := c.Err(); err != nil && !errors.Is(err, unix.EBADF) {
			return err
		}
	}
	return nil
}

// epolls makes the registrations of every epoll set of the process those of
// the epoch. Edge-triggered ones are armed again: a wake-up too many is
// harmless, one too few is not.
func (u *undo) epolls(ctx context.Context, pl *filePlan) error {
	b := u.p.frozen.Batch(u.p.frozen.Leader())
	done := map[int]bool{}
	for _, fd := range u.c.image.FDs {
		d := &pl.descs[fd.Desc-1]
		if d.want.Kind != image.FDEpoll || done[fd.Desc] || d.holder.c != u.c && d.live == nil {
			continue
		}
		done[fd.Desc] = true
		info, err := proc.ReadFDInfo(u.p.pid, fd.Num)
		if err != nil {
			return err
		}
		have := map[int]proc.EpollTarget{}
		for _, e := range info.Epoll {
			have[e.FD] = e
		}
		for _, e := range d.want.Epoll {
			now, ok := have[e.FD]
			delete(have, e.FD)
			op := uint64(unix.EPOLL_CTL_ADD)
			switch {
			case ok && now.Events == e.Events && now.Data == e.Data && e.Events&unix.EPOLLET == 0:
				continue
			case ok:
				op = unix.EPOLL_CTL_MOD
			}
			ev := binary.LittleEndian.AppendUint32(nil, e.Events) // struct epoll_event is packed
			ev = binary.LittleEndian.AppendUint64(ev, e.Data)
			b.Call(unix.SYS_EPOLL_CTL, uint64(fd.Num), op, uint64(e.FD), b.Bytes(ev))
		}
		for num := range have {
			b.Call(unix.SYS_EPOLL_CTL, uint64(fd.Num), unix.EPOLL_CTL_DEL, uint64(num), 0)
		}
	}
	return b.Run(ctx)
}
