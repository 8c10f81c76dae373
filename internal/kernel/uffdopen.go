package kernel

import "golang.org/x/sys/unix"

// UffdOpen makes a userfaultfd of this very process, of the kind that needs no
// privilege. The engine makes those of ranks by injection; this one answers
// whether the kernel has them at all.
//
// Expected errors: *Error with ENOSYS (built without), EPERM (forbidden, as by
// a seccomp filter). Source: userfaultfd(2).
func (s *Sys) UffdOpen() (int, error) {
	var fd uintptr
	err := s.do("userfaultfd", 0, func() error {
		r, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|UffdUserModeOnly, 0, 0)
		if errno != 0 {
			return errno
		}
		fd = r
		return nil
	})
	if err != nil {
		return -1, err
	}
	return int(fd), nil
}
