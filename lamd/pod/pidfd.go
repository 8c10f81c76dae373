package pod

import "golang.org/x/sys/unix"

// pidfdOpen opens a pidfd with close-on-exec (pidfd_open(2) always sets it).
func pidfdOpen(pid int) (int, error) { return unix.PidfdOpen(pid, 0) }
