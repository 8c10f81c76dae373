package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/zeebo/xxh3"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

const (
	committedName = "COMMITTED"

	// maxCommitted bounds a COMMITTED record, in bytes.
	maxCommitted = 64 << 20
)

// Commit is the COMMITTED record of an epoch: what a fresh cluster needs to
// restart the job without the log that committed it.
type Commit struct {
	Version   int                     `json:"version"`
	Job       job.ID                  `json:"job"`
	Epoch     job.Epoch               `json:"epoch"`
	RaftIndex uint64                  `json:"raft_index"`
	SetDigest string                  `json:"set_digest"` // SetDigest(Pods)
	Pods      map[job.PodIndex]string `json:"pods"`       // Written.Digest by pod, all pods of the job
	Record    json.RawMessage         `json:"record"`     // the job record, opaque here
}

// SetDigest returns the digest of a whole epoch from those of its pods.
func SetDigest(pods map[job.PodIndex]string) string {
	files := make(map[string]podapi.File, len(pods))
	for _, p := range slices.Collect(maps.Keys(pods)) {
		files[podName(int(p))] = podapi.File{SHA256: pods[p]}
	}
	return listDigest(files)
}

// MarkCommitted makes the COMMITTED record of c.Epoch, durably. It must be
// stored here at least in part. Repeating it is harmless.
//
// Expected errors: ErrCorrupt when c contradicts itself or the record that is
// there, fs.ErrNotExist without images, those of the file system.
func (d *JobDir) MarkCommitted(c Commit) error {
	c.Version = Version
	if c.Job != d.id || c.SetDigest != SetDigest(c.Pods) {
		return fmt.Errorf("%w: commit of job %d epoch %d does not match its digests", ErrCorrupt, c.Job, c.Epoch)
	}
	if old, err := d.Committed(c.Epoch); err == nil {
		if old.SetDigest != c.SetDigest {
			return fmt.Errorf("%w: job %d epoch %d is committed with other digests", ErrCorrupt, c.Job, c.Epoch)
		}
		return nil
	}
	dir, err := openDirBeneath(d.dir, epochName(c.Epoch))
	if err != nil {
		return fmt.Errorf("job %d: commit: %w", d.id, err)
	}
	text, err := json.Marshal(c)
	if err == nil {
		line := fmt.Appendf(text, "\n%016x\n", xxh3.Hash(text))
		err = replaceFile(dir, committedName, line, d.step)
	}
	if err = errors.Join(err, dir.Close()); err != nil {
		return fmt.Errorf("job %d: commit epoch %d: %w", d.id, c.Epoch, err)
	}
	return nil
}

// Committed returns the COMMITTED record of epoch.
//
// Expected errors: ErrNotCommitted, ErrCorrupt, ErrVersion, those of the file
// system.
func (d *JobDir) Committed(epoch job.Epoch) (Commit, error) {
	dir, err := openDirBeneath(d.dir, epochName(epoch))
	if errors.Is(err, fs.ErrNotExist) {
		return Commit{}, fmt.Errorf("job %d epoch %d: %w", d.id, epoch, ErrNotCommitted)
	}
	if err != nil {
		return Commit{}, err
	}
	defer dir.Close()
	b, err := readBeneath(dir, committedName, maxCommitted)
	if errors.Is(err, fs.ErrNotExist) {
		return Commit{}, fmt.Errorf("job %d epoch %d: %w", d.id, epoch, ErrNotCommitted)
	}
	if err != nil {
		return Commit{}, fmt.Errorf("job %d epoch %d: %w", d.id, epoch, err)
	}
	c, err := parseCommit(b)
	if err == nil && (c.Job != d.id || c.Epoch != epoch) {
		err = fmt.Errorf("%w: record of job %d epoch %d", ErrCorrupt, c.Job, c.Epoch)
	}
	if err != nil {
		return Commit{}, fmt.Errorf("job %d epoch %d: %w", d.id, epoch, err)
	}
	return c, nil
}

func parseCommit(b []byte) (Commit, error) {
	const tail = 18 // newline, 16 digits, newline
	if len(b) < tail {
		return Commit{}, fmt.Errorf("%w: COMMITTED record ends early", ErrCorrupt)
	}
	text := b[:len(b)-tail]
	if string(b[len(text):]) != fmt.Sprintf("\n%016x\n", xxh3.Hash(text)) {
		return Commit{}, fmt.Errorf("%w: checksum of the COMMITTED record", ErrCorrupt)
	}
	var c Commit
	if err := json.Unmarshal(text, &c); err != nil {
		return Commit{}, fmt.Errorf("%w: COMMITTED record: %w", ErrCorrupt, err)
	}
	if c.Version != Version {
		return Commit{}, versionError("COMMITTED record", uint64(c.Version)) //nolint:gosec // only for the message
	}
	if c.SetDigest != SetDigest(c.Pods) {
		return Commit{}, fmt.Errorf("%w: digests of the COMMITTED record", ErrCorrupt)
	}
	return c, nil
}
