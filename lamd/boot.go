package lamd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lampause/lampause/job"
)

// bootFile remembers the highest boot of a node, so that a life that was
// declared dead is not lived again after a restart of the daemon.
type bootFile struct{ path string }

// atLeast returns the boot to live, not below want, and stores it durably.
//
// Expected errors: a damaged file, those of the file system.
func (b bootFile) atLeast(want job.Boot) (job.Boot, error) {
	text, err := os.ReadFile(b.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("boot number: %w", err)
	}
	if err == nil {
		n, perr := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
		if perr != nil {
			return 0, fmt.Errorf("boot number: %s: %w", b.path, perr)
		}
		if job.Boot(n) >= want {
			return job.Boot(n), nil
		}
	}
	if err := writeDurably(b.path, []byte(strconv.FormatUint(uint64(want), 10)+"\n")); err != nil {
		return 0, fmt.Errorf("boot number: %w", err)
	}
	return want, nil
}

// writeDurably replaces a file: temporary name, fsync, rename, fsync of the
// directory.
func writeDurably(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // renamed when all went well
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
