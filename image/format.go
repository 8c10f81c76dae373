package image

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/lampause/lampause/job"
)

// The format of a page file. All numbers are little-endian.
//
//	offset          what
//	0               header, one page of 4096 bytes
//	4096            data: the bytes of the runs that this file stores, no gaps
//	indexOff        index: segments, runs, sums
//	...             trailer, 80 bytes; the file ends here. Its XXH3 is in Manifest.Tails
//
// Header:
//
//	0   8  magic "LAMPAGES"
//	8   4  version
//	12  4  header size, 4096
//	16  8  job
//	24  8  epoch
//	32  8  incarnation
//	40  4  pod
//	44  4  kind: 1 process, 2 object
//	48  8  pid or object id
//	56  4  page size, 4096
//	60  4  compression: 0 none, 1 s2, 2 zstd
//	64     zero
//	4088 8 XXH3 of bytes 0..4087
//
// Index: the segments, 24 bytes each, epochs ascending. A segment is the page
// file of the same process or object of an earlier epoch, of which this one
// uses pages. The file itself is segment 0 and not listed; the first one listed
// is segment 1.
//
//	0   8  epoch
//	8   8  size of the file
//	16  8  XXH3 of its trailer, which covers all of it
//
// Index: the runs, 32 bytes each. Those of segment 0 come in the order of their
// data.
//
//	0   8  address of the first page; in an object its offset
//	8   8  offset of the stored bytes in the segment's file; 0 for a run of zeroes
//	16  4  pages in the run
//	20  4  stored bytes: 4096*pages when not compressed, 0 for a run of zeroes
//	24  4  segment; 0 for a run of zeroes
//	28  4  when compressed, low half of the XXH3 of the stored bytes; else 0
//
// Index: the sums, 8 bytes each: XXH3 of every page with data, unpacked, run by
// run.
//
// Trailer:
//
//	0   8  magic "LAMPTAIL"
//	8   8  indexOff
//	16  8  number of segments
//	24  8  number of runs
//	32  8  XXH3 of the index
//	40  8  pages with data
//	48  8  pages of zeroes
//	56  8  pages whose data this file stores
//	64  8  zero
//	72  8  XXH3 of bytes 0..71, seeded with the header's XXH3
//
// A page of no run was not captured: in an anonymous mapping it is untouched,
// in a private file mapping it is the file's.
const (
	pageSize     = 4096
	headerSize   = 4096
	segEntrySize = 24
	runEntrySize = 32
	trailerSize  = 80

	pageMagic = "LAMPAGES"
	tailMagic = "LAMPTAIL"

	kindProcess = 1
	kindObject  = 2

	// maxRunPages bounds the pages of a run with data, hence the memory a
	// reader needs for one run: 1 MB.
	maxRunPages = 256

	// maxSegments bounds the files that the memory of one process or object is
	// spread over: the file of the epoch and earlier ones. See keep.go.
	maxSegments = 8
)

// PageSize is the size in bytes of the pages in page files.
const PageSize = pageSize

// MaxRunBytes is the most memory that one run with data describes.
const MaxRunBytes = maxRunPages * pageSize

// Compression chooses how runs are stored.
type Compression uint32

// The compressions. Runs that do not shrink are stored as they are.
const (
	CompressNone Compression = 0
	CompressS2   Compression = 1
	CompressZstd Compression = 2
)

// partID names one page file.
type partID struct {
	Identity
	kind uint32
	id   uint64
}

func (p partID) name() string {
	if p.kind == kindObject {
		return ObjectFile(int(p.id), p.Epoch) //nolint:gosec // ids are small counters
	}
	return ProcessFile(int(p.id), p.Epoch) //nolint:gosec // pids are 22 bits
}

// Run describes adjacent pages that are stored together.
type Run struct {
	Addr  uint64 // of the first page
	Pages uint32
	Zero  bool // all pages are zero; nothing is stored

	offset int64
	stored uint32
	seg    int    // index into the segments; 0 is the file of the epoch itself
	packed uint32 // checksum of the stored bytes of a compressed run
	sums   []uint64
}

// segment is an entry of the table of segments.
type segment struct {
	epoch job.Epoch
	size  int64
	tail  uint64
}

// Len returns the length of the run's memory in bytes.
func (r Run) Len() int { return int(r.Pages) * pageSize }

// End returns the address after the run.
func (r Run) End() uint64 { return r.Addr + uint64(r.Pages)*pageSize }

// cut returns the part of r in [from, to), which lies within r. Only runs of
// zeroes and runs that are not compressed can be cut.
func (r Run) cut(from, to uint64) Run {
	skip := (from - r.Addr) / pageSize
	r.Pages = uint32((to - from) / pageSize) //nolint:gosec // not more than it has
	r.Addr = from
	if !r.Zero {
		r.offset += int64(skip * pageSize) //nolint:gosec // at most 1 MB
		r.stored = r.Pages * pageSize
		r.sums = r.sums[skip : skip+uint64(r.Pages)]
	}
	return r
}

// packedSum is the checksum of the stored bytes of a compressed run.
func packedSum(b []byte) uint32 { return uint32(xxh3.Hash(b)) } //nolint:gosec // the low half

// pageSum is the sum of a page.
func pageSum(page []byte) uint64 { return xxh3.Hash(page) }

// encodeIndex returns the stored form of an index.
func encodeIndex(segs []segment, runs []Run) []byte {
	le := binary.LittleEndian
	var b []byte
	for _, s := range segs {
		b = le.AppendUint64(b, uint64(s.epoch))
		b = le.AppendUint64(b, uint64(s.size)) //nolint:gosec // sizes are not negative
		b = le.AppendUint64(b, s.tail)
	}
	for i := range runs {
		r := &runs[i]
		b = le.AppendUint64(b, r.Addr)
		b = le.AppendUint64(b, uint64(r.offset)) //nolint:gosec // offsets are not negative
		b = le.AppendUint32(b, r.Pages)
		b = le.AppendUint32(b, r.stored)
		b = le.AppendUint32(b, uint32(r.seg)) //nolint:gosec // at most maxSegments
		b = le.AppendUint32(b, r.packed)
	}
	for i := range runs {
		for _, s := range runs[i].sums {
			b = le.AppendUint64(b, s)
		}
	}
	return b
}

func encodeHeader(p partID, c Compression) []byte {
	b := make([]byte, headerSize)
	copy(b, pageMagic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], Version)
	le.PutUint32(b[12:], headerSize)
	le.PutUint64(b[16:], uint64(p.Job))
	le.PutUint64(b[24:], uint64(p.Epoch))
	le.PutUint64(b[32:], uint64(p.Incarnation))
	le.PutUint32(b[40:], uint32(p.Pod)) //nolint:gosec // pods are bounded by job.MaxRanks
	le.PutUint32(b[44:], p.kind)
	le.PutUint64(b[48:], p.id)
	le.PutUint32(b[56:], pageSize)
	le.PutUint32(b[60:], uint32(c))
	le.PutUint64(b[headerSize-8:], xxh3.Hash(b[:headerSize-8]))
	return b
}

// decodeHeader checks a header and returns what it says and its XXH3.
func decodeHeader(b []byte) (partID, Compression, uint64, error) {
	le := binary.LittleEndian
	if len(b) != headerSize || string(b[:8]) != pageMagic {
		return partID{}, 0, 0, fmt.Errorf("%w: not a page file", ErrCorrupt)
	}
	sum := le.Uint64(b[headerSize-8:])
	if xxh3.Hash(b[:headerSize-8]) != sum {
		return partID{}, 0, 0, fmt.Errorf("%w: header checksum", ErrCorrupt)
	}
	if v := le.Uint32(b[8:]); v != Version {
		return partID{}, 0, 0, versionError("page file", uint64(v))
	}
	if le.Uint32(b[12:]) != headerSize || le.Uint32(b[56:]) != pageSize {
		return partID{}, 0, 0, fmt.Errorf("%w: header or page size", ErrCorrupt)
	}
	c := Compression(le.Uint32(b[60:]))
	if c > CompressZstd {
		return partID{}, 0, 0, fmt.Errorf("%w: unknown compression %d", ErrCorrupt, c)
	}
	p := partID{
		Identity: Identity{
			Job:         job.ID(le.Uint64(b[16:])),
			Epoch:       job.Epoch(le.Uint64(b[24:])),
			Incarnation: job.Incarnation(le.Uint64(b[32:])),
			Pod:         job.PodIndex(le.Uint32(b[40:])),
		},
		kind: le.Uint32(b[44:]), id: le.Uint64(b[48:]),
	}
	return p, c, sum, nil
}

// versionError refuses another format version by name.
func versionError(what string, v uint64) error {
	return fmt.Errorf("%w: %s of version %d; this program reads and writes version %d", ErrVersion, what, v, Version)
}

// trailer is the end of a page file, decoded.
type trailer struct {
	indexOff  int64
	segments  uint64
	runs      uint64
	indexSum  uint64
	dataPages uint64
	zeroPages uint64
	ownPages  uint64
}

func (t trailer) encode(headerSum uint64) []byte {
	b := make([]byte, trailerSize)
	copy(b, tailMagic)
	le := binary.LittleEndian
	le.PutUint64(b[8:], uint64(t.indexOff)) //nolint:gosec // offsets are not negative
	le.PutUint64(b[16:], t.segments)
	le.PutUint64(b[24:], t.runs)
	le.PutUint64(b[32:], t.indexSum)
	le.PutUint64(b[40:], t.dataPages)
	le.PutUint64(b[48:], t.zeroPages)
	le.PutUint64(b[56:], t.ownPages)
	le.PutUint64(b[72:], xxh3.HashSeed(b[:72], headerSum))
	return b
}

// decodeTrailer checks the trailer of a file of fileSize bytes. The numbers of
// entries it returns are bounded by the size of the file.
func decodeTrailer(b []byte, headerSum uint64, fileSize int64) (trailer, error) {
	le := binary.LittleEndian
	if len(b) != trailerSize || string(b[:8]) != tailMagic ||
		xxh3.HashSeed(b[:72], headerSum) != le.Uint64(b[72:]) || le.Uint64(b[64:]) != 0 {
		return trailer{}, fmt.Errorf("%w: trailer", ErrCorrupt)
	}
	t := trailer{
		segments: le.Uint64(b[16:]), runs: le.Uint64(b[24:]), indexSum: le.Uint64(b[32:]),
		dataPages: le.Uint64(b[40:]), zeroPages: le.Uint64(b[48:]), ownPages: le.Uint64(b[56:]),
	}
	off := le.Uint64(b[8:])
	room := uint64(fileSize) - trailerSize //nolint:gosec // callers checked the size
	if off < headerSize || off > room || t.segments >= maxSegments ||
		t.runs > (room-off)/runEntrySize || t.dataPages > (room-off)/8 || t.ownPages > t.dataPages ||
		t.segments*segEntrySize+t.runs*runEntrySize+t.dataPages*8 != room-off {
		return trailer{}, fmt.Errorf("%w: index of %d runs at %d in a file of %d bytes", ErrCorrupt, t.runs, off, fileSize)
	}
	t.indexOff = int64(off) //nolint:gosec // not more than room
	return t, nil
}

// decodeIndex checks an index and returns what it lists. The runs of the file
// itself tile its data area; others lie within the data of uncompressed files
// as far as their sizes tell.
func decodeIndex(b []byte, t trailer, c Compression, self job.Epoch) ([]segment, []Run, error) {
	if xxh3.Hash(b) != t.indexSum || uint64(len(b)) != t.segments*segEntrySize+t.runs*runEntrySize+t.dataPages*8 {
		return nil, nil, fmt.Errorf("%w: index checksum", ErrCorrupt)
	}
	segs, err := decodeSegments(b[:t.segments*segEntrySize], self)
	if err != nil {
		return nil, nil, err
	}
	b = b[t.segments*segEntrySize:]
	entries, sums := b[:t.runs*runEntrySize], b[t.runs*runEntrySize:]
	d := indexDecoder{segs: segs, comp: c, next: headerSize, left: make([]uint64, t.dataPages)}
	for i := range d.left {
		d.left[i] = leUint64(sums[8*i:])
	}
	runs := make([]Run, 0, t.runs)
	for ; len(entries) > 0; entries = entries[runEntrySize:] {
		r, err := d.run(entries[:runEntrySize])
		if err != nil {
			return nil, nil, err
		}
		runs = append(runs, r)
	}
	if d.next != t.indexOff || len(d.left) != 0 || d.zero != t.zeroPages || d.own != t.ownPages {
		return nil, nil, fmt.Errorf("%w: runs end at %d, index begins at %d", ErrCorrupt, d.next, t.indexOff)
	}
	return segs, runs, nil
}

func decodeSegments(b []byte, self job.Epoch) ([]segment, error) {
	var segs []segment
	var last job.Epoch
	for ; len(b) > 0; b = b[segEntrySize:] {
		s := segment{
			epoch: job.Epoch(leUint64(b)), tail: leUint64(b[16:]),
			size: int64(leUint64(b[8:])), //nolint:gosec // a negative one is refused
		}
		if s.epoch <= last || s.epoch >= self || s.size < headerSize+trailerSize {
			return nil, fmt.Errorf("%w: segment of epoch %d in epoch %d", ErrCorrupt, s.epoch, self)
		}
		last = s.epoch
		segs = append(segs, s)
	}
	return segs, nil
}

// indexDecoder checks runs one after the other.
type indexDecoder struct {
	segs []segment
	comp Compression
	next int64    // where the next data of the file itself is
	left []uint64 // sums not given away yet
	zero uint64
	own  uint64
}

func (d *indexDecoder) run(b []byte) (Run, error) {
	le := binary.LittleEndian
	off, seg := le.Uint64(b[8:]), le.Uint32(b[24:])
	r := Run{
		Addr: le.Uint64(b), Pages: le.Uint32(b[16:]), stored: le.Uint32(b[20:]),
		offset: int64(off), //nolint:gosec // checked below
		seg:    int(seg), packed: le.Uint32(b[28:]),
	}
	r.Zero = r.stored == 0
	raw := uint64(r.Pages) * pageSize
	switch {
	case r.Pages == 0 || r.Addr%pageSize != 0 || r.Addr+raw < r.Addr || int(seg) > len(d.segs), r.packed != 0 && uint64(r.stored) == raw:
		return r, fmt.Errorf("%w: run at %x of %d pages", ErrCorrupt, r.Addr, r.Pages)
	case r.Zero:
		if off != 0 || seg != 0 || r.packed != 0 {
			return r, fmt.Errorf("%w: run of zeroes at %x has data", ErrCorrupt, r.Addr)
		}
		d.zero += uint64(r.Pages)
		return r, nil
	case r.Pages > maxRunPages || uint64(r.stored) > raw || uint64(r.Pages) > uint64(len(d.left)),
		(d.comp == CompressNone || seg != 0) && uint64(r.stored) != raw:
		return r, fmt.Errorf("%w: run at %x: %d bytes for %d pages", ErrCorrupt, r.Addr, r.stored, r.Pages)
	case seg == 0 && r.offset != d.next:
		return r, fmt.Errorf("%w: run at %x is at %d, want %d", ErrCorrupt, r.Addr, r.offset, d.next)
	case seg == 0:
		d.next += int64(r.stored)
		d.own += uint64(r.Pages)
	case r.offset < headerSize || r.offset > d.segs[seg-1].size-int64(raw): //nolint:gosec // at most 1 MB
		return r, fmt.Errorf("%w: run at %x is at %d of segment %d", ErrCorrupt, r.Addr, r.offset, seg)
	}
	r.sums, d.left = d.left[:r.Pages:r.Pages], d.left[r.Pages:]
	return r, nil
}
