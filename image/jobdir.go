package image

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/job"
)

const usedName = "USED"

// JobDir is the directory of one job's images on this node:
// STATE/jobs/JOB. It is safe for concurrent use, also by several processes
// (a lamd and a pod supervisor) at once.
type JobDir struct {
	id   job.ID
	dir  *os.File
	step stepper
}

// OpenJob opens the directory of job id, which exists.
//
// Expected errors: those of the file system.
func OpenJob(path string, id job.ID) (*JobDir, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("images of job %d: %w", id, err)
	}
	st, err := d.Stat()
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s: %w", path, unix.ENOTDIR)
	}
	if err != nil {
		return nil, fmt.Errorf("images of job %d: %w", id, errors.Join(err, d.Close()))
	}
	return &JobDir{id: id, dir: d}, nil
}

// Path returns the path of the directory.
func (d *JobDir) Path() string { return d.dir.Name() }

// Close releases the directory. Writers and Readers made by it live on.
func (d *JobDir) Close() error { return d.dir.Close() }

// EpochInfo is what is stored here of an epoch.
type EpochInfo struct {
	Epoch     job.Epoch
	Committed bool
	Pods      []job.PodIndex // whole images, ascending
}

// Epochs lists the epochs stored here, ascending.
//
// Expected errors: those of the file system.
func (d *JobDir) Epochs() ([]EpochInfo, error) {
	names, err := listDir(d.dir)
	if err != nil {
		return nil, err
	}
	var out []EpochInfo
	for _, n := range names {
		e, err := strconv.ParseUint(n, 10, 64)
		if err != nil || e == 0 || strconv.FormatUint(e, 10) != n {
			continue
		}
		info := EpochInfo{Epoch: job.Epoch(e)}
		sub, err := openDirBeneath(d.dir, n)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		pods, err := listDir(sub)
		if err = errors.Join(err, sub.Close()); err != nil {
			return nil, err
		}
		for _, p := range pods {
			if p == committedName {
				info.Committed = true
			}
			if i, err := strconv.Atoi(strings.TrimPrefix(p, "pod")); err == nil && p == podName(i) {
				info.Pods = append(info.Pods, job.PodIndex(i))
			}
		}
		slices.Sort(info.Pods)
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b EpochInfo) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return out, nil
}

func listDir(d *os.File) ([]string, error) {
	again, err := openDirBeneath(d, ".") // a directory stream of our own
	if err != nil {
		return nil, err
	}
	defer again.Close()
	return again.Readdirnames(-1)
}

// Create begins the image of pod at epoch. The number must be new: a pod's
// epoch that exists, or that was given back by Remove, is refused for ever.
//
// Expected errors: ErrExists, ErrEpochUsed, those of the file system.
func (d *JobDir) Create(id Identity, o Options) (*Writer, error) {
	if id.Job != d.id || id.Epoch == 0 || id.Pod < 0 {
		return nil, fmt.Errorf("image of job %d epoch %d pod %d: %w", id.Job, id.Epoch, id.Pod, os.ErrInvalid)
	}
	used, err := d.used()
	if err != nil {
		return nil, err
	}
	if id.Epoch <= used {
		return nil, fmt.Errorf("job %d epoch %d: %w", d.id, id.Epoch, ErrEpochUsed)
	}
	parent, err := mkdirBeneath(d.dir, epochName(id.Epoch), d.step)
	if err != nil {
		return nil, fmt.Errorf("job %d epoch %d: %w", d.id, id.Epoch, err)
	}
	w, err := newWriter(parent, podName(int(id.Pod)), id, o, d.step)
	if err != nil {
		return nil, fmt.Errorf("job %d epoch %d pod %d: %w", d.id, id.Epoch, id.Pod, errors.Join(err, parent.Close()))
	}
	return w, nil
}

func epochName(e job.Epoch) string { return strconv.FormatUint(uint64(e), 10) }

// Open opens the image of pod at epoch.
//
// Expected errors: fs.ErrNotExist, ErrCorrupt, ErrIncomplete, those of reading.
func (d *JobDir) Open(epoch job.Epoch, pod job.PodIndex) (*Reader, error) {
	dir, err := openDirBeneath(d.dir, epochName(epoch)+"/"+podName(int(pod)))
	if err != nil {
		return nil, fmt.Errorf("job %d epoch %d pod %d: %w", d.id, epoch, pod, err)
	}
	return newReader(dir, &Identity{Job: d.id, Epoch: epoch, Pod: pod})
}

// OpenFile opens one file of a stored image for sending it. Only names that
// this package makes are accepted.
//
// Expected errors: fs.ErrNotExist, also for such names; those of the file system.
func (d *JobDir) OpenFile(epoch job.Epoch, pod job.PodIndex, name string) (*os.File, error) {
	if _, _, _, ok := parsePart(name); !ok && name != ManifestName {
		return nil, fmt.Errorf("image file %q: %w", name, fs.ErrNotExist)
	}
	return openBeneath(d.dir, epochName(epoch)+"/"+podName(int(pod))+"/"+name, unix.O_RDONLY, 0)
}

// Next returns the lowest epoch number above all that were ever used here.
//
// Expected errors: those of the file system.
func (d *JobDir) Next() (job.Epoch, error) {
	next, err := d.used()
	if err != nil {
		return 0, err
	}
	all, err := d.Epochs()
	if err != nil {
		return 0, err
	}
	if n := len(all); n > 0 {
		next = max(next, all[n-1].Epoch)
	}
	return next + 1, nil
}

// used returns the highest epoch that Remove gave back, 0 for none.
func (d *JobDir) used() (job.Epoch, error) {
	b, err := readBeneath(d.dir, usedName, 64)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("job %d: %w", d.id, err)
	}
	e, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: job %d: %s: %w", ErrCorrupt, d.id, usedName, err)
	}
	return job.Epoch(e), nil
}

// Remove deletes all that is stored of epoch, whole or half-written. The
// number is noted first, durably, so that Create never takes it again.
// Removing what is not there is fine.
//
// Precondition: only one process removes epochs of a job at a time.
// Expected errors: those of the file system.
func (d *JobDir) Remove(epoch job.Epoch) error {
	used, err := d.used()
	if err != nil {
		return err
	}
	if epoch > used {
		text := epochName(epoch) + "\n"
		if err := replaceFile(d.dir, usedName, []byte(text), d.step); err != nil {
			return fmt.Errorf("job %d: remove epoch %d: %w", d.id, epoch, err)
		}
	}
	// A half-removed epoch must not look committed, nor a pod of it whole.
	name := epochName(epoch)
	gone := "." + name + ".gone"
	if err := removeTree(d.dir, gone, 1, d.step); err != nil {
		return fmt.Errorf("job %d: remove epoch %d: %w", d.id, epoch, err)
	}
	err = renameBeneath(d.dir, name, gone, d.step)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = removeTree(d.dir, gone, 1, d.step)
	}
	if err != nil {
		return fmt.Errorf("job %d: remove epoch %d: %w", d.id, epoch, err)
	}
	return nil
}
