package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
)

// Writer writes the image of one pod at one epoch. It is safe for concurrent
// use. Until Commit returns nil nothing is to be seen under the image's name,
// and a crash leaves only a temporary directory, which the next writer of the
// same image or JobDir.Remove takes away.
type Writer struct {
	id     Identity
	opts   Options
	step   stepper
	parent *os.File // holds tmp and, after Commit, name
	dir    *os.File // tmp
	tmp    string
	name   string

	base *Reader // image that pages are taken over from; nil for none

	mu    sync.Mutex
	files map[string]podapi.File // also those shared with base
	tails map[string]uint64
	open  map[string]*PageWriter
	done  bool
}

// CreateAt begins an image in the new directory path, outside of any store,
// as `lam proc checkpoint --out` does. Its parent must exist.
//
// Expected errors: ErrExists, or those of the file system.
func CreateAt(path string, id Identity, o Options) (*Writer, error) {
	parent, err := os.Open(filepath.Dir(filepath.Clean(path)))
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	w, err := newWriter(parent, filepath.Base(filepath.Clean(path)), id, o, nil)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", path, errors.Join(err, parent.Close()))
	}
	return w, nil
}

// newWriter begins image name in parent, which it takes over unless it fails.
func newWriter(parent *os.File, name string, id Identity, o Options, step stepper) (*Writer, error) {
	if err := unix.Faccessat(int(parent.Fd()), name, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		return nil, ErrExists
	}
	tmp := "." + name + ".tmp"
	if err := removeTree(parent, tmp, 0, step); err != nil {
		return nil, err
	}
	dir, err := mkdirBeneath(parent, tmp, step)
	if err != nil {
		return nil, err
	}
	return &Writer{
		id: id, opts: o, step: step, parent: parent, dir: dir, tmp: tmp, name: name,
		files: map[string]podapi.File{}, tails: map[string]uint64{}, open: map[string]*PageWriter{},
	}, nil
}

// Process begins the page file of process pid (as the pod sees it).
//
// Expected errors: fs.ErrExist when it was begun before; those of the file system.
func (w *Writer) Process(pid int) (*PageWriter, error) {
	return w.part(partID{Identity: w.id, kind: kindProcess, id: uint64(pid)}) //nolint:gosec // pids are positive
}

// Object begins the page file of object id, counted from 1. Addresses in it
// are offsets; the last page is filled up with zeroes.
//
// Expected errors: as Process.
func (w *Writer) Object(id int) (*PageWriter, error) {
	return w.part(partID{Identity: w.id, kind: kindObject, id: uint64(id)}) //nolint:gosec // ids are positive
}

func (w *Writer) part(part partID) (*PageWriter, error) {
	f, err := createBeneath(w.dir, part.name(), w.step)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	p, err := newPageWriter(w, part, f, w.opts)
	w.mu.Lock()
	defer w.mu.Unlock()
	if p != nil {
		w.open[part.name()] = p
		p.base = w.baseOf(part)
	}
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	return p, nil
}

// finished is told by a PageWriter that it is closed.
func (w *Writer) finished(p *PageWriter, f podapi.File, tail uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, p.part.name())
	if p.err == nil {
		w.files[p.part.name()] = f
		w.tails[p.part.name()] = tail
	}
}

func (w *Writer) syncFile(f *os.File, name string) error {
	if err := w.step.before("sync " + name); err != nil {
		return err
	}
	return f.Sync()
}

// Commit writes the manifest and gives the image its name, durably. Every
// PageWriter must be closed. m.Version, m.Identity, m.Files and m.Tails are set here;
// each process that has memory and each object needs its page file.
// After an error the Writer must still be aborted.
//
// Expected errors: ErrIncomplete, or those of the file system.
func (w *Writer) Commit(ctx context.Context, m *Manifest) (podapi.Written, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.open) > 0 || w.done {
		return podapi.Written{}, fmt.Errorf("image: commit: %d page files open, done %v: %w", len(w.open), w.done, os.ErrInvalid)
	}
	m.Version, m.Identity, m.Files, m.Tails = Version, w.id, w.files, w.tails
	err := errors.Join(m.Validate(), m.checkFiles())
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return podapi.Written{}, fmt.Errorf("image: commit: %w", err)
	}
	written, err := w.commit(m)
	if err != nil {
		return podapi.Written{}, fmt.Errorf("image: commit: %w", err)
	}
	return written, nil
}

func (w *Writer) commit(m *Manifest) (podapi.Written, error) {
	data, err := encodeManifest(m)
	if err != nil {
		return podapi.Written{}, err
	}
	if err := replaceFile(w.dir, ManifestName, data, w.step); err != nil {
		return podapi.Written{}, err
	}
	if err := renameBeneath(w.parent, w.tmp, w.name, w.step); err != nil {
		return podapi.Written{}, err
	}
	w.done = true
	return m.written(filepath.Join(w.parent.Name(), w.name), digestOf(data)), errors.Join(w.dir.Close(), w.parent.Close())
}

// written describes the files of m's image in dir; self is the manifest's own.
func (m *Manifest) written(dir string, self podapi.File) podapi.Written {
	w := podapi.Written{Dir: dir, Files: map[string]podapi.File{ManifestName: self}, Ranks: sortedKeys(m.Ranks), NewBytes: self.Size}
	for n, f := range m.Files {
		w.Files[n] = f
		if _, _, e, _ := parsePart(n); e == m.Epoch {
			w.NewBytes += f.Size
		}
	}
	w.Digest = listDigest(w.Files)
	return w
}

// checkFiles reports a process or object without page file, and files that are
// of none.
func (m *Manifest) checkFiles() error {
	want := map[string]bool{}
	for i := range m.Processes {
		if m.Processes[i].Exited == nil {
			want[ProcessFile(m.Processes[i].PID, m.Epoch)] = true
		}
	}
	for i := range m.Objects {
		want[ObjectFile(i+1, m.Epoch)] = true
	}
	for n := range want {
		if _, ok := m.Files[n]; !ok {
			return fmt.Errorf("%w: no file %s", ErrIncomplete, n)
		}
	}
	for n := range m.Files {
		kind, id, epoch, ok := parsePart(n)
		head := partID{Identity: m.Identity, kind: kind, id: id}
		if _, tail := m.Tails[n]; !ok || !tail || epoch > m.Epoch || !want[head.name()] {
			return fmt.Errorf("%w: file %q does not belong to epoch %d", ErrCorrupt, n, m.Epoch)
		}
	}
	if len(m.Tails) != len(m.Files) {
		return fmt.Errorf("%w: %d page files, %d checksums", ErrCorrupt, len(m.Files), len(m.Tails))
	}
	return nil
}

// Abort closes all PageWriters and removes what was written. After a
// successful Commit it does nothing, so it can be deferred.
//
// Expected errors: those of removing.
func (w *Writer) Abort() error {
	w.mu.Lock()
	open := make([]*PageWriter, 0, len(w.open))
	for _, p := range w.open {
		open = append(open, p)
	}
	done := w.done
	w.done = true
	w.mu.Unlock()
	if done {
		return nil
	}
	for _, p := range open {
		_ = p.Close() //nolint:errcheck // what it wrote is thrown away
	}
	return errors.Join(w.dir.Close(), removeTree(w.parent, w.tmp, 0, nil), w.parent.Close())
}
