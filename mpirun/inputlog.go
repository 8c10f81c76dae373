package mpirun

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// inputLog keeps what was read of stdin and may be asked for again: what the
// job read after a checkpoint is lost with the node of rank 0. It lives in
// memory that has no name (memfd_create(2)) and gives back what is forgotten.
// It is not safe for concurrent use.
type inputLog struct {
	f    *os.File
	base int64 // offset of the first byte that is kept; also its place in f
	end  int64
}

func newInputLog() (*inputLog, error) {
	fd, err := unix.MemfdCreate("lam-stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("keep stdin: %w", err)
	}
	return &inputLog{f: os.NewFile(uintptr(fd), "lam-stdin")}, nil
}

func (l *inputLog) close() { _ = l.f.Close() } // nothing of it outlives us

// append adds the next bytes.
func (l *inputLog) append(data []byte) error {
	if _, err := l.f.WriteAt(data, l.end); err != nil {
		return fmt.Errorf("keep stdin: %w", err)
	}
	l.end += int64(len(data))
	return nil
}

// piece returns the bytes from offset at on, a limited number of them.
//
// Expected errors: one that says that they are not kept any more.
func (l *inputLog) piece(at int64) ([]byte, error) {
	if at < l.base || at > l.end {
		return nil, fmt.Errorf("stdin: the job goes on at byte %d, and %d to %d are kept", at, l.base, l.end)
	}
	b := make([]byte, min(l.end-at, stdinChunk))
	if _, err := l.f.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("keep stdin: %w", err)
	}
	return b, nil
}

// forget gives up what is below offset to.
func (l *inputLog) forget(to int64) error {
	to = min(to, l.end)
	if to <= l.base {
		return nil
	}
	err := unix.Fallocate(int(l.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, l.base, to-l.base)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // keeps more than it must
		return fmt.Errorf("keep stdin: %w", err)
	}
	l.base = to
	return nil
}
