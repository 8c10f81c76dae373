package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// Reader reads the image of one pod. Opening checks the manifest, and header,
// index and trailer of every page file; Verify or VerifyDigests must pass
// before anything of it is used. Safe for concurrent use.
type Reader struct {
	dir      *os.File
	manifest *Manifest
	sum      podapi.File // of the manifest
	parts    map[string]*PageReader
}

// OpenAt opens the image in directory path, whosever it is.
//
// Expected errors: fs.ErrNotExist, ErrCorrupt, ErrIncomplete, those of reading.
func OpenAt(path string) (*Reader, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	return newReader(dir, nil)
}

// newReader takes dir over. want, if given, is what the image must be;
// its Incarnation 0 stands for any.
func newReader(dir *os.File, want *Identity) (*Reader, error) {
	r := &Reader{dir: dir, parts: map[string]*PageReader{}}
	if err := r.load(want); err != nil {
		return nil, fmt.Errorf("image %s: %w", dir.Name(), errors.Join(err, r.Close()))
	}
	return r, nil
}

func (r *Reader) load(want *Identity) error {
	data, err := readBeneath(r.dir, ManifestName, maxManifest)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: no manifest", ErrIncomplete)
	}
	if err != nil {
		return err
	}
	if r.manifest, err = decodeManifest(data); err != nil {
		return err
	}
	r.sum = digestOf(data)
	id := r.manifest.Identity
	if want != nil {
		if want.Incarnation == 0 {
			id.Incarnation = 0
		}
		if id != *want {
			return fmt.Errorf("%w: image of job %d epoch %d pod %d, want job %d epoch %d pod %d", ErrCorrupt,
				id.Job, id.Epoch, id.Pod, want.Job, want.Epoch, want.Pod)
		}
	}
	if err := r.manifest.checkFiles(); err != nil {
		return err
	}
	files := 0
	for name := range r.manifest.Files {
		kind, id, epoch, _ := parsePart(name) // checked
		if epoch != r.manifest.Epoch {
			continue
		}
		part := partID{Identity: r.manifest.Identity, kind: kind, id: id}
		p, err := openPages(r.manifest, part, func(name string) (*os.File, error) {
			return openBeneath(r.dir, name, unix.O_RDONLY, 0)
		})
		if err != nil {
			return err
		}
		r.parts[name] = p
		files += len(p.files)
	}
	if files != len(r.manifest.Files) {
		return fmt.Errorf("%w: %d of %d page files are used", ErrCorrupt, files, len(r.manifest.Files))
	}
	return nil
}

// readBeneath reads file name of dir, of at most limit bytes.
func readBeneath(dir *os.File, name string, limit int64) ([]byte, error) {
	f, err := openBeneath(dir, name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > limit {
		return nil, fmt.Errorf("%w: %s: not a file of at most %d bytes", ErrCorrupt, name, limit)
	}
	data := make([]byte, st.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, fmt.Errorf("%w: read %s: %w", ErrCorrupt, name, err)
	}
	return data, nil
}

// Manifest returns the manifest. It is the reader's; callers do not change it.
func (r *Reader) Manifest() *Manifest { return r.manifest }

// Dir returns the path of the image.
func (r *Reader) Dir() string { return r.dir.Name() }

// Process returns the page file of process pid.
//
// Expected errors: ErrIncomplete.
func (r *Reader) Process(pid int) (*PageReader, error) {
	return r.partNamed(ProcessFile(pid, r.manifest.Epoch))
}

// Object returns the page file of object id, counted from 1.
//
// Expected errors: ErrIncomplete.
func (r *Reader) Object(id int) (*PageReader, error) {
	return r.partNamed(ObjectFile(id, r.manifest.Epoch))
}

func (r *Reader) partNamed(name string) (*PageReader, error) {
	if p, ok := r.parts[name]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("%w: no file %s", ErrIncomplete, name)
}

// Verify reads the whole image once with workers goroutines per file and
// checks every byte by XXH3, also those of shared files that this epoch does
// not use.
//
// Expected errors: ErrCorrupt, those of reading, ctx's.
func (r *Reader) Verify(ctx context.Context, workers int) error {
	for _, f := range r.files() {
		if err := f.verify(ctx, workers); err != nil {
			return fmt.Errorf("image %s: %w", r.dir.Name(), err)
		}
	}
	return nil
}

// files returns all page files.
func (r *Reader) files() []*pageFile {
	var out []*pageFile
	for _, p := range r.parts {
		out = append(out, p.files...)
	}
	return out
}

// VerifyDigests reads the whole image once and compares the SHA-256 of every
// file with the manifest.
//
// Expected errors: ErrCorrupt, those of reading, ctx's.
func (r *Reader) VerifyDigests(ctx context.Context) error {
	for _, p := range r.files() {
		got, err := hashFile(ctx, p.f, digestWorkers)
		if err != nil {
			return fmt.Errorf("image %s: %s: %w", r.dir.Name(), p.part.name(), err)
		}
		if got != r.manifest.Files[p.part.name()] {
			return fmt.Errorf("image %s: %w: SHA-256 of %s", r.dir.Name(), ErrCorrupt, p.part.name())
		}
	}
	return nil
}

// digestWorkers is how many pieces are hashed at a time when nothing else can
// be done before.
const digestWorkers = 4

// Written describes the files of the image, as its writer did. It does not
// read page files; their digests are the manifest's.
func (r *Reader) Written() podapi.Written { return r.manifest.written(r.dir.Name(), r.sum) }

// Close releases all files.
func (r *Reader) Close() error {
	err := r.dir.Close()
	for _, p := range r.parts {
		err = errors.Join(err, p.Close())
	}
	return err
}

// CheckFiles compares every file that a process of the image has mapped or
// runs with what is at its path now, beneath root ("" for the host's own).
//
// Expected errors: ErrMismatch, naming the file.
func (m *Manifest) CheckFiles(root string) error {
	seen := map[string]bool{}
	check := func(f *MappedFile) error {
		if f == nil || seen[f.Path] || (f.BuildID == "" && f.SHA256 == "") {
			return nil
		}
		seen[f.Path] = true
		now, err := IdentifyFile(filepath.Join("/", root, f.Path))
		if err != nil {
			return fmt.Errorf("%w: %w", ErrMismatch, err)
		}
		return f.Same(now)
	}
	for i := range m.Processes {
		p := &m.Processes[i]
		if p.Exited != nil {
			continue
		}
		if err := check(&p.Exe); err != nil {
			return fmt.Errorf("process %d: %w", p.PID, err)
		}
		for j := range p.Maps {
			if p.Maps[j].Kind != MapPrivate {
				continue
			}
			if err := check(p.Maps[j].File); err != nil {
				return fmt.Errorf("process %d: %w", p.PID, err)
			}
		}
	}
	return nil
}

// CheckRanks reports whether the pods' manifests together hold the ranks
// 0..n-1 of one epoch of one job, each exactly once.
//
// Expected errors: ErrIncomplete for a missing rank, ErrCorrupt otherwise.
func CheckRanks(n int, pods ...*Manifest) error {
	at := map[job.Rank]job.PodIndex{}
	for _, m := range pods {
		if m.Job != pods[0].Job || m.Epoch != pods[0].Epoch {
			return fmt.Errorf("%w: pod %d is of job %d epoch %d, pod %d of job %d epoch %d", ErrCorrupt,
				m.Pod, m.Job, m.Epoch, pods[0].Pod, pods[0].Job, pods[0].Epoch)
		}
		for r := range m.Ranks {
			if other, ok := at[r]; ok {
				return fmt.Errorf("%w: rank %d is in pods %d and %d", ErrCorrupt, r, other, m.Pod)
			}
			if r < 0 || int(r) >= n {
				return fmt.Errorf("%w: rank %d of %d", ErrCorrupt, r, n)
			}
			at[r] = m.Pod
		}
	}
	for r := range job.Rank(n) {
		if _, ok := at[r]; !ok {
			return fmt.Errorf("%w: rank %d of %d is missing", ErrIncomplete, r, n)
		}
	}
	return nil
}
