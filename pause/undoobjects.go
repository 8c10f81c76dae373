package pause

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// undoObject puts the contents back to what they were.
func (p *Pod) undoObject(ctx context.Context, o *object, a *objectAccess) error {
	kept := normalize(o.pages.ranges())
	if a.fd >= 0 {
		return o.undoFile(ctx, a.fd, kept)
	}
	now, err := a.data(ctx, o.Size)
	if err != nil {
		return err
	}
	for _, r := range subtract(normalize(now), kept) {
		err := a.walk(r, func(s *segment, addr uint64, _, n int) error {
			b := s.f.Batch(s.f.Leader())
			b.Call(unix.SYS_MADVISE, addr, uint64(n), unix.MADV_REMOVE)
			return b.Run(ctx)
		}, true)
		if err != nil {
			return fmt.Errorf("remove pages: %w", err)
		}
	}
	return o.pages.each(ctx, p.workers(1), nil, func(off uint64, data []byte) error {
		r := kernel.Range{Start: off, End: off + uint64(len(data))}
		err := a.walk(r, func(s *segment, addr uint64, at, n int) error {
			return s.f.WriteMem(addr, data[at:at+n])
		}, true)
		if err != nil { // nobody can write there: it is as it was
			return a.compare(r, data, err)
		}
		return nil
	})
}

// compare returns why unless the contents are those of data already.
func (a *objectAccess) compare(r kernel.Range, data []byte, why error) error {
	have := make([]byte, len(data))
	if err := a.read(r, have); err != nil || string(have) != string(data) {
		return errors.Join(why, err)
	}
	return nil
}

// undoFile puts length, holes and data of a file back.
func (o *object) undoFile(ctx context.Context, fd int, kept []kernel.Range) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Size != o.Size {
		if err := unix.Ftruncate(fd, o.Size); err != nil {
			return fmt.Errorf("set length: %w", err)
		}
	}
	whole := []kernel.Range{{Start: 0, End: (uint64(o.Size) + pageSize - 1) &^ (pageSize - 1)}}
	for _, r := range subtract(whole, kept) {
		const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		if err := unix.Fallocate(fd, punch, int64(r.Start), int64(r.Len())); err != nil && err != unix.EPERM {
			return fmt.Errorf("punch hole: %w", err) // EPERM: sealed, hence unchanged
		}
	}
	return o.pages.each(ctx, 1, nil, func(off uint64, data []byte) error {
		data = data[:min(uint64(len(data)), uint64(o.Size)-min(off, uint64(o.Size)))]
		for len(data) > 0 {
			n, err := unix.Pwrite(fd, data, int64(off))
			if err == unix.EPERM || err == unix.EBADF {
				return nil // sealed or read-only: nobody can have changed it
			}
			if err != nil {
				return fmt.Errorf("write: %w", err)
			}
			data, off = data[n:], off+uint64(n)
		}
		return nil
	})
}
