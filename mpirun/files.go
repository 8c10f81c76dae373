package mpirun

import (
	"fmt"
	"os"

	"github.com/lampause/lampause/job"
)

// files is the sink of --output-filename: a file per rank, NAME.RANK.SUFFIX.
// As a file can be cut, it ends up with exactly what the ranks wrote, however
// often the job was rolled back. It is not safe for concurrent use.
type files struct {
	name, suffix string
	reached      func(rank job.Rank, offset int64)
	open         map[job.Rank]*os.File
}

func newFiles(name, suffix string, reached func(job.Rank, int64)) *files {
	if reached == nil {
		reached = func(job.Rank, int64) {}
	}
	return &files{name: name, suffix: suffix, reached: reached, open: make(map[job.Rank]*os.File)}
}

func (f *files) path(rank job.Rank) string {
	return fmt.Sprintf("%s.%d.%s", f.name, rank, f.suffix)
}

// file opens the file of rank; one that starts at 0 is emptied, one that an
// earlier client began is continued.
func (f *files) file(rank job.Rank, offset int64) (*os.File, error) {
	if file := f.open[rank]; file != nil {
		return file, nil
	}
	flags := os.O_WRONLY | os.O_CREATE
	if offset == 0 {
		flags |= os.O_TRUNC
	}
	file, err := os.OpenFile(f.path(rank), flags, 0o666)
	if err != nil {
		return nil, fmt.Errorf("output file: %w", err)
	}
	f.open[rank] = file
	return file, nil
}

// write implements sink.
func (f *files) write(rank job.Rank, offset int64, data []byte) error {
	file, err := f.file(rank, offset)
	if err != nil {
		return err
	}
	if _, err := file.WriteAt(data, offset); err != nil {
		return fmt.Errorf("output file: %w", err)
	}
	f.reached(rank, offset+int64(len(data)))
	return nil
}

// rewind implements sink. The reader of a file is not disturbed.
func (f *files) rewind(rank job.Rank, to int64) (bool, error) {
	file, err := f.file(rank, to)
	if err != nil {
		return false, err
	}
	if err := file.Truncate(to); err != nil {
		return false, fmt.Errorf("output file: %w", err)
	}
	f.reached(rank, to)
	return false, nil
}

// end implements sink: also a rank that wrote nothing has its file.
func (f *files) end(rank job.Rank, offset int64) error {
	_, err := f.file(rank, offset)
	return err
}

// close closes all files and returns the first error.
func (f *files) close() error {
	var first error
	for rank, file := range f.open {
		if err := file.Close(); err != nil && first == nil {
			first = fmt.Errorf("output file of rank %d: %w", rank, err)
		}
	}
	return first
}
