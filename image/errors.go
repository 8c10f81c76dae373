package image

import "errors"

// The ways in which an image is refused. Errors of this package wrap one of
// them or an error of the operating system.
var (
	// ErrCorrupt: the bytes are not those that were written, or they belong
	// to another job, epoch, pod or process.
	ErrCorrupt = errors.New("corrupt image")
	// ErrIncomplete: a file, process or rank is missing.
	ErrIncomplete = errors.New("incomplete image")
	// ErrMismatch: the image is sound, but this host, user or file tree is
	// not the one it needs.
	ErrMismatch = errors.New("image does not fit here")
	// ErrVersion: the image was written in another version of the format.
	ErrVersion = errors.New("image of another format version")
	// ErrExists: there is an image of that pod and epoch already.
	ErrExists = errors.New("image exists")
	// ErrEpochUsed: the epoch number was given back before and must not be
	// used again.
	ErrEpochUsed = errors.New("epoch number was used before")
	// ErrNotCommitted: the epoch has no COMMITTED record.
	ErrNotCommitted = errors.New("epoch is not committed")
)
