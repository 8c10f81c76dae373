package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"
)

func leUint64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// PageReader reads one page file. It is safe for concurrent use. Nothing it
// returns is unchecked: each run is compared with its XXH3 when it is read.
type PageReader struct {
	part   partID
	f      *os.File
	comp   Compression
	runs   []Run // in the order written
	byAddr []int // indices of runs, by address
	tail   trailer
	zstd   *zstd.Decoder
}

// openPages checks header, index and trailer of f, which must be the file of
// part, size bytes long and with a trailer of XXH3 sum, and takes f over. The memory it needs is bounded
// by the size of the file.
func openPages(f *os.File, part partID, size int64, sum uint64) (*PageReader, error) {
	p := &PageReader{part: part, f: f}
	if err := p.load(size, sum); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", part.name(), err), f.Close())
	}
	return p, nil
}

func (p *PageReader) load(want int64, tailSum uint64) error {
	st, err := p.f.Stat()
	if err != nil {
		return err
	}
	size := st.Size()
	if size != want || size < headerSize+trailerSize {
		return fmt.Errorf("%w: %d bytes, want %d", ErrCorrupt, size, want)
	}
	header := make([]byte, headerSize)
	if err := readAt(p.f, header, 0); err != nil {
		return err
	}
	part, comp, sum, err := decodeHeader(header)
	if err != nil {
		return err
	}
	if part != p.part {
		return fmt.Errorf("%w: is %s of job %d epoch %d incarnation %d pod %d", ErrCorrupt,
			part.name(), part.Job, part.Epoch, part.Incarnation, part.Pod)
	}
	tail := make([]byte, trailerSize)
	if err := readAt(p.f, tail, size-trailerSize); err != nil {
		return err
	}
	if p.tail, err = decodeTrailer(tail, sum, size); err != nil {
		return err
	}
	if leUint64(tail[trailerSize-8:]) != tailSum {
		return fmt.Errorf("%w: is not the file that the manifest means", ErrCorrupt)
	}
	index := make([]byte, size-trailerSize-p.tail.indexOff)
	if err := readAt(p.f, index, p.tail.indexOff); err != nil {
		return err
	}
	p.comp = comp
	if p.runs, err = decodeIndex(index, p.tail, comp); err != nil {
		return err
	}
	if err := p.sortRuns(); err != nil {
		return err
	}
	if comp == CompressZstd {
		p.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(4*MaxRunBytes))
	}
	return err
}

func (p *PageReader) sortRuns() error {
	p.byAddr = make([]int, len(p.runs))
	for i := range p.byAddr {
		p.byAddr[i] = i
	}
	slices.SortFunc(p.byAddr, func(a, b int) int {
		if p.runs[a].Addr < p.runs[b].Addr {
			return -1
		}
		return 1
	})
	for i := 1; i < len(p.byAddr); i++ {
		if p.runs[p.byAddr[i-1]].End() > p.runs[p.byAddr[i]].Addr {
			return fmt.Errorf("%w: page %x twice", ErrCorrupt, p.runs[p.byAddr[i]].Addr)
		}
	}
	return nil
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

// Runs returns the runs in the order of the file. The slice is the reader's.
func (p *PageReader) Runs() []Run { return p.runs }

// Pages returns how many pages with data and how many zero pages there are.
func (p *PageReader) Pages() (data, zero uint64) { return p.tail.dataPages, p.tail.zeroPages }

// ReadRun reads run r, which must be one of Runs, into dst (at least r.Len()
// bytes) and checks it. dst is undefined after an error. When nothing is
// compressed, the bytes go from the file into dst without a copy.
//
// Expected errors: ErrCorrupt, or those of reading.
func (p *PageReader) ReadRun(r Run, dst []byte) error {
	dst = dst[:r.Len()]
	if r.Zero {
		clear(dst)
		return nil
	}
	stored := dst
	if int(r.stored) != len(dst) {
		stored = make([]byte, r.stored)
	}
	if err := readAt(p.f, stored, r.offset); err != nil {
		return fmt.Errorf("%s: run at %x: %w", p.part.name(), r.Addr, err)
	}
	if xxh3.HashSeed(stored, r.Addr) != r.sum {
		return fmt.Errorf("%w: %s: checksum of the run at %x", ErrCorrupt, p.part.name(), r.Addr)
	}
	if int(r.stored) == len(dst) {
		return nil
	}
	return p.decompress(r, stored, dst)
}

func (p *PageReader) decompress(r Run, stored, dst []byte) error {
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
		return fmt.Errorf("%w: %s: run at %x does not unpack (%v)", ErrCorrupt, p.part.name(), r.Addr, err) //nolint:errorlint // nil when the length is wrong; ErrCorrupt is what counts
	}
	if &out[0] != &dst[0] {
		copy(dst, out)
	}
	return nil
}

// Each reads all runs with workers goroutines and hands each, checked, to fn,
// which may run concurrently with itself; data is fn's only until it returns,
// and nil for runs of zeroes. Runs come in no particular order. Each ends with
// the first error, after all of its goroutines ended.
//
// Expected errors: ErrCorrupt, those of reading, those of fn, ctx's.
func (p *PageReader) Each(ctx context.Context, workers int, fn func(r Run, data []byte) error) error {
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range max(1, workers) {
		g.Go(func() error {
			buf := make([]byte, MaxRunBytes)
			for {
				i := int(next.Add(1)) - 1
				if i >= len(p.runs) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				r, data := p.runs[i], []byte(nil)
				if !r.Zero {
					data = buf[:r.Len()]
					if err := p.ReadRun(r, data); err != nil {
						return err
					}
				}
				if err := fn(r, data); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// verify reads everything once and checks it.
func (p *PageReader) verify(ctx context.Context, workers int) error {
	return p.Each(ctx, workers, func(Run, []byte) error { return nil })
}

// Overlapping returns the runs that have pages in [start, end), by address.
func (p *PageReader) Overlapping(start, end uint64) []Run {
	i, _ := slices.BinarySearchFunc(p.byAddr, start, func(i int, a uint64) int {
		if p.runs[i].End() <= a {
			return -1
		}
		return 1
	})
	var out []Run
	for ; i < len(p.byAddr) && p.runs[p.byAddr[i]].Addr < end; i++ {
		out = append(out, p.runs[p.byAddr[i]])
	}
	return out
}

// ReadAt fills dst with the memory at addr; pages of no run read as zero.
//
// Expected errors: as ReadRun.
func (p *PageReader) ReadAt(addr uint64, dst []byte) error {
	clear(dst)
	end := addr + uint64(len(dst))
	buf := make([]byte, MaxRunBytes)
	for _, r := range p.Overlapping(addr, end) {
		if r.Zero {
			continue
		}
		if err := p.ReadRun(r, buf); err != nil {
			return err
		}
		from, to := max(r.Addr, addr), min(r.End(), end)
		copy(dst[from-addr:to-addr], buf[from-r.Addr:to-r.Addr])
	}
	return nil
}

// Close releases the file.
func (p *PageReader) Close() error {
	if p.zstd != nil {
		p.zstd.Close()
	}
	return p.f.Close()
}
