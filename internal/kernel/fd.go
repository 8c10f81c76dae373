package kernel

import (
	"os"

	"golang.org/x/sys/unix"
)

// PidfdOpen returns a descriptor that stands for process pid. The caller
// closes it.
//
// Expected errors: *Error with ESRCH. Source: pidfd_open(2).
func (s *Sys) PidfdOpen(pid int) (int, error) {
	var fd int
	err := s.do("pidfd_open", pid, func() (err error) {
		fd, err = unix.PidfdOpen(pid, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// PidfdGetfd duplicates descriptor fd of the process behind pidfd into ours:
// both share one open file description. The copy is close-on-exec; the caller
// closes it.
//
// Expected errors: *Error with EBADF (no such descriptor there), EPERM.
// Source: pidfd_getfd(2), Linux 5.6.
func (s *Sys) PidfdGetfd(pidfd, pid, fd int) (int, error) {
	var n int
	err := s.do("pidfd_getfd", pid, func() (err error) {
		n, err = unix.PidfdGetfd(pidfd, fd, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	return n, nil
}

// WriteForce stores buf at addr of process pid through /proc/PID/mem opened as
// mem, also where the pages are read-only (FOLL_FORCE). It is slower than
// WriteMem.
//
// Expected errors: *Error with EIO or EFAULT where nothing is mapped.
func (s *Sys) WriteForce(mem *os.File, pid int, addr uint64, buf []byte) error {
	return s.do("pwrite /proc/pid/mem", pid, func() error {
		for len(buf) > 0 {
			n, err := unix.Pwrite(int(mem.Fd()), buf, int64(addr))
			if err != nil {
				return err
			}
			if n == 0 {
				return unix.EIO
			}
			buf, addr = buf[n:], addr+uint64(n)
		}
		return nil
	})
}

// ReadForce is the inverse of WriteForce: it fills buf, also from pages
// without PROT_READ.
func (s *Sys) ReadForce(mem *os.File, pid int, addr uint64, buf []byte) error {
	return s.do("pread /proc/pid/mem", pid, func() error {
		for len(buf) > 0 {
			n, err := unix.Pread(int(mem.Fd()), buf, int64(addr))
			if err != nil {
				return err
			}
			if n == 0 {
				return unix.EIO
			}
			buf, addr = buf[n:], addr+uint64(n)
		}
		return nil
	})
}
