package proctool

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/pause"
)

// newPod returns a pod of process pid and what belongs to it.
func newPod(cmdLog zerolog.Logger, pid int, files string, extra []int) (*pause.Pod, error) {
	sys := kernel.New(nil)
	p := pause.New(pause.Config{
		Job: theJob, Node: "local", Incarnation: 1, Sys: sys, Files: files, Log: cmdLog,
		Streams: stream.NewTree(sys, cmdLog),
	})
	if _, err := setRanks(p, pid, extra); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// stdioNames are the descriptors that come from outside, by number.
func stdioNames() [3]string { return [3]string{"stdin", "stdout", "stderr"} }

// stdioOf finds out which of the first three descriptors of pid have another
// end outside: terminals, pipes, sockets. Regular files and devices like
// /dev/null belong to the program.
func stdioOf(pid int) ([]pause.External, error) {
	var out []pause.External
	for i, name := range stdioNames() {
		path := "/proc/" + strconv.Itoa(pid) + "/fd/" + strconv.Itoa(i)
		var st unix.Stat_t
		err := unix.Stat(path, &st)
		if os.IsNotExist(err) {
			if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err != nil {
				return nil, &exitError{job.ExitUsage, fmt.Errorf("process %d: %w", pid, unix.ESRCH)}
			}
			continue // closed
		}
		if err != nil {
			return nil, &exitError{job.ExitPermission, fmt.Errorf("process %d: %w", pid, err)}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG, unix.S_IFDIR:
			continue
		case unix.S_IFCHR:
			const ttyMajors = 4
			if major := unix.Major(st.Rdev); major != ttyMajors && major != 5 && (major < 136 || major > 143) {
				continue
			}
		}
		out = append(out, pause.External{Name: name, Dev: st.Dev, Ino: st.Ino})
	}
	return out, nil
}

// tree returns pid and its descendants, parents first.
func tree(pid int) ([]int, error) {
	out := []int{pid}
	kids, err := proc.Children(pid)
	if err != nil {
		return nil, err
	}
	for _, k := range kids {
		below, err := tree(k)
		if err != nil {
			continue // it ended meanwhile
		}
		out = append(out, below...)
	}
	return out, nil
}

// signalAll sends sig to processes; those that ended are passed over.
func signalAll(pids []int, sig unix.Signal) error {
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH { //nolint:errorlint // an errno
			return fmt.Errorf("signal %d: %w", pid, err)
		}
	}
	return nil
}

// logTo returns the log of a command: warnings, for people, on stderr.
func logTo() zerolog.Logger {
	return zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr}).Level(zerolog.ErrorLevel)
}
