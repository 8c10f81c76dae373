package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
)

// Options tells how an image is written.
type Options struct {
	// Compression of page runs; default none.
	Compression Compression
	// Direct writes past the page cache (O_DIRECT), straight from the
	// caller's memory: several times faster on disks that keep up, and it
	// pushes nothing out of the cache. Ignored with compression, and where
	// the file system or the alignment of the memory does not allow it.
	Direct bool
}

// flushBytes is how much is gathered for one write.
const flushBytes = 4 << 20

// maxIovecs is IOV_MAX of the kernel.
const maxIovecs = 1024

// PageWriter writes one page file. It is used by one goroutine at a time.
//
// Memory given to Write is not copied: it is hashed by other goroutines and
// written in large pieces, so it must stay as it is until Close returns.
type PageWriter struct {
	w      *Writer
	part   partID
	f      *os.File
	direct bool
	enc    *zstd.Encoder

	base      *PageReader // nil without one
	headerSum uint64
	segs      []segment // earlier files that pages are taken from
	runs      []Run
	open      bool     // the last of runs may still grow
	pending   [][]byte // to be written at off
	pendBytes int
	off       int64 // file offset of pending
	end       int64 // file offset after pending
	dataPages uint64
	zeroPages uint64
	ownPages  uint64

	hasher *pieceHasher
	err    error
	closed bool
}

func newPageWriter(w *Writer, part partID, f *os.File, o Options) (*PageWriter, error) {
	p := &PageWriter{
		w: w, part: part, f: f, direct: o.Direct && o.Compression == CompressNone,
		hasher: newPieceHasher(),
	}
	if o.Compression == CompressZstd {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		p.enc = enc
	}
	header, err := alignedPage()
	if err != nil {
		return nil, err
	}
	copy(header, encodeHeader(part, o.Compression))
	p.headerSum = leUint64(header[headerSize-8:])
	if p.direct {
		p.setDirect(true)
	}
	p.queue(header)
	p.flush() // the header page belongs to this function
	p.hasher.write([][]byte{bytes.Clone(header)})
	return p, errors.Join(p.err, unix.Munmap(header))
}

// alignedPage maps a page of memory, aligned for O_DIRECT.
func alignedPage() ([]byte, error) {
	b, err := unix.Mmap(-1, 0, headerSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return b, nil
}

// Write adds memory that begins at addr of the process (or offset of the
// object). Both addr and len(data) are multiples of PageSize; addresses need
// not ascend. Pages of zeroes take no room. See PageWriter for who owns data.
//
// Expected errors: those of writing; the first one sticks and Close repeats it.
func (p *PageWriter) Write(addr uint64, data []byte) error {
	if p.err == nil && (addr%pageSize != 0 || len(data)%pageSize != 0) {
		p.err = fmt.Errorf("write %s: address %x or length %d is no multiple of the page size", p.part.name(), addr, len(data))
	}
	for len(data) > 0 && p.err == nil {
		n, zero := span(data)
		if zero {
			p.WriteZero(addr, n/pageSize)
		} else {
			p.add(addr, data[:n])
		}
		addr, data = addr+uint64(n), data[n:] //nolint:gosec // n is positive
	}
	return p.err
}

// span returns the length of the pages at the start of data that are all zero
// or all not, and which; at most MaxRunBytes when not.
func span(data []byte) (n int, zero bool) {
	zero = isZero(data[:pageSize])
	for n = pageSize; n < len(data) && (zero || n < MaxRunBytes); n += pageSize {
		if isZero(data[n:n+pageSize]) != zero {
			break
		}
	}
	return n, zero
}

func isZero(page []byte) bool {
	var zeroes [pageSize]byte
	return page[0] == 0 && bytes.Equal(page, zeroes[:])
}

// WriteZero records that pages pages at addr are zero.
func (p *PageWriter) WriteZero(addr uint64, pages int) {
	p.seal()
	p.zeroPages += uint64(pages) //nolint:gosec // not negative
	if n := len(p.runs); n > 0 && p.runs[n-1].Zero && p.runs[n-1].End() == addr {
		p.runs[n-1].Pages += uint32(pages) //nolint:gosec // 16 TB in pages
		return
	}
	p.runs = append(p.runs, Run{Addr: addr, Pages: uint32(pages), Zero: true}) //nolint:gosec // 16 TB in pages
}

// add appends pages with data to the open run, or begins a new one.
func (p *PageWriter) add(addr uint64, data []byte) {
	for len(data) > 0 && p.err == nil {
		last := len(p.runs) - 1
		if !p.open || p.runs[last].End() != addr || p.runs[last].Pages == maxRunPages {
			p.seal()
			p.runs = append(p.runs, Run{Addr: addr, offset: p.end})
			p.open, last = true, len(p.runs)-1
		}
		n := min(len(data), (maxRunPages-int(p.runs[last].Pages))*pageSize)
		p.runs[last].Pages += uint32(n / pageSize) //nolint:gosec // at most maxRunPages
		p.dataPages += uint64(n / pageSize)        //nolint:gosec // as above
		p.ownPages += uint64(n / pageSize)         //nolint:gosec // as above
		p.store(data[:n])
		addr, data = addr+uint64(n), data[n:] //nolint:gosec // n is positive
	}
}

// store hashes and queues pages of the open run, compressed if so wished.
// Compressed runs are not continued.
func (p *PageWriter) store(data []byte) {
	last := &p.runs[len(p.runs)-1]
	for at := 0; at < len(data); at += pageSize {
		last.sums = append(last.sums, pageSum(data[at:at+pageSize]))
	}
	out := p.compress(data)
	if out == nil {
		out = data
	} else {
		last.packed = packedSum(out)
	}
	if p.w.opts.Compression != CompressNone {
		p.seal()
	}
	last.stored += uint32(len(out)) //nolint:gosec // at most 1 MB
	p.queue(out)
	if p.pendBytes >= flushBytes || len(p.pending) >= maxIovecs {
		p.flushHashed()
	}
}

// compress returns data in compressed form, nil when it is to be stored as it is.
func (p *PageWriter) compress(data []byte) []byte {
	var out []byte
	switch p.w.opts.Compression {
	case CompressS2:
		out = s2.Encode(nil, data)
	case CompressZstd:
		out = p.enc.EncodeAll(data, nil)
	default:
		return nil
	}
	if len(out) >= len(data) {
		return nil
	}
	return out
}

// seal ends the open run.
func (p *PageWriter) seal() { p.open = false }

func (p *PageWriter) queue(b []byte) {
	p.pending = append(p.pending, b)
	p.pendBytes += len(b)
	p.end += int64(len(b))
}

// flushHashed writes what is pending and hands it to the hasher.
func (p *PageWriter) flushHashed() {
	bufs := p.pending
	p.flush()
	if p.err == nil && len(bufs) > 0 {
		p.hasher.write(bufs)
	}
}

// flush writes what is pending.
func (p *PageWriter) flush() {
	bufs := p.pending
	p.pending, p.pendBytes = nil, 0
	if p.err != nil || len(bufs) == 0 {
		return
	}
	if err := p.w.step.before("write " + p.part.name()); err != nil {
		p.err = err
		return
	}
	if p.err = p.pwritev(bufs); p.err == nil {
		p.off = p.end
	}
}

// pwritev writes all of bufs at p.off; when the kernel refuses direct writing
// (EINVAL) it goes on without.
func (p *PageWriter) pwritev(bufs [][]byte) error {
	off := p.off
	rest := append([][]byte(nil), bufs...)
	for len(rest) > 0 {
		n, err := unix.Pwritev(int(p.f.Fd()), rest, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EINVAL) && p.direct:
			p.setDirect(false)
			continue
		case err != nil:
			return fmt.Errorf("write %s at %d: %w", p.part.name(), off, err)
		case n == 0:
			return fmt.Errorf("write %s at %d: %w", p.part.name(), off, unix.ENOSPC)
		}
		off += int64(n)
		rest = advance(rest, n)
	}
	return nil
}

// advance drops the first n bytes of bufs.
func advance(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}

// setDirect switches O_DIRECT. A file system that cannot do it stays buffered.
func (p *PageWriter) setDirect(on bool) {
	flags, err := unix.FcntlInt(p.f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		p.direct = false
		return
	}
	flags &^= unix.O_DIRECT
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(p.f.Fd(), unix.F_SETFL, flags)
	p.direct = on && err == nil
}

// Close writes index and trailer, syncs the file and tells its digest to the
// Writer. After it returns, the memory given to Write is the caller's again.
//
// Expected errors: the first of Write, or those of writing and syncing.
func (p *PageWriter) Close() error {
	if p.closed {
		return p.err
	}
	p.closed = true
	p.seal()
	p.flushHashed()
	if p.direct {
		p.setDirect(false)
	}
	index := encodeIndex(p.segs, p.runs)
	t := trailer{
		indexOff: p.end, segments: uint64(len(p.segs)), runs: uint64(len(p.runs)), indexSum: xxh3.Hash(index),
		dataPages: p.dataPages, zeroPages: p.zeroPages, ownPages: p.ownPages,
	}
	end := t.encode(p.headerSum)
	p.queue(append(index, end...))
	p.flushHashed()
	digest := p.hasher.sum()
	if p.enc != nil {
		p.err = errors.Join(p.err, p.enc.Close())
	}
	if p.err == nil {
		p.err = p.w.syncFile(p.f, p.part.name())
	}
	if err := p.f.Close(); err != nil && p.err == nil {
		p.err = fmt.Errorf("close %s: %w", p.part.name(), err)
	}
	p.w.finished(p, podapi.File{Size: p.end, SHA256: digest}, leUint64(end[trailerSize-8:]))
	return p.err
}
