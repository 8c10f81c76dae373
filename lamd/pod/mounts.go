package pod

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// completeNamespaces gives pod-init's namespaces their own hostname, /proc,
// /dev/shm and temporary directory, and takes away every capability that the
// ranks shall not inherit. Everything else of the file tree is the node's.
func completeNamespaces(c initConf) error {
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	// Nothing that is mounted here may be seen on the node.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// The directory is opened before /dev/shm covers it.
	var tmp *os.File
	if c.TmpDir != "" {
		f, err := os.OpenFile(c.TmpDir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return fmt.Errorf("temporary directory: %w", err)
		}
		tmp = f
		defer func() { _ = f.Close() }() // O_PATH
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc (is the node's /proc partly covered?): %w", err)
	}
	if err := unix.Mount("shm", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	if tmp != nil {
		if err := os.Mkdir(podTmp, 0o700); err != nil {
			return fmt.Errorf("temporary directory: %w", err)
		}
		src := fmt.Sprintf("/proc/self/fd/%d", tmp.Fd())
		if err := unix.Mount(src, podTmp, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount temporary directory: %w", err)
		}
	}
	return limitCapabilities()
}

// limitCapabilities leaves CAP_CHECKPOINT_RESTORE as the only capability that
// a child can have, also when it is uid 0 of R: the bounding set is what an
// execve gives to root (capabilities(7)). The thread keeps its own; the caller
// is locked to it, and all children are forked there.
func limitCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	for c := uintptr(0); c <= 63; c++ {
		if c == unix.CAP_CHECKPOINT_RESTORE {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // beyond the last capability
			break
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return clearInheritable()
}

// clearInheritable empties the inheritable set: an execve gives it to root,
// beside the bounding set.
func clearInheritable() error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	d[0].Inheritable, d[1].Inheritable = 0, 0
	if err := unix.Capset(&h, &d[0]); err != nil {
		return fmt.Errorf("clear inheritable capabilities: %w", err)
	}
	return nil
}
