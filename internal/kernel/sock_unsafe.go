package kernel

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Disconnect takes a TCP socket back to the closed state: queues are emptied,
// the port is given back unless it was bound explicitly. Under repair mode no
// packet is sent; otherwise the peer is reset. The descriptor, its epoll
// registrations and SO_COOKIE stay. SO_ERROR holds ECONNABORTED afterwards.
//
// Expected errors: *Error with EBUSY while a thread waits inside the socket
// (kernels before 6.7). Source: connect(2), AF_UNSPEC.
func (s *Sys) Disconnect(fd int) error {
	return s.do("connect AF_UNSPEC", 0, func() error {
		sa := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
		if errno != 0 {
			return errno
		}
		return nil
	})
}

// getsockoptBytes fills b, as far as the kernel has something to say.
func getsockoptBytes(fd, level, opt int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
