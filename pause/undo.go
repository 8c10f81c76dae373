package pause

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// undo is the rollback of one process.
type undo struct {
	p       *process
	c       *captured
	snap    *snapshot
	workers int
	times   map[string]float64
	bytes   int64

	filling *errgroup.Group // memory that is being written
	pagesMS float64         // how long that took; of the group's goroutine
}

// layout puts threads, signals, mappings and memory back; memory is still
// being written when it returns.
func (u *undo) layout(ctx context.Context) error {
	f := u.p.frozen
	ranges := make([]kernel.Range, len(u.c.image.Maps))
	for i, v := range u.c.image.Maps {
		ranges[i] = kernel.Range{Start: v.Start, End: v.End}
	}
	f.Avoid(ranges)
	begin := time.Now()
	err := f.Tracer().Do(func() error {
		if err := u.endThreads(ctx); err != nil {
			return fmt.Errorf("end threads: %w", err)
		}
		if err := u.flushSignals(ctx); err != nil {
			return fmt.Errorf("flush signals: %w", err)
		}
		if err := u.mappings(ctx); err != nil {
			return fmt.Errorf("mappings: %w", err)
		}
		return nil
	})
	u.times["mappings"] = ms(time.Since(begin))
	if err != nil {
		return err
	}
	return u.memory(ctx)
}

// innerTIDs maps the live threads by the ids they see themselves.
func (u *undo) innerTIDs() (map[int]*proc.Thread, error) {
	out := map[int]*proc.Thread{}
	for _, th := range u.p.frozen.Threads {
		st, err := proc.ReadStatus(th.TID)
		if err != nil {
			return nil, err
		}
		out[st.Inner()] = th
	}
	return out, nil
}

// endThreads ends the threads that were born since.
func (u *undo) endThreads(ctx context.Context) error {
	live, err := u.innerTIDs()
	if err != nil {
		return err
	}
	for _, t := range u.c.image.Threads {
		delete(live, t.TID)
	}
	for _, th := range live {
		if err := u.p.frozen.ExitThread(ctx, th); err != nil {
			return err
		}
	}
	return nil
}

// flushSignals takes all queued signals off.
func (u *undo) flushSignals(ctx context.Context) error {
	f := u.p.frozen
	for i, th := range f.Threads {
		f.DropSignal(th)
		list, err := f.Pending(th, false)
		if err != nil {
			return err
		}
		n := len(list)
		if i == 0 {
			if list, err = f.Pending(th, true); err != nil {
				return err
			}
			n += len(list)
		}
		if n == 0 {
			continue
		}
		b := f.Batch(th)
		all, zero := b.Words(^uint64(0)), b.Words(0, 0)
		for range n {
			b.Call(unix.SYS_RT_SIGTIMEDWAIT, all, 0, zero, 8)
		}
		if err := b.RunAll(ctx); err != nil {
			return err
		}
	}
	return nil
}

// memory drops pages that were not there and starts to write those that were.
func (u *undo) memory(ctx context.Context) error {
	f := u.p.frozen
	var private []kernel.Range
	for i := range u.c.image.Maps {
		if v := &u.c.image.Maps[i]; isPrivate(v) {
			private = append(private, kernel.Range{Start: v.Start, End: v.End})
		}
	}
	begin := time.Now()
	live, err := u.p.scan(private, false)
	if err != nil {
		return err
	}
	kept := u.c.pages.ranges()
	extra := normalize(subtract(live.present, kept))
	if len(extra) > 0 {
		b := f.Batch(f.Leader())
		for _, r := range extra {
			b.Call(unix.SYS_MADVISE, r.Start, r.Len(), unix.MADV_DONTNEED)
		}
		if err := b.Run(ctx); err != nil {
			return fmt.Errorf("drop pages: %w", err)
		}
	}
	u.times["scan"] = ms(time.Since(begin))
	if err := f.OpenMem(); err != nil {
		return err
	}
	within := u.changed(live)
	u.bytes = total(within)
	u.filling = &errgroup.Group{}
	u.filling.Go(func() error {
		begin := time.Now()
		err := u.c.pages.each(ctx, u.workers, within, u.fill)
		u.pagesMS = ms(time.Since(begin))
		return err
	})
	return nil
}

// changed returns the kept pages that may differ from what the process has:
// written since the epoch, or not there.
func (u *undo) changed(live *scanned) []kernel.Range {
	kept := u.c.pages.ranges()
	m, ok := u.c.pages.(*memory)
	if !ok || m.scan == 0 || m.of != u.p { // of another count of scans
		return kept
	}
	written, ok := u.p.tracker.since(m.scan)
	if !ok {
		return kept
	}
	written = normalize(append(written, live.written...))
	return normalize(append(subtract(kept, normalize(live.present)), intersect(kept, written)...))
}

// waitPages waits until memory is written.
func (u *undo) waitPages() error {
	if u.filling == nil {
		return nil
	}
	err := u.filling.Wait()
	u.filling = nil
	u.times["pages"] = u.pagesMS
	if err != nil {
		return fmt.Errorf("write memory: %w", err)
	}
	return nil
}

// fill writes kept pages back. What the process itself may not write is
// compared first: it rarely changed.
func (u *undo) fill(addr uint64, data []byte) error {
	maps := u.c.image.Maps
	i, _ := slices.BinarySearchFunc(maps, addr, func(v image.Mapping, a uint64) int {
		if v.End <= a {
			return -1
		}
		return 1
	})
	for ; len(data) > 0 && i < len(maps); i++ {
		v := &maps[i]
		if addr < v.Start {
			return fmt.Errorf("page %x is in no mapping", addr)
		}
		n := min(uint64(len(data)), v.End-addr)
		var err error
		if v.Prot&unix.PROT_WRITE != 0 {
			err = u.p.frozen.WriteMem(addr, data[:n])
		} else {
			err = u.fillForced(addr, data[:n])
		}
		if err != nil {
			return err
		}
		addr, data = addr+n, data[n:]
	}
	return nil
}

func (u *undo) fillForced(addr uint64, data []byte) error {
	have := make([]byte, pageSize)
	for at := 0; at < len(data); at += pageSize {
		page := data[at : at+pageSize]
		if err := u.p.frozen.ReadForce(addr+uint64(at), have); err != nil {
			return err
		}
		if bytes.Equal(have, page) {
			continue
		}
		if err := u.p.frozen.WriteForce(addr+uint64(at), page); err != nil {
			return err
		}
	}
	return nil
}

// finish puts everything back that depends on memory or descriptors.
func (u *undo) finish(ctx context.Context) error {
	if err := u.waitPages(); err != nil {
		return err
	}
	return u.p.frozen.Tracer().Do(func() error {
		for _, s := range []struct {
			what string
			fn   func(context.Context) error
		}{
			{"signal handlers", u.handlers},
			{"attributes", u.attributes},
			{"threads", u.threads},
			{"timers", u.timers},
			{"pending signals", u.pending},
		} {
			if err := s.fn(ctx); err != nil {
				return fmt.Errorf("%s: %w", s.what, err)
			}
		}
		return nil
	})
}

// handlers puts the signal handlers back.
func (u *undo) handlers(ctx context.Context) error {
	f := u.p.frozen
	b := f.Batch(f.Leader())
	for i, a := range u.c.image.Actions {
		sig := unix.Signal(i + 1)
		if sig == unix.SIGKILL || sig == unix.SIGSTOP {
			continue
		}
		b.Call(unix.SYS_RT_SIGACTION, uint64(sig), b.Words(a.Handler, a.Flags, a.Restorer, a.Mask), 0, 8)
	}
	return b.Run(ctx)
}

// attributes puts back what processes rarely change.
func (u *undo) attributes(ctx context.Context) error {
	f, im := u.p.frozen, &u.c.image
	st, err := proc.ReadStatus(u.p.pid)
	if err != nil {
		return err
	}
	cwd, err := os.Readlink("/proc/" + strconv.Itoa(u.p.pid) + "/cwd")
	if err != nil {
		return err
	}
	b := f.Batch(f.Leader())
	if st.Umask != im.Umask {
		b.Call(unix.SYS_UMASK, uint64(im.Umask))
	}
	if cwd != im.Cwd {
		b.Call(unix.SYS_CHDIR, b.String(im.Cwd))
	}
	b.Call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, uint64(min(im.Dumpable, 1)))
	if err := b.Run(ctx); err != nil {
		return err
	}
	for _, lim := range im.Rlimits {
		want := unix.Rlimit{Cur: lim.Cur, Max: lim.Max}
		var have unix.Rlimit
		if err := unix.Prlimit(u.p.pid, lim.Resource, nil, &have); err != nil {
			return fmt.Errorf("prlimit: %w", err)
		}
		if have != want {
			if err := unix.Prlimit(u.p.pid, lim.Resource, &want, nil); err != nil {
				return fmt.Errorf("prlimit %d: %w", lim.Resource, err)
			}
		}
	}
	return nil
}

// pending queues the signals again that were not handled at the epoch. All
// signals are blocked while calls are injected, so none is delivered now.
func (u *undo) pending(ctx context.Context) error {
	f, im := u.p.frozen, &u.c.image
	b := f.Batch(f.Leader())
	pid := uint64(im.PID)
	for _, info := range im.Pending {
		b.Call(unix.SYS_RT_SIGQUEUEINFO, pid, signo(info), b.Bytes(info))
	}
	if err := b.Run(ctx); err != nil {
		return err
	}
	live, err := u.innerTIDs()
	if err != nil {
		return err
	}
	for _, t := range im.Threads {
		th := live[t.TID]
		if len(t.Pending) == 0 || th == nil {
			continue
		}
		// Only the thread itself may claim that the kernel sent it a signal.
		b := f.Batch(th)
		for _, info := range t.Pending {
			b.Call(unix.SYS_RT_TGSIGQUEUEINFO, pid, uint64(t.TID), signo(info), b.Bytes(info))
		}
		if err := b.Run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// signo returns si_signo, the first word of siginfo_t.
func signo(info []byte) uint64 { return uint64(binary.LittleEndian.Uint32(info)) }
