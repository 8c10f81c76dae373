package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

const (
	dirMode  = 0o700
	fileMode = 0o600

	// maxFiles bounds the files of one pod directory.
	maxFiles = 1 << 17
)

// stepper is asked before every change of the disk, named by operation; tests
// make the n-th one fail.
type stepper func(op string) error

func (s stepper) before(op string) error {
	if s == nil {
		return nil
	}
	return s(op)
}

// openBeneath opens path beneath dir without following symbolic links.
// Source: openat2(2).
func openBeneath(dir *os.File, path string, flags int, mode uint32) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC), //nolint:gosec // flags are not negative
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode)
	}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), path, &how)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "open", Path: filepath.Join(dir.Name(), path), Err: err}
		}
		return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), path)), nil
	}
}

// openDirBeneath opens a directory beneath dir.
func openDirBeneath(dir *os.File, path string) (*os.File, error) {
	return openBeneath(dir, path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// mkdirBeneath makes directory name in dir, unless it is there, with dir's
// owner, and returns it open.
func mkdirBeneath(dir *os.File, name string, step stepper) (*os.File, error) {
	if err := step.before("mkdir " + name); err != nil {
		return nil, err
	}
	err := unix.Mkdirat(int(dir.Fd()), name, dirMode)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &fs.PathError{Op: "mkdir", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	d, openErr := openDirBeneath(dir, name)
	if openErr != nil || err != nil {
		return d, openErr
	}
	if err := errors.Join(giveToOwner(dir, d), syncDir(dir, step)); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// giveToOwner makes f belong to the owner of dir, where the caller is another
// user (a root daemon that stores a user's images).
func giveToOwner(dir, f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: dir.Name(), Err: err}
	}
	if int(st.Uid) == os.Geteuid() {
		return nil
	}
	return f.Chown(int(st.Uid), int(st.Gid))
}

// createBeneath makes the new file name in dir, 0600.
func createBeneath(dir *os.File, name string, step stepper) (*os.File, error) {
	if err := step.before("create " + name); err != nil {
		return nil, err
	}
	f, err := openBeneath(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, fileMode)
	if err != nil {
		return nil, err
	}
	if err := giveToOwner(dir, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func syncDir(d *os.File, step stepper) error {
	if err := step.before("sync directory " + filepath.Base(d.Name())); err != nil {
		return err
	}
	return d.Sync()
}

// replaceFile writes name in dir anew: temporary name, sync, rename, sync.
func replaceFile(dir *os.File, name string, data []byte, step stepper) error {
	tmp := "." + name + ".tmp"
	if err := unlinkBeneath(dir, tmp, 0); err != nil {
		return err
	}
	f, err := createBeneath(dir, tmp, step)
	if err != nil {
		return err
	}
	if err = step.before("write " + name); err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		if err = step.before("sync " + name); err == nil {
			err = f.Sync()
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return renameBeneath(dir, tmp, name, step)
}

// renameBeneath renames within dir and syncs dir.
func renameBeneath(dir *os.File, from, to string, step stepper) error {
	if err := step.before("rename " + to); err != nil {
		return err
	}
	fd := int(dir.Fd())
	if err := unix.Renameat(fd, from, fd, to); err != nil {
		return &os.LinkError{Op: "rename", Old: filepath.Join(dir.Name(), from), New: to, Err: err}
	}
	return syncDir(dir, step)
}

// unlinkBeneath removes name from dir; that it is not there is fine.
func unlinkBeneath(dir *os.File, name string, flags int) error {
	err := unix.Unlinkat(int(dir.Fd()), name, flags)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return nil
}

// removeTree removes directory name of dir and the plain files in it, down to
// depth levels of directories; that it is not there is fine.
func removeTree(dir *os.File, name string, depth int, step stepper) error {
	d, err := openDirBeneath(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := step.before("remove " + e.Name()); err != nil {
			return err
		}
		if e.IsDir() && depth > 0 {
			err = removeTree(d, e.Name(), depth-1, step)
		} else {
			err = unlinkBeneath(d, e.Name(), 0)
		}
		if err != nil {
			return err
		}
	}
	if err := step.before("rmdir " + name); err != nil {
		return err
	}
	return unlinkBeneath(dir, name, unix.AT_REMOVEDIR)
}

// podName returns the name of a pod's directory.
func podName(pod int) string { return "pod" + strconv.Itoa(pod) }

// parsePart parses the name of a page file; ok is false for any name that this
// package does not make.
func parsePart(name string) (kind uint32, id uint64, epoch job.Epoch, ok bool) {
	body, found := strings.CutSuffix(name, ".pages")
	if !found || len(body) < 2 {
		return 0, 0, 0, false
	}
	switch body[0] {
	case 'p':
		kind = kindProcess
	case 'o':
		kind = kindObject
	default:
		return 0, 0, 0, false
	}
	first, second, found := strings.Cut(body[1:], "-")
	id, ok1 := parseNumber(first, 31)
	e, ok2 := parseNumber(second, 64)
	return kind, id, job.Epoch(e), found && ok1 && ok2
}

// parseNumber parses a positive decimal without leading zeroes.
func parseNumber(s string, bits int) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, bits)
	return n, err == nil && n > 0 && s[0] != '0'
}

// listDigest returns the digest of a set of files: SHA-256 over their sorted
// lines "NAME SIZE SHA256\n".
func listDigest(files map[string]podapi.File) string {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	h := sha256.New()
	for _, n := range names {
		fmt.Fprintf(h, "%s %d %s\n", n, files[n].Size, files[n].SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))
}
