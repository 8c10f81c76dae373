package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
)

// PageReader reads the memory of one process or object at one epoch, which may
// be spread over several page files. It is safe for concurrent use. Nothing it
// returns is unchecked: each page is compared with its XXH3 when it is read.
type PageReader struct {
	files  []*pageFile // of the epoch itself first, then its segments
	runs   []Run       // in the order of the index
	byAddr []int       // indices of runs, by address
}

// openPages opens part of manifest m and the segments that it names. The
// memory it needs is bounded by the size of the files.
func openPages(m *Manifest, part partID, open func(name string) (*os.File, error)) (*PageReader, error) {
	p := &PageReader{}
	if err := p.load(m, part, open); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *PageReader) load(m *Manifest, part partID, open func(name string) (*os.File, error)) error {
	if err := p.open(m, part, open); err != nil {
		return err
	}
	segs, runs, err := p.files[0].index()
	if err != nil {
		return err
	}
	for _, s := range segs {
		part.Epoch = s.epoch
		if f, ok := m.Files[part.name()]; !ok || f.Size != s.size || m.Tails[part.name()] != s.tail {
			return fmt.Errorf("%w: %s is not the file that epoch %d was written with", ErrCorrupt, part.name(), m.Epoch)
		}
		if err := p.open(m, part, open); err != nil {
			return err
		}
	}
	p.runs = runs
	for i := range runs {
		if f := p.files[runs[i].seg]; runs[i].seg != 0 && (f.comp != CompressNone || runs[i].offset+int64(runs[i].stored) > f.tail.indexOff) {
			return fmt.Errorf("%w: %s: run at %x is not in %s", ErrCorrupt, p.files[0].part.name(), runs[i].Addr, f.part.name())
		}
	}
	return p.sortRuns()
}

func (p *PageReader) open(m *Manifest, part partID, open func(name string) (*os.File, error)) error {
	f, err := open(part.name())
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: no file %s", ErrIncomplete, part.name())
	}
	if err != nil {
		return err
	}
	pf, err := openPageFile(f, part, m.Files[part.name()].Size, m.Tails[part.name()], part.Epoch < m.Epoch)
	if err != nil {
		return err
	}
	p.files = append(p.files, pf)
	return nil
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

// Runs returns the runs in the order of the index. The slice is the reader's.
func (p *PageReader) Runs() []Run { return p.runs }

// Pages returns how many pages with data and how many zero pages there are.
func (p *PageReader) Pages() (data, zero uint64) {
	return p.files[0].tail.dataPages, p.files[0].tail.zeroPages
}

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
	return p.files[r.seg].readRun(&r, dst)
}

// Each reads all runs with workers goroutines and hands each, checked, to fn,
// which may run concurrently with itself; data is fn's only until it returns,
// and nil for runs of zeroes. Runs come in no particular order. Each ends with
// the first error, after all of its goroutines ended.
//
// Expected errors: ErrCorrupt, those of reading, those of fn, ctx's.
func (p *PageReader) Each(ctx context.Context, workers int, fn func(r Run, data []byte) error) error {
	return eachRun(ctx, workers, p.runs, func(r *Run, buf []byte) error {
		if r.Zero {
			return fn(*r, nil)
		}
		data := buf[:r.Len()]
		if err := p.files[r.seg].readRun(r, data); err != nil {
			return err
		}
		return fn(*r, data)
	})
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

// Close releases the files.
func (p *PageReader) Close() error {
	var err error
	for _, f := range p.files {
		err = errors.Join(err, f.close())
	}
	p.files = nil
	return err
}
