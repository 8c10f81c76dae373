package kernel

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// GetRobustList returns the head and length that set_robust_list(2) recorded
// for thread tid; 0 means none.
//
// Expected errors: *Error with EPERM, ESRCH.
func (s *Sys) GetRobustList(tid int) (head, length uint64, err error) {
	err = s.do("get_robust_list", tid, func() error {
		_, _, errno := unix.RawSyscall(unix.SYS_GET_ROBUST_LIST, uintptr(tid),
			uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&length)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	return head, length, err
}

// Types of Kcmp; linux/kcmp.h.
const (
	KcmpFile  = 0 // open file descriptions of descriptors a and b
	KcmpVM    = 1
	KcmpFiles = 2
)

// Kcmp compares kernel objects of two processes: 0 equal, 1 less, 2 greater,
// in a total order that holds until reboot.
//
// Expected errors: *Error with ENOSYS (built without CONFIG_KCMP), EPERM,
// EBADF. Source: kcmp(2).
func (s *Sys) Kcmp(pid1, pid2, typ int, a, b uintptr) (int, error) {
	var order int
	err := s.do("kcmp", pid1, func() error {
		r, _, errno := unix.RawSyscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), uintptr(typ), a, b, 0)
		if errno != 0 {
			return errno
		}
		order = int(r)
		return nil
	})
	return order, err
}

// SchedYield gives the core to another thread that is ready.
func SchedYield() {
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
}

// SchedParam returns the policy and static priority of thread tid.
func (s *Sys) SchedParam(tid int) (policy, priority int, err error) {
	err = s.do("sched_getscheduler", tid, func() error {
		r, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, uintptr(tid), 0, 0)
		if errno != 0 {
			return errno
		}
		policy = int(r)
		var p int32
		if _, _, errno = unix.RawSyscall(unix.SYS_SCHED_GETPARAM, uintptr(tid), uintptr(unsafe.Pointer(&p)), 0); errno != 0 {
			return errno
		}
		priority = int(p)
		return nil
	})
	return policy, priority, err
}

// Affinity returns the CPU mask of thread tid, bit i of word i/64 for CPU i.
func (s *Sys) Affinity(tid int) ([]uint64, error) {
	var mask [16]uint64
	var n int
	err := s.do("sched_getaffinity", tid, func() error {
		r, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETAFFINITY, uintptr(tid),
			unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask[0])))
		if errno != 0 {
			return errno
		}
		n = int(r)
		return nil
	})
	return append([]uint64(nil), mask[:(n+7)/8]...), err
}

// SetAffinity sets the CPU mask of thread tid.
func (s *Sys) SetAffinity(tid int, mask []uint64) error {
	if len(mask) == 0 {
		return nil
	}
	return s.do("sched_setaffinity", tid, func() error {
		_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, uintptr(tid),
			uintptr(8*len(mask)), uintptr(unsafe.Pointer(&mask[0])))
		if errno != 0 {
			return errno
		}
		return nil
	})
}

// Bytes returns the memory of words, without a copy, in the machine's order.
func Bytes(words []uint64) []byte {
	if len(words) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8*len(words))
}
