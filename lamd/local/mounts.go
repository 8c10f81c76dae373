package local

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// privateMounts gives the node, whose mount namespace this process is in, its
// own /proc, /dev/shm and /sys over the shared file tree. Mounts that the host
// makes later still arrive (mount_namespaces(7), slave).
//
// warn receives what could not be had but is not needed by most programs.
func privateMounts(warn func(string, error)) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// MPI libraries look for interfaces in /sys/class/net, which shows those
	// of the network namespace it was mounted in.
	if err := mountSys(flags); err != nil {
		warn("own /sys", err)
	}
	if err := unix.Mount("shm", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		warn("private /dev/shm", err)
	}
	return nil
}

// mountSys puts a fresh sysfs over /sys and the host's control groups back
// into it.
func mountSys(flags uintptr) error {
	const groups = "/sys/fs/cgroup"
	old, err := unix.Open(groups, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == nil {
		defer func() { _ = unix.Close(old) }()
	}
	err = unix.Mount("sysfs", "/sys", "sysfs", flags, "")
	if errors.Is(err, unix.EPERM) { // the host's is read-only, and ours must not be less so
		err = unix.Mount("sysfs", "/sys", "sysfs", flags|unix.MS_RDONLY, "")
	}
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if old < 0 {
		return nil
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", old), groups, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	return nil
}

// hostPID returns this process's pid as the host sees it. It holds for as long
// as /proc is the host's: the link is resolved in the pid namespace that the
// file system was mounted in (proc(5)).
func hostPID() (int, error) {
	s, err := os.Readlink("/proc/self")
	if err != nil {
		return 0, fmt.Errorf("own pid: %w", err)
	}
	var pid int
	if _, err := fmt.Sscanf(s, "%d", &pid); err != nil {
		return 0, fmt.Errorf("own pid: /proc/self -> %q: %w", s, err)
	}
	return pid, nil
}
