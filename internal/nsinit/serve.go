package nsinit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Serve is the body of init: pid 1 of the namespaces that Start made, with the
// socket at descriptor 3. It returns when the caller is gone.
//
// Expected errors: when it is not run by Start; those of mounting /proc.
func Serve(ctx context.Context) error {
	runtime.LockOSThread() // the wanted pid and the parent of children belong to a thread
	defer runtime.UnlockOSThread()
	if os.Getpid() != 1 {
		return errors.New("nsinit: not pid 1 of a pid namespace")
	}
	// Whatever our ancestors forgot to close must not get into programs.
	if err := unix.CloseRange(sockFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("nsinit: close on exec: %w", err)
	}
	if err := complete(); err != nil {
		return errors.Join(err, send(sockFD, message{ID: 1, Error: err.Error()}))
	}
	children := make(chan os.Signal, 16)
	signal.Notify(children, unix.SIGCHLD)
	others := make(chan os.Signal, 1) // taken, not ignored: ignored signals would be inherited
	signal.Notify(others, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	if err := send(sockFD, message{ID: 1}); err != nil {
		return fmt.Errorf("nsinit: report: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asks := make(chan ask)
	go readAsks(ctx, asks)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-children:
		case a := <-asks:
			if errors.Is(a.err, errGone) {
				return nil
			}
			if a.err != nil {
				return a.err
			}
			if err := answer(a); err != nil {
				return err
			}
		}
		if err := reap(); err != nil {
			return err
		}
	}
}

type ask struct {
	m   message
	fds []int
	err error
}

func readAsks(ctx context.Context, asks chan<- ask) {
	for {
		var a ask
		a.m, a.fds, a.err = receive(sockFD)
		select {
		case asks <- a:
		case <-ctx.Done():
			return
		}
		if a.err != nil {
			return
		}
	}
}

// complete gives the namespaces their own /proc and leaves init's children one
// capability at most. Source: capabilities(7).
func complete() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("nsinit: make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("nsinit: mount /proc: %w", err)
	}
	if os.Geteuid() == 0 {
		return nil // root in earnest: its programs keep what they have
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("nsinit: clear ambient capabilities: %w", err)
	}
	return nil
}

func answer(a ask) error {
	defer closeAll(a.fds)
	m, pidfd := message{ID: a.m.ID}, -1
	err := fmt.Errorf("nsinit: nothing to start")
	if a.m.Spec != nil {
		m.PID, pidfd, err = start(*a.m.Spec, a.fds)
	}
	if err != nil {
		m = message{ID: a.m.ID, Error: err.Error()}
		var no syscall.Errno
		if errors.As(err, &no) {
			m.Errno = int(no)
		}
		return send(sockFD, m)
	}
	return errors.Join(send(sockFD, m, pidfd), unix.Close(pidfd))
}

// start forks until the child has the wanted pid, and executes the program.
func start(s Spec, fds []int) (pid, pidfd int, err error) {
	const tries = 20
	for range tries {
		pid, pidfd, err = startOnce(s, fds)
		if err != nil || s.PID == 0 || pid == s.PID {
			return pid, pidfd, err
		}
		var ws unix.WaitStatus
		err = errors.Join(unix.Kill(pid, unix.SIGKILL), unix.Close(pidfd))
		if _, werr := unix.Wait4(pid, &ws, unix.WALL, nil); werr != nil || err != nil {
			return 0, -1, errors.Join(err, werr)
		}
	}
	return 0, -1, fmt.Errorf("process number %d is taken", s.PID)
}

func startOnce(s Spec, fds []int) (pid, pidfd int, err error) {
	files := make([]uintptr, len(fds))
	for i, fd := range fds {
		files[i] = uintptr(fd) //nolint:gosec // a descriptor
	}
	pidfd = -1
	attr := &syscall.ProcAttr{Dir: s.Dir, Env: s.Env, Files: files, Sys: &syscall.SysProcAttr{
		Setpgid: true, Ptrace: true, PidFD: &pidfd,
		AmbientCaps: []uintptr{unix.CAP_CHECKPOINT_RESTORE},
	}}
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
	if err == nil && !ws.Stopped() {
		err = fmt.Errorf("process %d ended at once, status %#x", pid, uint32(ws))
	}
	if err == nil && (s.PID == 0 || pid == s.PID) {
		err = unix.PtraceDetach(pid)
	}
	if err != nil {
		return 0, -1, errors.Join(err, unix.Close(pidfd))
	}
	return pid, pidfd, nil
}

func reap() error {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG|unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD), err == nil && pid == 0:
			return nil
		case err != nil:
			return fmt.Errorf("nsinit: wait: %w", err)
		case !ws.Exited() && !ws.Signaled():
			continue
		}
		if err := send(sockFD, message{PID: pid, Exit: true, Status: uint32(ws)}); err != nil {
			return fmt.Errorf("nsinit: report exit: %w", err)
		}
	}
}
