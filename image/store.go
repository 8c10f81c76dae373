package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/lampause/lampause/job"
)

// Store is the image store of a node: STATE/jobs. It is safe for concurrent
// use.
type Store struct {
	jobs *os.File
}

// OpenStore opens the store in the state directory, making it if needed.
//
// Expected errors: those of the file system.
func OpenStore(state string) (*Store, error) {
	path := filepath.Join(state, "jobs")
	if err := os.MkdirAll(path, dirMode); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return &Store{jobs: f}, nil
}

// Close releases the store.
func (s *Store) Close() error { return s.jobs.Close() }

// Job opens the directory of job id.
//
// Expected errors: fs.ErrNotExist, those of the file system.
func (s *Store) Job(id job.ID) (*JobDir, error) {
	d, err := openDirBeneath(s.jobs, id.String())
	if err != nil {
		return nil, fmt.Errorf("images of job %d: %w", id, err)
	}
	return &JobDir{id: id, dir: d}, nil
}

// CreateJob opens the directory of job id, making it if needed for the owner
// uid, gid; -1 means the caller.
//
// Expected errors: those of the file system.
func (s *Store) CreateJob(id job.ID, uid, gid int) (*JobDir, error) {
	d, err := mkdirBeneath(s.jobs, id.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("images of job %d: %w", id, err)
	}
	if uid >= 0 && (uid != os.Geteuid() || gid != os.Getegid()) {
		if err := d.Chown(uid, gid); err != nil {
			return nil, fmt.Errorf("images of job %d: %w", id, errors.Join(err, d.Close()))
		}
	}
	return &JobDir{id: id, dir: d}, nil
}

// Jobs lists the jobs that have a directory, ascending.
//
// Expected errors: those of the file system.
func (s *Store) Jobs() ([]job.ID, error) {
	names, err := listDir(s.jobs)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	var out []job.ID
	for _, n := range names {
		if id, err := job.ParseID(n); err == nil && id.String() == n {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out, nil
}

// RemoveJob deletes all images of job id. That there are none is fine.
//
// Expected errors: those of the file system.
func (s *Store) RemoveJob(id job.ID) error {
	gone := "." + id.String() + ".gone"
	if err := removeTree(s.jobs, gone, 2, nil); err != nil {
		return fmt.Errorf("remove images of job %d: %w", id, err)
	}
	err := renameBeneath(s.jobs, id.String(), gone, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = removeTree(s.jobs, gone, 2, nil)
	}
	if err != nil {
		return fmt.Errorf("remove images of job %d: %w", id, err)
	}
	return nil
}
