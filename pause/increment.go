package pause

import (
	"errors"
	"slices"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/job"
)

// increment says what of the draft is as it was in the committed epoch, whose
// image need not be written again.
type increment struct {
	base job.Epoch // 0: nothing is known to be the same
	same map[int][]kernel.Range
}

// increment asks the trackers what of snap, whose copy is whole, is as it was
// in the committed epoch. What is not known counts as changed.
func (p *Pod) increment(snap *snapshot) increment {
	p.mu.Lock()
	defer p.mu.Unlock()
	inc := increment{same: map[int][]kernel.Range{}}
	if p.committed == nil || p.draft != snap {
		return inc
	}
	for _, c := range snap.procs {
		k := slices.IndexFunc(p.committed.procs, func(o *captured) bool { return o.pid == c.pid && o.image.PID == c.image.PID })
		if k < 0 {
			continue
		}
		if same := p.group.unchanged(p.committed.procs[k], c); len(same) > 0 {
			inc.same[c.pid], inc.base = same, p.committed.epoch
		}
	}
	return inc
}

// unchanged returns the pages that both copies of a process' memory have and
// that were not written in between. (Nor after the later one, perhaps: only the
// last scan is asked.)
func (g *group) unchanged(before, now *captured) []kernel.Range {
	old, ok1 := before.pages.(*memory)
	cur, ok2 := now.pages.(*memory)
	q := g.procs[now.pid]
	if !ok1 || !ok2 || q == nil || old.of != q || cur.of != q || old.scan == 0 || cur.scan == 0 {
		return nil
	}
	written, known := q.tracker.since(old.scan)
	if !known {
		return nil
	}
	return subtract(intersect(cur.runs, old.runs), written)
}

// begin starts the image, on top of that of the committed epoch where that is
// here. release is called when it is written.
func (inc increment) begin(dir *image.JobDir, id image.Identity, o image.Options) (w *image.Writer, release func() error, err error) {
	release = func() error { return nil }
	if w, err = dir.Create(id, o); err != nil || inc.base == 0 {
		return w, release, err
	}
	r, rerr := dir.Open(inc.base, id.Pod)
	if rerr != nil {
		return w, release, nil //nolint:nilerr // gone, or damaged: all is written
	}
	if err := w.Base(r); err != nil {
		return nil, release, errors.Join(err, r.Close(), w.Abort())
	}
	return w, r.Close, nil
}

// keep hands over to pw what did not change, and returns what is left to be
// written of all.
func keep(pw *image.PageWriter, all, same []kernel.Range) []kernel.Range {
	if len(same) == 0 {
		return all
	}
	same = normalize(same)
	spans := make([]image.Span, len(same))
	for i, r := range same {
		spans[i] = image.Span{Start: r.Start, End: r.End}
	}
	var again []kernel.Range
	for _, s := range pw.Keep(spans) {
		again = append(again, kernel.Range{Start: s.Start, End: s.End})
	}
	return subtract(all, subtract(same, again))
}
