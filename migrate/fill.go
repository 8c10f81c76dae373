package migrate

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/lampause/lampause/image"
)

// fill stores the image's pages in the process, with several goroutines. Runs
// of zeroes matter only over private file mappings: anonymous memory is zero.
func (b *builder) fill(ctx context.Context, p *process) error {
	var bytes atomic.Int64
	err := p.pages.Each(ctx, b.cfg.Workers, func(r image.Run, data []byte) error {
		if r.Zero {
			return p.zero(r)
		}
		bytes.Add(int64(len(data)))
		return p.f.WriteMem(r.Addr, data)
	})
	b.mu.Lock()
	b.out.Bytes += bytes.Load()
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("process %d: store memory: %w", p.img.PID, err)
	}
	return nil
}

// zero clears the part of r that lies over private file mappings.
func (p *process) zero(r image.Run) error {
	for i := range p.img.Maps {
		m := &p.img.Maps[i]
		if m.Kind != image.MapPrivate && m.Object == 0 || m.Shared || m.End <= r.Addr || m.Start >= r.End() {
			continue
		}
		from, to := max(m.Start, r.Addr), min(m.End, r.End())
		zeroes := make([]byte, min(to-from, image.MaxRunBytes))
		for ; from < to; from += uint64(len(zeroes)) {
			if err := p.f.WriteMem(from, zeroes[:min(to-from, uint64(len(zeroes)))]); err != nil {
				return err
			}
		}
	}
	return nil
}
