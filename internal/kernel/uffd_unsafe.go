package kernel

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Constants of linux/userfaultfd.h.
const (
	UffdUserModeOnly = 1 // flag of userfaultfd(2); needs no privilege

	uffdAPI                 = 0xaa
	uffdFeatureWPHugetlb    = 1 << 12
	uffdFeatureWPUnpopulate = 1 << 13
	uffdFeatureWPAsync      = 1 << 15
	uffdRegisterModeWP      = 1 << 1

	uffdioAPI        = 0xc018aa3f // _IOWR(0xAA, 0x3F, struct uffdio_api)
	uffdioRegister   = 0xc020aa00 // _IOWR(0xAA, 0x00, struct uffdio_register)
	uffdioUnregister = 0x8010aa01 // _IOR(0xAA, 0x01, struct uffdio_range)
)

type uffdioAPIArg struct{ api, features, ioctls uint64 }

type uffdioRegisterArg struct{ start, length, mode, ioctls uint64 }

// UffdInit makes fd, a new userfaultfd of process pid, one that tracks writes
// without stopping anybody (WP_ASYNC, also of absent pages).
//
// Expected errors: ErrNotSupported before Linux 6.7.
func (s *Sys) UffdInit(fd, pid int) error {
	arg := uffdioAPIArg{api: uffdAPI, features: uffdFeatureWPAsync | uffdFeatureWPUnpopulate | uffdFeatureWPHugetlb}
	err := s.do("uffd api", pid, func() error {
		return ioctlPtr(fd, uffdioAPI, unsafe.Pointer(&arg))
	})
	if isErrno(err, unix.EINVAL) {
		return fmt.Errorf("kernel: userfaultfd write tracking (Linux 6.7): %w", ErrNotSupported)
	}
	return err
}

// UffdRegister begins to track writes to r, which must lie in mappings that
// can be tracked.
//
// Expected errors: *Error with EINVAL (cannot be tracked), EBUSY (another
// userfaultfd has it).
func (s *Sys) UffdRegister(fd, pid int, r Range) error {
	arg := uffdioRegisterArg{start: r.Start, length: r.Len(), mode: uffdRegisterModeWP}
	return s.do("uffd register", pid, func() error {
		return ioctlPtr(fd, uffdioRegister, unsafe.Pointer(&arg))
	})
}

// UffdUnregister ends the tracking of r.
func (s *Sys) UffdUnregister(fd, pid int, r Range) error {
	arg := [2]uint64{r.Start, r.Len()}
	return s.do("uffd unregister", pid, func() error {
		return ioctlPtr(fd, uffdioUnregister, unsafe.Pointer(&arg[0]))
	})
}

func ioctlPtr(fd int, req uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}

func isErrno(err error, errno unix.Errno) bool {
	var e *Error
	return errors.As(err, &e) && e.Errno == errno
}
