package image

import (
	"errors"
	"fmt"
	"math"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

// FileLock is a lock on a file. Those of kind "posix" belong to a process and
// name one of its descriptors; the others belong to a description.
type FileLock struct {
	FD     int    `json:"fd,omitempty"`
	Kind   string `json:"kind"` // posix, ofd, flock: see internal/proc
	Write  bool   `json:"write,omitempty"`
	Start  int64  `json:"start"`
	Length int64  `json:"length"` // 0: to the end of the file
}

// End returns the last byte of the lock, math.MaxInt64 for one to the end.
func (l *FileLock) End() int64 {
	if l.Length == 0 {
		return math.MaxInt64
	}
	return l.Start + l.Length - 1
}

// FileStamp is how a file that is open for writing looked at the epoch, so that
// it can be told later whether it was overwritten.
type FileStamp struct {
	MtimeNS int64  `json:"mtime_ns"`
	CtimeNS int64  `json:"ctime_ns"`
	Summed  bool   `json:"summed,omitempty"`
	Sum     uint64 `json:"sum,omitempty"`    // XXH3 of contents, or of samples
	Append  bool   `json:"append,omitempty"` // every descriptor for writing had O_APPEND
}

// Files up to wholeFile bytes are summed whole. Of longer ones both ends and
// samples in between are: some 400 KB, whatever the length.
const (
	wholeFile   = 4 << 20
	sampleEnds  = 64 << 10
	sampleSize  = 4 << 10
	sampleCount = 62
)

// errNotCached: the contents would have to be fetched from a disk.
var errNotCached = errors.New("contents are not in memory")

// SumFile returns XXH3 of the first size bytes of the file, or of samples of
// them when they are many. With cached it gives up when not all of that is in
// memory: a stall must not wait for a disk.
//
// Expected errors: those of preadv2(2).
func SumFile(fd int, size int64, cached bool) (uint64, error) {
	h := xxh3.New()
	buf := make([]byte, 256<<10)
	feed := func(at, n int64) error {
		for n > 0 {
			part := buf[:min(n, int64(len(buf)))]
			k, err := readSome(fd, part, at, cached)
			if err != nil {
				return err
			}
			if k == 0 {
				return nil // shorter than it was
			}
			_, _ = h.Write(part[:k]) // cannot fail
			at, n = at+int64(k), n-int64(k)
		}
		return nil
	}
	if size <= wholeFile {
		err := feed(0, size)
		return h.Sum64(), err
	}
	err := feed(0, sampleEnds)
	for i := int64(1); i <= sampleCount && err == nil; i++ {
		err = feed(size/(sampleCount+1)*i&^(sampleSize-1), sampleSize)
	}
	if err == nil {
		err = feed(size-sampleEnds, sampleEnds)
	}
	return h.Sum64(), err
}

func readSome(fd int, p []byte, at int64, cached bool) (int, error) {
	if cached {
		n, err := unix.Preadv2(fd, [][]byte{p}, at, unix.RWF_NOWAIT)
		if errors.Is(err, unix.EAGAIN) {
			err = errNotCached
		}
		if !errors.Is(err, unix.EOPNOTSUPP) {
			return n, err
		}
		// A file system in memory has nothing to wait for.
		var fs unix.Statfs_t
		if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
			return 0, errNotCached
		}
	}
	return unix.Pread(fd, p, at)
}

// Overwritten tells what happened to the file behind fd since the epoch, for
// people: "" when it is as it was or was only appended to. Times are a short
// cut, contents the judge: what changed the times but not the contents is no
// change.
//
// Expected errors: those of reading the file.
func (f *FileState) Overwritten(fd int) (string, error) {
	if f.Stamp == nil || f.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	switch {
	case st.Size < f.Size:
		return fmt.Sprintf("it was cut from %d to %d bytes", f.Size, st.Size), nil
	case st.Size == f.Size && st.Mtim.Nano() == f.Stamp.MtimeNS && st.Ctim.Nano() == f.Stamp.CtimeNS:
		return "", nil
	case !f.Stamp.Summed && f.Stamp.Append:
		return "", nil // nothing else could be done through those descriptors
	case !f.Stamp.Summed:
		return "it was written; whether only at its end is not known", nil
	}
	sum, err := SumFile(fd, f.Size, false)
	if err != nil || sum == f.Stamp.Sum {
		return "", err
	}
	return fmt.Sprintf("it was overwritten: its first %d bytes are not what they were", f.Size), nil
}

// Terminal is how a terminal was set that the program was given from outside:
// struct termios and the window size.
type Terminal struct {
	Iflag uint32 `json:"iflag"`
	Oflag uint32 `json:"oflag"`
	Cflag uint32 `json:"cflag"`
	Lflag uint32 `json:"lflag"`
	Line  uint8  `json:"line"`
	Cc    []byte `json:"cc"`
	Rows  uint16 `json:"rows"`
	Cols  uint16 `json:"cols"`
}
