package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

func leUint64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// pageFile is one page file, open, with header and trailer checked. It is safe
// for concurrent use.
type pageFile struct {
	part    partID
	f       *os.File
	size    int64
	comp    Compression
	tail    trailer
	tailSum uint64
	zstd    *zstd.Decoder // nil unless needed
}

// openPageFile checks header and trailer of f, which must be the file of part,
// size bytes long and with a trailer of XXH3 sum, and takes f over. Of a file
// of an earlier epoch the incarnation may be lower.
func openPageFile(f *os.File, part partID, size int64, sum uint64, earlier bool) (*pageFile, error) {
	p := &pageFile{part: part, f: f, size: size, tailSum: sum}
	if err := p.load(earlier); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", part.name(), err), f.Close())
	}
	return p, nil
}

func (p *pageFile) load(earlier bool) error {
	st, err := p.f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != p.size || p.size < headerSize+trailerSize {
		return fmt.Errorf("%w: %d bytes, want %d", ErrCorrupt, st.Size(), p.size)
	}
	header := make([]byte, headerSize)
	if err := readAt(p.f, header, 0); err != nil {
		return err
	}
	part, comp, sum, err := decodeHeader(header)
	if err != nil {
		return err
	}
	if earlier && part.Incarnation < p.part.Incarnation {
		p.part.Incarnation = part.Incarnation
	}
	if part != p.part {
		return fmt.Errorf("%w: is %s of job %d epoch %d incarnation %d pod %d", ErrCorrupt,
			part.name(), part.Job, part.Epoch, part.Incarnation, part.Pod)
	}
	tail := make([]byte, trailerSize)
	if err := readAt(p.f, tail, p.size-trailerSize); err != nil {
		return err
	}
	if p.tail, err = decodeTrailer(tail, sum, p.size); err != nil {
		return err
	}
	if leUint64(tail[trailerSize-8:]) != p.tailSum {
		return fmt.Errorf("%w: is not the file that the manifest means", ErrCorrupt)
	}
	p.comp = comp
	if comp == CompressZstd {
		p.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(4*MaxRunBytes))
	}
	return err
}

// index reads the index and checks it.
func (p *pageFile) index() ([]segment, []Run, error) {
	b := make([]byte, p.size-trailerSize-p.tail.indexOff)
	if err := readAt(p.f, b, p.tail.indexOff); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", p.part.name(), err)
	}
	segs, runs, err := decodeIndex(b, p.tail, p.comp, p.part.Epoch)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", p.part.name(), err)
	}
	return segs, runs, nil
}

// readAt fills b; a file that ends early is corrupt.
func readAt(f io.ReaderAt, b []byte, off int64) error {
	if n, err := f.ReadAt(b, off); n < len(b) {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: file ends early", ErrCorrupt)
		}
		return err
	}
	return nil
}

// readRun reads run r, whose data is in this file, into dst and checks it.
func (p *pageFile) readRun(r *Run, dst []byte) error {
	stored := dst
	if int(r.stored) != len(dst) {
		stored = make([]byte, r.stored)
	}
	err := readAt(p.f, stored, r.offset)
	if err == nil && int(r.stored) != len(dst) {
		err = p.decompress(r, stored, dst)
	}
	if err != nil {
		return fmt.Errorf("%s: run at %x: %w", p.part.name(), r.Addr, err)
	}
	for i, sum := range r.sums {
		if pageSum(dst[i*pageSize:(i+1)*pageSize]) != sum {
			return fmt.Errorf("%w: %s: checksum of the page at %x", ErrCorrupt, p.part.name(), r.Addr+uint64(i*pageSize)) //nolint:gosec // not negative
		}
	}
	return nil
}

func (p *pageFile) decompress(r *Run, stored, dst []byte) error {
	if packedSum(stored) != r.packed {
		return fmt.Errorf("%w: checksum of the stored bytes", ErrCorrupt)
	}
	var out []byte
	var err error
	switch p.comp {
	case CompressS2:
		var n int
		if n, err = s2.DecodedLen(stored); err == nil && n == len(dst) {
			out, err = s2.Decode(dst, stored)
		}
	case CompressZstd:
		out, err = p.zstd.DecodeAll(stored, dst[:0:len(dst)])
	default:
	}
	if err != nil || len(out) != len(dst) {
		return fmt.Errorf("%w: does not unpack (%v)", ErrCorrupt, err) //nolint:errorlint // nil when the length is wrong; ErrCorrupt is what counts
	}
	if &out[0] != &dst[0] {
		copy(dst, out)
	}
	return nil
}

// verify reads everything that this file stores once and checks it, also what
// later epochs do not use any more.
func (p *pageFile) verify(ctx context.Context, workers int) error {
	_, runs, err := p.index()
	if err != nil {
		return err
	}
	return eachRun(ctx, workers, runs, func(r *Run, buf []byte) error {
		if r.Zero || r.seg != 0 {
			return nil
		}
		return p.readRun(r, buf[:r.Len()])
	})
}

// eachRun calls fn for all runs from workers goroutines, each with a buffer for
// a run of its own, until the first error.
func eachRun(ctx context.Context, workers int, runs []Run, fn func(r *Run, buf []byte) error) error {
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(max(1, workers), len(runs)) {
		g.Go(func() error {
			buf := make([]byte, MaxRunBytes)
			for {
				i := int(next.Add(1)) - 1
				if i >= len(runs) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := fn(&runs[i], buf); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

func (p *pageFile) close() error {
	if p.zstd != nil {
		p.zstd.Close()
	}
	return p.f.Close()
}
