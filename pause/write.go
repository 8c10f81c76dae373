package pause

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// write stores the draft while the ranks run. The mutex is not held meanwhile:
// the memory is kept by a count of its users.
func (p *Pod) write(ctx context.Context, epoch job.Epoch, x Extra, open func(image.Identity) (*image.Writer, error)) (*podapi.Written, error) {
	snap, again, err := p.beginWrite(epoch)
	if err != nil || again != nil {
		return again, err
	}
	done := snap.use()
	defer done()
	id := image.Identity{Job: p.cfg.Job, Pod: p.cfg.Pod, Epoch: epoch, Incarnation: p.cfg.Incarnation}
	written, err := snap.store(ctx, p.cfg, x, func() (*image.Writer, error) { return open(id) })
	if err != nil {
		return nil, fmt.Errorf("pause: write epoch %d: %w", epoch, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state.Draft != epoch {
		return nil, fmt.Errorf("pause: write: epoch %d was given up: %w", epoch, ErrUnknownEpoch)
	}
	p.state.Written = true
	p.written = &written
	return &written, nil
}

// beginWrite checks that the epoch can be written; again is the answer when it
// was.
func (p *Pod) beginWrite(epoch job.Epoch) (_ *snapshot, again *podapi.Written, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, acts, err := step(p.state, Event{podapi.OpWrite, epoch})
	if err != nil {
		return nil, nil, fmt.Errorf("pause: %w", err)
	}
	if len(acts) == 0 {
		return nil, p.written, nil
	}
	if p.draft == nil || !p.draft.whole {
		return nil, nil, fmt.Errorf("pause: write: epoch %d is not whole: %w", epoch, ErrOrder)
	}
	return p.draft, nil, nil
}

// store writes the page files of all processes in parallel, then the manifest.
func (s *snapshot) store(ctx context.Context, cfg Config, x Extra, open func() (*image.Writer, error)) (_ podapi.Written, err error) {
	m, err := s.manifest(cfg, x)
	if err != nil {
		return podapi.Written{}, err
	}
	w, err := open()
	if err != nil {
		return podapi.Written{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(2) // the ranks want the cores
	for _, c := range s.procs {
		eg.Go(func() error { return c.store(ectx, w) })
	}
	if err := eg.Wait(); err != nil {
		return podapi.Written{}, err
	}
	return w.Commit(ctx, m)
}

// store writes the page file of one process.
func (c *captured) store(ctx context.Context, w *image.Writer) (err error) {
	pw, err := w.Process(c.image.PID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pw.Close()) }()
	return c.pages.each(ctx, 1, pw.Write)
}

// identifyFiles completes the files of the mappings with build-ids and sizes.
// It reads the files, so it is not done during the stall.
func identifyFiles(c *captured) (exe image.MappedFile, maps []image.Mapping, err error) {
	root := "/proc/" + strconv.Itoa(c.pid) + "/root"
	known := map[string]image.MappedFile{}
	get := func(path string) (image.MappedFile, error) {
		if f, ok := known[path]; ok {
			return f, nil
		}
		f, err := image.IdentifyFile(root + path)
		if err != nil {
			return f, err
		}
		f.Path = path
		known[path] = f
		return f, nil
	}
	if exe, err = get(c.image.Exe.Path); err != nil {
		return exe, nil, err
	}
	maps = append(maps, c.image.Maps...)
	for i := range maps {
		if maps[i].File == nil || maps[i].Object != 0 {
			continue
		}
		f, err := get(maps[i].File.Path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return exe, nil, err
		}
		if err != nil || f.Ino != maps[i].File.Ino {
			return exe, nil, fmt.Errorf("mapped file %s was replaced since the process started", maps[i].File.Path)
		}
		maps[i].File = &f
	}
	return exe, maps, nil
}
