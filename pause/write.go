package pause

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// write stores the draft while the ranks run. The mutex is not held meanwhile:
// the memory is kept by a count of its users.
func (p *Pod) write(ctx context.Context, epoch job.Epoch, x Extra, dir *image.JobDir, o image.Options) (*podapi.Written, error) {
	snap, done, again, err := p.beginWrite(epoch)
	if err != nil || again != nil {
		return again, err
	}
	defer done()
	id := image.Identity{Job: p.cfg.Job, Pod: p.cfg.Pod, Epoch: epoch, Incarnation: p.cfg.Incarnation}
	if err := snap.finish(ctx); err != nil {
		return nil, fmt.Errorf("pause: write epoch %d: %w", epoch, err)
	}
	inc := p.increment(snap)
	written, err := snap.store(ctx, p.cfg, x, &p.group.files, inc, func() (*image.Writer, func() error, error) { return inc.begin(dir, id, o) })
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

// beginWrite checks that the epoch can be written, and keeps its memory until
// done is called; again is the answer when it was written.
func (p *Pod) beginWrite(epoch job.Epoch) (_ *snapshot, done func(), again *podapi.Written, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, acts, err := step(p.state, Event{podapi.OpWrite, epoch})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("pause: %w", err)
	}
	if len(acts) == 0 {
		return nil, nil, p.written, nil
	}
	if p.draft == nil || !p.draft.whole {
		return nil, nil, nil, fmt.Errorf("pause: write: epoch %d is not whole: %w", epoch, ErrOrder)
	}
	return p.draft, p.draft.use(), nil, nil
}

// store writes the page files of all processes in parallel, then the manifest.
func (s *snapshot) store(ctx context.Context, cfg Config, x Extra, files *identities, inc increment, open func() (*image.Writer, func() error, error)) (_ podapi.Written, err error) {
	m, err := s.manifest(cfg, x, files)
	if err != nil {
		return podapi.Written{}, err
	}
	w, release, err := open()
	if err != nil {
		return podapi.Written{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
		err = errors.Join(err, release())
	}()
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(2) // the ranks want the cores
	for _, c := range s.procs {
		eg.Go(func() error {
			return storePages(ectx, c.pages, inc.same[c.pid], func() (*image.PageWriter, error) { return w.Process(c.image.PID) })
		})
	}
	for i, o := range s.objects {
		eg.Go(func() error {
			return storePages(ectx, o.pages, nil, func() (*image.PageWriter, error) { return w.Object(i + 1) })
		})
	}
	if err := eg.Wait(); err != nil {
		return podapi.Written{}, err
	}
	return w.Commit(ctx, m)
}

// storePages writes one page file, without what is the same as in the base.
func storePages(ctx context.Context, p pages, same []kernel.Range, open func() (*image.PageWriter, error)) (err error) {
	pw, err := open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pw.Close()) }()
	if len(same) == 0 {
		return p.each(ctx, 1, nil, pw.Write)
	}
	left := keep(pw, p.ranges(), same)
	if len(left) == 0 {
		return nil
	}
	return p.each(ctx, 1, left, pw.Write)
}

// identities remembers what files are, so that each is read once and not at
// every checkpoint. It is safe for concurrent use.
type identities struct {
	mu    sync.Mutex
	known map[string]identified
}

// identified is a file that was read, and how it looked then.
type identified struct {
	file image.MappedFile
	mod  time.Time
}

// get identifies the file at path of process pid; when that is gone, of our own
// tree, which is the same one.
func (x *identities) get(pid int, path string) (image.MappedFile, error) {
	full := "/proc/" + strconv.Itoa(pid) + "/root" + path
	st, err := os.Stat(full)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		full = path
		st, err = os.Stat(full)
	}
	if err != nil {
		return image.MappedFile{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if k, ok := x.known[path]; ok && k.mod.Equal(st.ModTime()) && k.file.Size == st.Size() && k.file.Ino == inode(st) {
		return k.file, nil
	}
	f, err := image.IdentifyFile(full)
	if err != nil {
		return f, err
	}
	f.Path = path
	if x.known == nil {
		x.known = map[string]identified{}
	}
	x.known[path] = identified{f, st.ModTime()}
	return f, nil
}

func inode(st os.FileInfo) uint64 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}

// identifyFiles completes the files of the mappings with build-ids and sizes.
// It reads the files, so it is not done during the stall.
func (x *identities) identifyFiles(c *captured) (exe image.MappedFile, maps []image.Mapping, err error) {
	if exe, err = x.get(c.pid, c.image.Exe.Path); err != nil {
		return exe, nil, err
	}
	maps = append(maps, c.image.Maps...)
	for i := range maps {
		if maps[i].File == nil || maps[i].Object != 0 {
			continue
		}
		f, err := x.get(c.pid, maps[i].File.Path)
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
