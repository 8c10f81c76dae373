package image

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Span is a range of addresses, [Start, End), both multiples of PageSize.
type Span struct {
	Start, End uint64
}

// Base offers the image that r reads to be shared: PageWriter.Keep takes pages
// over from it. It must be of the same pod at an earlier epoch, and stay open
// until Commit or Abort. Call it before the first Process or Object.
//
// Expected errors: ErrMismatch.
func (w *Writer) Base(r *Reader) error {
	m := r.Manifest()
	if m.Job != w.id.Job || m.Pod != w.id.Pod || m.Epoch >= w.id.Epoch || m.Incarnation > w.id.Incarnation {
		return fmt.Errorf("image of job %d epoch %d pod %d: base of job %d epoch %d pod %d: %w",
			w.id.Job, w.id.Epoch, w.id.Pod, m.Job, m.Epoch, m.Pod, ErrMismatch)
	}
	w.base = r
	return nil
}

// baseOf returns the base's page file of the same process or object, nil when
// nothing can be taken from it.
func (w *Writer) baseOf(part partID) *PageReader {
	if w.base == nil || w.opts.Compression != CompressNone {
		return nil
	}
	part.Identity = w.base.manifest.Identity
	p := w.base.parts[part.name()]
	if p == nil || p.files[0].comp != CompressNone {
		return nil
	}
	return p
}

// Keep takes over the pages in spans, which are known to be as they were in the
// base: their files are linked, not written. spans ascend and do not overlap.
// It returns the spans, ascending, that are to be written all the same: what
// the base does not have, and what is gathered from files of which little is
// used any more: the pages in shared files that the epoch does not need are no
// more than those that the base needs, and it has at most eight files per
// process. Call it once, before Write.
func (p *PageWriter) Keep(spans []Span) []Span {
	if p.base == nil {
		return spans
	}
	kept, rest := p.base.within(spans)
	index, segs := p.choose(kept)
	p.segs = segs
	for _, r := range kept {
		switch {
		case r.Zero:
			p.WriteZero(r.Addr, int(r.Pages))
		case index[r.seg] == 0:
			rest = append(rest, Span{r.Addr, r.End()})
		default:
			r.seg = index[r.seg]
			p.runs = append(p.runs, r)
			p.dataPages += uint64(r.Pages)
		}
	}
	return joinSpans(rest)
}

// within returns the parts of runs that lie in spans, and what no run covers.
func (p *PageReader) within(spans []Span) (kept []Run, rest []Span) {
	for _, s := range spans {
		at := s.Start
		for _, r := range p.Overlapping(s.Start, s.End) {
			from, to := max(r.Addr, s.Start), min(r.End(), s.End)
			if at < from {
				rest = append(rest, Span{at, from})
			}
			kept = append(kept, r.cut(from, to))
			at = to
		}
		if at < s.End {
			rest = append(rest, Span{at, s.End})
		}
	}
	return kept, rest
}

// choose decides which files of the base are shared, and links them. It returns
// their new numbers by the old ones, 0 for those that are not, and the table.
func (p *PageWriter) choose(kept []Run) (index []int, segs []segment) {
	files := p.base.files
	live := make([]uint64, len(files))
	for _, r := range kept {
		if !r.Zero {
			live[r.seg] += uint64(r.Pages)
		}
	}
	var order []int // files worth sharing, those with the largest part in use first
	var dead uint64 // pages in them that are not needed
	for i, f := range files {
		if live[i] > 0 {
			order = append(order, i)
			dead += f.tail.ownPages - live[i]
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(live[b]*files[a].tail.ownPages, live[a]*files[b].tail.ownPages)
	})
	for n := len(order); n > maxSegments-1 || dead > files[0].tail.dataPages; n = len(order) {
		worst := order[n-1]
		dead -= files[worst].tail.ownPages - live[worst]
		order = order[:n-1]
	}
	slices.SortFunc(order, func(a, b int) int {
		if files[a].part.Epoch < files[b].part.Epoch {
			return -1
		}
		return 1
	})
	index = make([]int, len(files))
	for _, i := range order {
		if p.w.share(files[i]) == nil { // else it is written anew
			segs = append(segs, segment{epoch: files[i].part.Epoch, size: files[i].size, tail: files[i].tailSum})
			index[i] = len(segs)
		}
	}
	return index, segs
}

// share links a file of the base into this image.
func (w *Writer) share(f *pageFile) error {
	name := f.part.name()
	if err := linkBeneath(w.base.dir, w.dir, name, f.f, w.step); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files[name], w.tails[name] = w.base.manifest.Files[name], f.tailSum
	return nil
}

// linkBeneath gives file name of directory from the same name in to. It must be
// the file that is open as f.
func linkBeneath(from, to *os.File, name string, f *os.File, step stepper) error {
	if err := step.before("link " + name); err != nil {
		return err
	}
	if err := unix.Linkat(int(from.Fd()), name, int(to.Fd()), name, 0); err != nil {
		return &os.LinkError{Op: "link", Old: from.Name() + "/" + name, New: to.Name(), Err: err}
	}
	var is, want unix.Stat_t
	err := unix.Fstatat(int(to.Fd()), name, &is, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &want)
	}
	if err == nil && (is.Dev != want.Dev || is.Ino != want.Ino) {
		err = fmt.Errorf("%w: %s was replaced", ErrMismatch, name)
	}
	if err != nil {
		return errors.Join(err, unlinkBeneath(to, name, 0))
	}
	return nil
}

// joinSpans sorts spans and joins those that touch.
func joinSpans(spans []Span) []Span {
	slices.SortFunc(spans, func(a, b Span) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	out := spans[:0]
	for _, s := range spans {
		if n := len(out); n > 0 && out[n-1].End >= s.Start {
			out[n-1].End = max(out[n-1].End, s.End)
			continue
		}
		out = append(out, s)
	}
	return out
}
