package image

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// Receiver stores the image of a pod that another node wrote. The manifest comes
// first; it must have the announced SHA-256. Page files that an image of another
// epoch here shares with it are linked then. The others may arrive in parallel
// and in any order; each must have the announced size, and every byte the XXH3
// that its index tells, which the manifest vouches for. Nothing is to be seen
// under the image's name before Commit.
type Receiver struct {
	want    podapi.Written
	step    stepper
	parent  *os.File
	dir     *os.File
	id      Identity
	name    string
	tmp     string
	others  []*os.File // images of the pod at other epochs, the nearest first
	careful bool       // what is shared is read first: an image was damaged here

	mu       sync.Mutex
	manifest *Manifest // nil before it arrived
	got      map[string]bool
	done     bool
}

// Receive begins to take the image of pod at epoch, whose files are want.
// Unlike Create it takes epochs of any age: lost replicas are made again.
//
// Expected errors: ErrExists when the very same image is here already,
// ErrCorrupt for a list that contradicts itself, those of the file system.
func (d *JobDir) Receive(epoch job.Epoch, pod job.PodIndex, want podapi.Written) (*Receiver, error) {
	if err := checkList(want); err != nil {
		return nil, err
	}
	parent, err := mkdirBeneath(d.dir, epochName(epoch), d.step)
	if err != nil {
		return nil, fmt.Errorf("receive epoch %d: %w", epoch, err)
	}
	r := &Receiver{
		want: want, step: d.step, parent: parent, name: podName(int(pod)),
		id:  Identity{Job: d.id, Epoch: epoch, Pod: pod},
		tmp: "." + podName(int(pod)) + ".recv", got: map[string]bool{},
	}
	if err := r.begin(); err != nil {
		return nil, fmt.Errorf("receive epoch %d pod %d: %w", epoch, pod, errors.Join(err, parent.Close()))
	}
	r.lookAround(d)
	return r, nil
}

// checkList checks that want names only files of this package's making and
// has the digest that it says.
func checkList(want podapi.Written) error {
	if _, ok := want.Files[ManifestName]; !ok || len(want.Files) > maxFiles {
		return fmt.Errorf("%w: list of %d files, no manifest", ErrCorrupt, len(want.Files))
	}
	for n, f := range want.Files {
		if _, _, _, ok := parsePart(n); (!ok && n != ManifestName) || f.Size < 0 {
			return fmt.Errorf("%w: file %q of %d bytes", ErrCorrupt, n, f.Size)
		}
	}
	if listDigest(want.Files) != want.Digest {
		return fmt.Errorf("%w: digest of the list of files", ErrCorrupt)
	}
	return nil
}

func (r *Receiver) begin() error {
	if old, err := openDirBeneath(r.parent, r.name); err == nil {
		have, err := newReader(old, &r.id)
		if err == nil {
			same := have.Written().Digest == r.want.Digest
			if err := have.Close(); err != nil {
				return err
			}
			if same {
				return ErrExists
			}
		}
		return fmt.Errorf("%w: another image of that pod and epoch is here", ErrCorrupt)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := removeTree(r.parent, r.tmp, 0, r.step); err != nil {
		return err
	}
	var err error
	r.dir, err = mkdirBeneath(r.parent, r.tmp, r.step)
	return err
}

// Missing returns the names of files that have not arrived, the manifest first.
func (r *Receiver) Missing() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for n := range r.want.Files {
		if !r.got[n] {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b string) int {
		return cmp.Or(-cmp.Compare(b2i(a == ManifestName), b2i(b == ManifestName)), cmp.Compare(a, b))
	})
	return out
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// File takes one file from src: exactly the announced bytes, checked while
// they are written, then synced. A file that fails can be sent again.
//
// Expected errors: fs.ErrNotExist for a name that was not announced,
// ErrIncomplete before the manifest, ErrCorrupt, those of src and of the file
// system.
func (r *Receiver) File(ctx context.Context, name string, src io.Reader) error {
	want, ok := r.want.Files[name]
	if !ok {
		return fmt.Errorf("receive %q: %w", name, fs.ErrNotExist)
	}
	r.mu.Lock()
	m := r.manifest
	r.mu.Unlock()
	if m == nil && name != ManifestName {
		return fmt.Errorf("receive %s: %w: the manifest comes first", name, ErrIncomplete)
	}
	part := name + ".part"
	if err := unlinkBeneath(r.dir, part, 0); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	f, err := createBeneath(r.dir, part, r.step)
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if name == ManifestName {
		m, err = r.takeManifest(ctx, f, want, src)
	} else {
		err = r.takePages(ctx, f, name, m, src)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = renameBeneath(r.dir, part, name, r.step)
	}
	if err != nil {
		return fmt.Errorf("receive %s: %w", name, err)
	}
	r.mu.Lock()
	r.got[name] = true
	r.manifest = m
	r.mu.Unlock()
	if name == ManifestName {
		r.shareAll(ctx, m)
	}
	return nil
}

// takeManifest stores and checks the manifest: it must be the one that was
// announced, of the right image, and list the files that were announced.
func (r *Receiver) takeManifest(ctx context.Context, f *os.File, want podapi.File, src io.Reader) (*Manifest, error) {
	var all bytes.Buffer
	if err := r.take(ctx, f, ManifestName, want.Size, io.TeeReader(src, &all), nil); err != nil {
		return nil, err
	}
	if got := digestOf(all.Bytes()); got != want {
		return nil, fmt.Errorf("%w: %d bytes, want %d, or another SHA-256", ErrCorrupt, got.Size, want.Size)
	}
	m, err := decodeManifest(all.Bytes())
	if err == nil {
		err = m.checkFiles()
	}
	if err != nil {
		return nil, err
	}
	if id := m.Identity; id.Job != r.id.Job || id.Epoch != r.id.Epoch || id.Pod != r.id.Pod {
		return nil, fmt.Errorf("%w: image of job %d epoch %d pod %d", ErrCorrupt, id.Job, id.Epoch, id.Pod)
	}
	if m.written("", want).Digest != r.want.Digest {
		return nil, fmt.Errorf("%w: digests of manifest and list differ", ErrCorrupt)
	}
	return m, r.sync(f, ManifestName)
}

// takePages stores and checks a page file. Pages are hashed as they come, and
// compared with the index that comes after them.
func (r *Receiver) takePages(ctx context.Context, f *os.File, name string, m *Manifest, src io.Reader) error {
	var sums []uint64 // of the pages of the file, the header included
	err := r.take(ctx, f, name, m.Files[name].Size, src, func(b []byte) {
		for ; len(b) >= pageSize; b = b[pageSize:] {
			sums = append(sums, pageSum(b[:pageSize]))
		}
	})
	if err != nil {
		return err
	}
	p, err := openListed(r.dir, name+".part", name, m)
	if err != nil {
		return err
	}
	defer func() { _ = p.close() }() // read only
	if err := p.match(ctx, sums); err != nil {
		return err
	}
	return r.sync(f, name)
}

// match compares the pages of a file that were hashed while it was written with
// its index. A compressed file is read again.
func (p *pageFile) match(ctx context.Context, sums []uint64) error {
	if p.comp != CompressNone {
		return p.verify(ctx, 1)
	}
	_, runs, err := p.index()
	if err != nil {
		return err
	}
	for i := range runs {
		r := &runs[i]
		if r.Zero || r.seg != 0 {
			continue
		}
		first := int(r.offset / pageSize)
		if !slices.Equal(r.sums, sums[first:first+len(r.sums)]) {
			return fmt.Errorf("%w: %s: checksum of the run at %x", ErrCorrupt, p.part.name(), r.Addr)
		}
	}
	return nil
}

// receiveBytes is how much of a file is taken at a time: a multiple of the page
// size, and little enough to be in a core's cache still when it is hashed and
// written.
const receiveBytes = 256 << 10

// take writes exactly size bytes of src to f and shows them to see in pieces of
// receiveBytes, the last one being shorter.
func (r *Receiver) take(ctx context.Context, f *os.File, name string, size int64, src io.Reader, see func([]byte)) error {
	buf := make([]byte, min(receiveBytes, size+1))
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := io.ReadFull(src, buf)
		if n += int64(k); n > size {
			return fmt.Errorf("%w: more than %d bytes", ErrCorrupt, size)
		}
		if see != nil {
			see(buf[:k])
		}
		if stepErr := r.step.before("write " + name); stepErr != nil {
			return stepErr
		}
		if _, err := f.Write(buf[:k]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
		// Keep dirty pages few, so that the log's own syncs do not wait for ours.
		if n%(16<<20) < int64(k) {
			_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE) //nolint:errcheck // a hint
		}
	}
	if n != size {
		return fmt.Errorf("%w: %d bytes, want %d", ErrCorrupt, n, size)
	}
	return nil
}

func (r *Receiver) sync(f *os.File, name string) error {
	if err := r.step.before("sync " + name); err != nil {
		return err
	}
	return f.Sync()
}

// Commit gives the image its name, durably, once all files arrived and the
// manifest turned out to be of the right job, epoch and pod.
//
// Expected errors: ErrIncomplete, ErrCorrupt, those of the file system.
func (r *Receiver) Commit() (podapi.Written, error) {
	if missing := r.Missing(); len(missing) > 0 {
		return podapi.Written{}, fmt.Errorf("receive: %w: %d files did not arrive", ErrIncomplete, len(missing))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done {
		return podapi.Written{}, fmt.Errorf("receive: %w", os.ErrClosed)
	}
	again, err := openDirBeneath(r.dir, ".")
	if err != nil {
		return podapi.Written{}, fmt.Errorf("receive: %w", err)
	}
	have, err := newReader(again, &r.id)
	if err != nil {
		return podapi.Written{}, fmt.Errorf("receive: %w", err)
	}
	out := have.Written()
	if err := have.Close(); err != nil {
		return podapi.Written{}, fmt.Errorf("receive: %w", err)
	}
	if out.Digest != r.want.Digest {
		return podapi.Written{}, fmt.Errorf("receive: %w: digests of manifest and list differ", ErrCorrupt)
	}
	err = syncDir(r.dir, r.step) // links may be the last that was made
	if err == nil {
		err = renameBeneath(r.parent, r.tmp, r.name, r.step)
	}
	if err != nil {
		return podapi.Written{}, fmt.Errorf("receive: %w", err)
	}
	r.done = true
	out.Dir = filepath.Join(r.parent.Name(), r.name)
	return out, r.close()
}

// Abort removes what arrived. After a successful Commit it does nothing.
//
// Expected errors: those of removing.
func (r *Receiver) Abort() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done {
		return nil
	}
	r.done = true
	return errors.Join(removeTree(r.parent, r.tmp, 0, nil), r.close())
}

func (r *Receiver) close() error {
	err := errors.Join(r.dir.Close(), r.parent.Close())
	for _, o := range r.others {
		err = errors.Join(err, o.Close())
	}
	r.others = nil
	return err
}
