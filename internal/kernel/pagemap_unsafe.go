package kernel

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Categories of pages that PagemapScan tells apart; linux/fs.h, PAGE_IS_*.
const (
	PageIsWPAllowed = 1 << 0
	PageIsWritten   = 1 << 1 // meaningful only where userfaultfd tracks writes
	PageIsFile      = 1 << 2
	PageIsPresent   = 1 << 3
	PageIsSwapped   = 1 << 4 // also write-protect and guard markers
	PageIsPFNZero   = 1 << 5
	PageIsHuge      = 1 << 6
	PageIsSoftDirty = 1 << 7
)

// Flags of PagemapScan.
const (
	ScanWPMatching   = 1 << 0 // write-protect the pages that are returned
	ScanCheckWPAsync = 1 << 1 // fail where write tracking is not registered
)

const pagemapScanIoctl = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)

// PageRegion is a run of pages of the same categories.
type PageRegion struct {
	Start, End uint64
	Categories uint64
}

// Scan says what PagemapScan looks for: pages for which all of (categories
// xor Inverted) & Mask are set and, when AnyOf is not 0, one of AnyOf.
type Scan struct {
	Start, End uint64
	Flags      uint64
	Inverted   uint64
	Mask       uint64
	AnyOf      uint64
	Return     uint64 // categories to report; runs of equal value are joined
}

// pmScanArg is struct pm_scan_arg, 96 bytes.
type pmScanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages uint64
	inverted, mask, anyOf, ret                              uint64
}

// PagemapScan returns the runs of pages of the process behind pagemap (opened
// /proc/PID/pagemap) that match scan, ascending. Start and End are multiples
// of the page size.
//
// Expected errors: *Error with EPERM (ScanCheckWPAsync and untracked memory),
// ESRCH; ErrNotSupported before Linux 6.7. Source:
// Documentation/admin-guide/mm/pagemap.rst.
func (s *Sys) PagemapScan(pagemap *os.File, pid int, scan Scan) ([]PageRegion, error) {
	const op = "pagemap scan"
	if err := s.Check(op, pid); err != nil {
		return nil, err
	}
	var out []PageRegion
	vec := make([]PageRegion, 1024)
	for scan.Start < scan.End {
		arg := pmScanArg{
			size: uint64(unsafe.Sizeof(pmScanArg{})), flags: scan.Flags, start: scan.Start, end: scan.End,
			vec: uint64(uintptr(unsafe.Pointer(&vec[0]))), vecLen: uint64(len(vec)),
			inverted: scan.Inverted, mask: scan.Mask, anyOf: scan.AnyOf, ret: scan.Return,
		}
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), pagemapScanIoctl, uintptr(unsafe.Pointer(&arg)))
		runtime.KeepAlive(vec)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.ENOTTY:
			return nil, fmt.Errorf("kernel: %s (Linux 6.7): %w", op, ErrNotSupported)
		default:
			return nil, &Error{Op: op, PID: pid, Errno: errno}
		}
		out = appendRegions(out, vec[:n])
		if arg.walkEnd <= scan.Start {
			return nil, &Error{Op: op, PID: pid, Errno: unix.EIO}
		}
		scan.Start = arg.walkEnd
	}
	return out, nil
}

// appendRegions joins runs that a full vector cut in two.
func appendRegions(out, more []PageRegion) []PageRegion {
	for _, r := range more {
		if k := len(out) - 1; k >= 0 && out[k].End == r.Start && out[k].Categories == r.Categories {
			out[k].End = r.End
			continue
		}
		out = append(out, r)
	}
	return out
}
