package kernel

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Range is the half-open interval [Start, End) of addresses of a process.
type Range struct {
	Start, End uint64
}

// Len returns the size in bytes.
func (r Range) Len() uint64 { return r.End - r.Start }

// iovMax is IOV_MAX of linux/uio.h.
const iovMax = 1024

// ReadMem fills buf with the memory of process pid at addr. It needs no ptrace
// stop, but sees torn data when the process runs.
//
// Expected errors: *Error with EFAULT (a page is not readable), ESRCH, EPERM.
func (s *Sys) ReadMem(pid int, addr uint64, buf []byte) error {
	return s.ReadMemV(pid, [][]byte{buf}, []Range{{addr, addr + uint64(len(buf))}})
}

// WriteMem stores buf in the memory of process pid at addr. Pages without
// PROT_WRITE are refused with EFAULT: use WriteForce for those.
//
// Expected errors: as of ReadMem. On an error part of buf may be written.
func (s *Sys) WriteMem(pid int, addr uint64, buf []byte) error {
	return s.WriteMemV(pid, [][]byte{buf}, []Range{{addr, addr + uint64(len(buf))}})
}

// ReadMemV fills the buffers, taken as one sequence, with the ranges, taken as
// one sequence; both must have the same total length. Short transfers are
// continued.
func (s *Sys) ReadMemV(pid int, local [][]byte, remote []Range) error {
	return s.transfer("process_vm_readv", pid, local, remote, unix.ProcessVMReadv)
}

// WriteMemV is the inverse of ReadMemV.
func (s *Sys) WriteMemV(pid int, local [][]byte, remote []Range) error {
	return s.transfer("process_vm_writev", pid, local, remote, unix.ProcessVMWritev)
}

type vmCall func(pid int, l []unix.Iovec, r []unix.RemoteIovec, flags uint) (int, error)

// transfer moves all bytes, in calls of at most iovMax elements a side. The
// kernel may stop short at the end of an element; then the rest is tried again
// and an error shows itself as a call that moves nothing.
func (s *Sys) transfer(op string, pid int, local [][]byte, remote []Range, call vmCall) error {
	if err := s.Check(op, pid); err != nil {
		return err
	}
	lc, rc := bufCursor{bufs: local}, rangeCursor{ranges: remote}
	var liov []unix.Iovec
	var riov []unix.RemoteIovec
	for {
		liov, riov = lc.fill(liov[:0]), rc.fill(riov[:0])
		if len(liov) == 0 && len(riov) == 0 {
			return nil
		}
		if len(liov) == 0 || len(riov) == 0 {
			return &Error{Op: op, PID: pid, Errno: unix.EINVAL}
		}
		n, err := call(pid, liov, riov, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return wrap(op, pid, err)
		}
		if n == 0 {
			return &Error{Op: op, PID: pid, Errno: unix.EFAULT}
		}
		lc.advance(n)
		rc.advance(uint64(n))
	}
}

// bufCursor walks over local buffers.
type bufCursor struct {
	bufs [][]byte
	off  int // bytes of bufs[0] that are done
}

func (c *bufCursor) fill(out []unix.Iovec) []unix.Iovec {
	off := c.off
	for _, b := range c.bufs {
		b, off = b[off:], 0
		if len(b) == 0 {
			continue
		}
		if len(out) == iovMax {
			break
		}
		out = append(out, unix.Iovec{Base: &b[0], Len: uint64(len(b))})
	}
	return out
}

func (c *bufCursor) advance(n int) {
	c.off += n
	for len(c.bufs) > 0 && c.off >= len(c.bufs[0]) {
		c.off -= len(c.bufs[0])
		c.bufs = c.bufs[1:]
	}
}

// rangeCursor walks over remote ranges.
type rangeCursor struct {
	ranges []Range
	off    uint64 // bytes of ranges[0] that are done
}

func (c *rangeCursor) fill(out []unix.RemoteIovec) []unix.RemoteIovec {
	off := c.off
	for _, r := range c.ranges {
		r.Start, off = r.Start+off, 0
		if r.Start >= r.End {
			continue
		}
		if len(out) == iovMax {
			break
		}
		out = append(out, unix.RemoteIovec{Base: uintptr(r.Start), Len: int(r.Len())})
	}
	return out
}

func (c *rangeCursor) advance(n uint64) {
	c.off += n
	for len(c.ranges) > 0 && c.off >= c.ranges[0].Len() {
		c.off -= c.ranges[0].Len()
		c.ranges = c.ranges[1:]
	}
}
