package proctool

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/pause"
)

// extraName is what an image calls descriptor num that comes from outside.
func extraName(num int) string { return "fd:" + strconv.Itoa(num) }

// extraNumbers parses the values of --extra-file of checkpoint, check and
// rollback: numbers of descriptors.
func extraNumbers(words []string) ([]int, error) {
	var out []int
	for _, w := range words {
		n, err := strconv.Atoi(w)
		if err != nil || n < 0 {
			return nil, usage("--extra-file %q: not the number of a descriptor", w)
		}
		out = append(out, n)
	}
	return out, nil
}

// extrasOf finds the descriptors of pid that are declared to come from
// outside.
func extrasOf(pid int, nums []int) ([]pause.External, error) {
	var out []pause.External
	for _, num := range nums {
		path := "/proc/" + strconv.Itoa(pid) + "/fd/" + strconv.Itoa(num)
		link, err := os.Readlink(path)
		if err != nil {
			return nil, &exitError{job.ExitUsage, fmt.Errorf("--extra-file %d: process %d has no such descriptor", num, pid)}
		}
		if strings.HasPrefix(link, "anon_inode:") {
			return nil, usage("--extra-file %d: %s is nothing that could be given at a restart", num, link)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return nil, fmt.Errorf("--extra-file %d: %w", num, err)
		}
		out = append(out, pause.External{Name: extraName(num), Dev: st.Dev, Ino: st.Ino})
	}
	return out, nil
}

// extras are the values of --extra-file of restart: what a descriptor that
// came from outside is replaced by, a path or "&N" for lam's own descriptor N.
type extras struct {
	words  map[string]string // by name in the image
	opened []*os.File
}

// parseExtras reads FD=PATH and FD=&N.
func parseExtras(words []string) (*extras, error) {
	e := &extras{words: map[string]string{}}
	for _, w := range words {
		num, what, ok := strings.Cut(w, "=")
		n, err := strconv.Atoi(num)
		if !ok || err != nil || n < 0 || what == "" {
			return nil, usage("--extra-file %q: want FD=PATH or FD=&N", w)
		}
		if own, ok := strings.CutPrefix(what, "&"); ok {
			k, err := strconv.Atoi(own)
			if err != nil || k < 0 {
				return nil, usage("--extra-file %q: %q is not the number of a descriptor", w, own)
			}
			if _, err := unix.FcntlInt(uintptr(k), unix.F_GETFD, 0); err != nil {
				return nil, usage("--extra-file %q: lam was not given a descriptor %d", w, k)
			}
		}
		e.words[extraName(n)] = what
	}
	return e, nil
}

// get returns the replacement for a descriptor that the image names, which was
// open with flags. ok is false when the name is not one of ours.
func (e *extras) get(name string, flags int) (fd int, ok bool, err error) {
	num, ours := strings.CutPrefix(name, "fd:")
	if !ours {
		return -1, false, nil
	}
	what, given := e.words[name]
	if !given {
		return -1, true, &exitError{job.ExitUsage, fmt.Errorf("descriptor %s came from outside: say --extra-file %s=PATH or %s=&N", num, num, num)}
	}
	if own, ok := strings.CutPrefix(what, "&"); ok {
		n, err := strconv.Atoi(own)
		return n, true, err
	}
	const kept = unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK
	how := flags&kept | unix.O_NOCTTY
	if flags&unix.O_ACCMODE != unix.O_RDONLY {
		how |= os.O_CREATE
	}
	f, err := os.OpenFile(what, how, 0o666) //nolint:gosec // what the user named, under his umask
	if err != nil {
		return -1, true, fmt.Errorf("--extra-file %s=%s: %w", num, what, err)
	}
	e.opened = append(e.opened, f)
	return int(f.Fd()), true, nil
}

// open opens the terminal of our session, whatever it is.
func (e *extras) open(path string, flags int) (int, error) {
	f, err := os.OpenFile(path, flags&(unix.O_ACCMODE|unix.O_NONBLOCK), 0)
	if err != nil {
		return -1, fmt.Errorf("the program had a terminal, and lam has none: %w", err)
	}
	e.opened = append(e.opened, f)
	return int(f.Fd()), nil
}

// close closes what was opened; the processes have their own by then.
func (e *extras) close() {
	for _, f := range e.opened {
		_ = f.Close() //nolint:errcheck // nothing was written through it
	}
	e.opened = nil
}
