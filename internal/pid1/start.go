package pid1

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Spec describes a process to start. Its descriptors are those that go with
// it, numbered from 0; it inherits no others. It leads a process group of its
// own, so that kill(0, sig) does not meet init, and has CAP_CHECKPOINT_RESTORE
// in the user namespace of init as its only ambient capability.
type Spec struct {
	PID    int      `json:"pid"`              // wanted, 0 = any
	Nearby bool     `json:"nearby,omitempty"` // when a thread has that number, the next free one will do
	Path   string   `json:"path"`
	Argv   []string `json:"argv"`
	Env    []string `json:"env"`
	Dir    string   `json:"dir"`
	Umask  int      `json:"umask"` // -1: init's own
	// Stopped leaves the program stopped, as by SIGSTOP, before its first
	// instruction.
	Stopped bool `json:"stopped,omitempty"`
}

// tries is how many numbers are tried, or how often the same one is.
const tries = 20

// start starts the process that the memory file fds[0] describes, with
// descriptors fds[1:]. The pidfd is the caller's.
func start(fds []int) (pid, pidfd int, err error) {
	if len(fds) == 0 {
		return 0, -1, errors.New("start: no description")
	}
	var s Spec
	if s, err = readSpec(fds[0]); err != nil {
		return 0, -1, fmt.Errorf("start: read description: %w", err)
	}
	if st, err := os.Stat(s.Dir); err != nil {
		return 0, -1, fmt.Errorf("working directory: %w", err)
	} else if !st.IsDir() {
		return 0, -1, fmt.Errorf("working directory %s: %w", s.Dir, unix.ENOTDIR)
	}
	for range tries {
		pid, pidfd, err = startOnce(s, fds[1:])
		if err != nil || s.PID == 0 || pid == s.PID {
			return pid, pidfd, err
		}
		if err := discard(pid, pidfd); err != nil {
			return 0, -1, err
		}
		if s.Nearby {
			s.PID++
		}
	}
	return 0, -1, fmt.Errorf("start: process number %d is taken", s.PID)
}

// readSpec reads through a copy of the descriptor, which os.File may close.
func readSpec(fd int) (s Spec, err error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 5)
	if err != nil {
		return s, err
	}
	f := os.NewFile(uintptr(dup), "spec")
	defer func() { _ = f.Close() }() // read only
	return s, ReadMemoryFile(f, &s)
}

// startOnce forks and executes once. The process is traced and so stopped
// before its first instruction, until it is known to have the number that it
// should; one with another number is returned still stopped.
func startOnce(s Spec, fds []int) (pid, pidfd int, err error) {
	files := make([]uintptr, len(fds))
	for i, fd := range fds {
		files[i] = uintptr(fd)
	}
	pidfd = -1
	attr := &syscall.ProcAttr{Dir: s.Dir, Env: s.Env, Files: files, Sys: &syscall.SysProcAttr{
		Setpgid: true, Ptrace: true, PidFD: &pidfd,
		AmbientCaps: []uintptr{unix.CAP_CHECKPOINT_RESTORE},
	}}
	if s.Umask >= 0 {
		old := unix.Umask(s.Umask)
		defer unix.Umask(old)
	}
	if s.PID > 1 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(s.PID-1)), 0); err != nil {
			return 0, -1, fmt.Errorf("choose process number: %w", err)
		}
	}
	pid, err = syscall.ForkExec(s.Path, s.Argv, attr)
	if err != nil {
		return 0, -1, &os.PathError{Op: "execute", Path: s.Path, Err: err}
	}
	var ws unix.WaitStatus
	for {
		if _, err = unix.Wait4(pid, &ws, unix.WALL, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case err != nil:
		return 0, -1, errors.Join(fmt.Errorf("start: wait for %d: %w", pid, err), unix.Close(pidfd))
	case !ws.Stopped():
		return 0, -1, errors.Join(fmt.Errorf("start: process %d ended at once, status %#x", pid, uint32(ws)), unix.Close(pidfd))
	case s.PID != 0 && pid != s.PID:
		return pid, pidfd, nil
	}
	if s.Stopped { // pending until it is let go: it executes nothing
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			return 0, -1, errors.Join(fmt.Errorf("start: stop %d: %w", pid, err), discard(pid, pidfd))
		}
	}
	if err := unix.PtraceDetach(pid); err != nil {
		return 0, -1, errors.Join(fmt.Errorf("start: detach from %d: %w", pid, err), discard(pid, pidfd))
	}
	return pid, pidfd, nil
}

// discard kills a child that is of no use and takes its status.
func discard(pid, pidfd int) error {
	err := unix.Kill(pid, unix.SIGKILL)
	var ws unix.WaitStatus
	for {
		_, werr := unix.Wait4(pid, &ws, unix.WALL, nil)
		if !errors.Is(werr, unix.EINTR) && (werr != nil || ws.Exited() || ws.Signaled()) {
			break
		}
	}
	return errors.Join(err, unix.Close(pidfd))
}
