package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// Receiver stores the image of a pod that another node wrote. Files may arrive
// in parallel and in any order; one that does not have the announced size and
// SHA-256 is refused. Nothing is to be seen under the image's name before
// Commit.
type Receiver struct {
	want   podapi.Written
	step   stepper
	parent *os.File
	dir    *os.File
	id     Identity
	name   string
	tmp    string

	mu   sync.Mutex
	got  map[string]bool
	done bool
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
	return r, nil
}

// checkList checks that want names only files of this package's making and
// has the digest that it says.
func checkList(want podapi.Written) error {
	if _, ok := want.Files[ManifestName]; !ok || len(want.Files) > maxFiles {
		return fmt.Errorf("%w: list of %d files, no manifest", ErrCorrupt, len(want.Files))
	}
	for n, f := range want.Files {
		if _, _, ok := parsePart(n); (!ok && n != ManifestName) || f.Size < 0 {
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

// Missing returns the names of files that have not arrived.
func (r *Receiver) Missing() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for n := range r.want.Files {
		if !r.got[n] {
			out = append(out, n)
		}
	}
	return out
}

// File takes one file from src: exactly the announced bytes, checked while
// they are written, then synced. A file that fails can be sent again.
//
// Expected errors: fs.ErrNotExist for a name that was not announced,
// ErrCorrupt, those of src and of the file system.
func (r *Receiver) File(ctx context.Context, name string, src io.Reader) error {
	want, ok := r.want.Files[name]
	if !ok {
		return fmt.Errorf("receive %q: %w", name, fs.ErrNotExist)
	}
	part := name + ".part"
	if err := unlinkBeneath(r.dir, part, 0); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	f, err := createBeneath(r.dir, part, r.step)
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	err = r.take(ctx, f, name, want, src)
	if err = errors.Join(err, f.Close()); err == nil {
		err = renameBeneath(r.dir, part, name, r.step)
	}
	if err != nil {
		return fmt.Errorf("receive %s: %w", name, err)
	}
	r.mu.Lock()
	r.got[name] = true
	r.mu.Unlock()
	return nil
}

func (r *Receiver) take(ctx context.Context, f *os.File, name string, want podapi.File, src io.Reader) error {
	h := sha256.New()
	buf := make([]byte, 1<<20)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := src.Read(buf)
		if n += int64(k); n > want.Size {
			return fmt.Errorf("%w: more than %d bytes", ErrCorrupt, want.Size)
		}
		h.Write(buf[:k])
		if stepErr := r.step.before("write " + name); stepErr != nil {
			return stepErr
		}
		if _, err := f.Write(buf[:k]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
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
	if n != want.Size || hex.EncodeToString(h.Sum(nil)) != want.SHA256 {
		return fmt.Errorf("%w: %d bytes, want %d, or another SHA-256", ErrCorrupt, n, want.Size)
	}
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
	if err := renameBeneath(r.parent, r.tmp, r.name, r.step); err != nil {
		return podapi.Written{}, fmt.Errorf("receive: %w", err)
	}
	r.done = true
	out.Dir = filepath.Join(r.parent.Name(), r.name)
	return out, errors.Join(r.dir.Close(), r.parent.Close())
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
	return errors.Join(r.dir.Close(), removeTree(r.parent, r.tmp, 0, nil), r.parent.Close())
}
