package mpirun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

// positions remembers, in a small file beneath the runtime directory, how much
// of each stream has reached the reader, so that `lam attach` goes on there
// after mpirun was killed. Where no file can be kept (the runtime directory is
// another user's) nothing is remembered and a later attach starts anew.
//
// Layout: for rank r and descriptor d, 8 bytes little endian at offset
// 16*r + 8*(d-1): the number of bytes written. Missing bytes are 0.
type positions struct {
	file *os.File // nil: not kept
	path string
}

// positionsPath is the file of a job.
func positionsPath(d paths.Dirs, id job.ID) string {
	return filepath.Join(d.Clients(), id.String()+".pos")
}

// openPositions opens or makes the file. It never fails: the file is a
// convenience.
func openPositions(path string) *positions {
	p := &positions{path: path}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return p
	}
	if f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err == nil {
		p.file = f
	}
	return p
}

// load returns what the file says.
//
// Expected errors: those of reading.
func (p *positions) load() (control.Cursor, error) {
	c := make(control.Cursor)
	if p.file == nil {
		return c, nil
	}
	data, err := io.ReadAll(io.NewSectionReader(p.file, 0, 16*job.MaxRanks))
	if err != nil {
		return nil, fmt.Errorf("output positions: %w", err)
	}
	for i := 0; i+8 <= len(data); i += 8 {
		if n := int64(binary.LittleEndian.Uint64(data[i:])); n > 0 {
			c[control.Stream{Rank: job.Rank(i / 16), FD: 1 + i/8%2}] = n
		}
	}
	return c, nil
}

// reached returns the function that records positions of descriptor fd.
func (p *positions) reached(fd int) func(job.Rank, int64) {
	return func(rank job.Rank, offset int64) {
		if p.file == nil {
			return
		}
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(offset))
		_, _ = p.file.WriteAt(b[:], 16*int64(rank)+8*int64(fd-1)) // a convenience: see openPositions
	}
}

// close closes the file. With forget, the job has ended and nobody will go on:
// the file is removed, and its directory when it was the last.
func (p *positions) close(forget bool) {
	if p.file == nil {
		return
	}
	_ = p.file.Close()
	if !forget {
		return
	}
	if err := os.Remove(p.path); err == nil || errors.Is(err, os.ErrNotExist) {
		_ = os.Remove(filepath.Dir(p.path)) // fails while other jobs have files
	}
}
