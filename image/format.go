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
//	4096            data: the stored bytes of all runs, in index order, no gaps
//	indexOff        index: one entry of 32 bytes per run
//	indexOff+32n    trailer, 64 bytes; the file ends here. Its XXH3 is in Manifest.Tails
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
// Index entry (Run):
//
//	0   8  address of the first page; in an object its offset
//	8   8  file offset of the stored bytes; 0 for a run of zeroes
//	16  4  pages in the run
//	20  4  stored bytes: 4096*pages when not compressed, 0 for a run of zeroes
//	24  8  XXH3 of the stored bytes, seeded with the address
//
// Trailer:
//
//	0   8  magic "LAMPTAIL"
//	8   8  indexOff
//	16  8  number of runs
//	24  8  XXH3 of the index
//	32  8  pages with data
//	40  8  pages of zeroes
//	48  8  zero
//	56  8  XXH3 of bytes 0..55, seeded with the header's XXH3
//
// A page of no run was not captured: in an anonymous mapping it is untouched,
// in a private file mapping it is the file's.
const (
	pageSize     = 4096
	headerSize   = 4096
	runEntrySize = 32
	trailerSize  = 64

	pageMagic = "LAMPAGES"
	tailMagic = "LAMPTAIL"

	kindProcess = 1
	kindObject  = 2

	// maxRunPages bounds the pages of a run with data, hence the memory a
	// reader needs for one run: 1 MB.
	maxRunPages = 256
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
		return ObjectFile(int(p.id)) //nolint:gosec // ids are small counters
	}
	return ProcessFile(int(p.id)) //nolint:gosec // pids are 22 bits
}

// Run describes adjacent pages that are stored together.
type Run struct {
	Addr  uint64 // of the first page
	Pages uint32
	Zero  bool // all pages are zero; nothing is stored

	offset int64
	stored uint32
	sum    uint64
}

// Len returns the length of the run's memory in bytes.
func (r Run) Len() int { return int(r.Pages) * pageSize }

// End returns the address after the run.
func (r Run) End() uint64 { return r.Addr + uint64(r.Pages)*pageSize }

func (r Run) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, r.Addr)
	b = le.AppendUint64(b, uint64(r.offset)) //nolint:gosec // offsets are not negative
	b = le.AppendUint32(b, r.Pages)
	b = le.AppendUint32(b, r.stored)
	return le.AppendUint64(b, r.sum)
}

func parseRun(b []byte) Run {
	le := binary.LittleEndian
	r := Run{
		Addr: le.Uint64(b), Pages: le.Uint32(b[16:]),
		stored: le.Uint32(b[20:]), sum: le.Uint64(b[24:]),
		offset: int64(le.Uint64(b[8:])), //nolint:gosec // checked by layout
	}
	r.Zero = r.stored == 0
	return r
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
		return partID{}, 0, 0, fmt.Errorf("%w: page file version %d, want %d", ErrCorrupt, v, Version)
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

// trailer is the end of a page file, decoded.
type trailer struct {
	indexOff  int64
	runs      uint64
	indexSum  uint64
	dataPages uint64
	zeroPages uint64
}

func (t trailer) encode(headerSum uint64) []byte {
	b := make([]byte, trailerSize)
	copy(b, tailMagic)
	le := binary.LittleEndian
	le.PutUint64(b[8:], uint64(t.indexOff)) //nolint:gosec // offsets are not negative
	le.PutUint64(b[16:], t.runs)
	le.PutUint64(b[24:], t.indexSum)
	le.PutUint64(b[32:], t.dataPages)
	le.PutUint64(b[40:], t.zeroPages)
	le.PutUint64(b[56:], xxh3.HashSeed(b[:56], headerSum))
	return b
}

// decodeTrailer checks the trailer of a file of fileSize bytes. The number of
// runs it returns is bounded by the size of the file.
func decodeTrailer(b []byte, headerSum uint64, fileSize int64) (trailer, error) {
	le := binary.LittleEndian
	if len(b) != trailerSize || string(b[:8]) != tailMagic ||
		xxh3.HashSeed(b[:56], headerSum) != le.Uint64(b[56:]) || le.Uint64(b[48:]) != 0 {
		return trailer{}, fmt.Errorf("%w: trailer", ErrCorrupt)
	}
	t := trailer{
		runs: le.Uint64(b[16:]), indexSum: le.Uint64(b[24:]),
		dataPages: le.Uint64(b[32:]), zeroPages: le.Uint64(b[40:]),
	}
	off := le.Uint64(b[8:])
	room := uint64(fileSize) - trailerSize //nolint:gosec // callers checked the size
	if off < headerSize || off > room || (room-off)/runEntrySize != t.runs || (room-off)%runEntrySize != 0 {
		return trailer{}, fmt.Errorf("%w: index of %d runs at %d in a file of %d bytes", ErrCorrupt, t.runs, off, fileSize)
	}
	t.indexOff = int64(off) //nolint:gosec // not more than room
	return t, nil
}

// decodeIndex checks that the runs tile the data area without gaps, ascend by
// file offset and do not overflow, and returns them.
func decodeIndex(b []byte, t trailer, c Compression) ([]Run, error) {
	if xxh3.Hash(b) != t.indexSum {
		return nil, fmt.Errorf("%w: index checksum", ErrCorrupt)
	}
	runs := make([]Run, 0, len(b)/runEntrySize)
	next := int64(headerSize)
	var data, zero uint64
	for ; len(b) >= runEntrySize; b = b[runEntrySize:] {
		r := parseRun(b)
		raw := uint64(r.Pages) * pageSize
		switch {
		case r.Pages == 0 || r.Addr%pageSize != 0 || r.Addr+raw < r.Addr:
			return nil, fmt.Errorf("%w: run at %x of %d pages", ErrCorrupt, r.Addr, r.Pages)
		case r.Zero:
			if r.offset != 0 || r.sum != 0 {
				return nil, fmt.Errorf("%w: run of zeroes at %x has data", ErrCorrupt, r.Addr)
			}
			zero += uint64(r.Pages)
		case r.Pages > maxRunPages || uint64(r.stored) > raw || (c == CompressNone && uint64(r.stored) != raw):
			return nil, fmt.Errorf("%w: run at %x: %d bytes for %d pages", ErrCorrupt, r.Addr, r.stored, r.Pages)
		case r.offset != next:
			return nil, fmt.Errorf("%w: run at %x is at %d, want %d", ErrCorrupt, r.Addr, r.offset, next)
		default:
			data += uint64(r.Pages)
			next += int64(r.stored)
		}
		runs = append(runs, r)
	}
	if next != t.indexOff || data != t.dataPages || zero != t.zeroPages {
		return nil, fmt.Errorf("%w: runs end at %d, index begins at %d", ErrCorrupt, next, t.indexOff)
	}
	return runs, nil
}
