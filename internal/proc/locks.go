package proc

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LockKind tells file locks apart by whom they belong to.
type LockKind string

// The kinds of file locks. Source: proc_locks(5).
const (
	LockPOSIX LockKind = "posix" // fcntl(F_SETLK): of a process and a file
	LockOFD   LockKind = "ofd"   // fcntl(F_OFD_SETLK): of an open file description
	LockFlock LockKind = "flock" // flock(2): of an open file description
	LockLease LockKind = "lease" // fcntl(F_SETLEASE), and delegations of file servers
)

// Lock is a file lock: a line of /proc/locks, or of fdinfo.
type Lock struct {
	Kind    LockKind
	Write   bool
	PID     int // owner as the reader sees it; -1 for LockOFD, 0 where it is not visible
	Ino     uint64
	Start   int64 // first byte
	End     int64 // last byte; math.MaxInt64 to the end of the file, however long
	Blocked bool  // somebody waits for it
}

// Overlaps reports whether the two have a byte in common.
func (l *Lock) Overlaps(o *Lock) bool { return l.Start <= o.End && o.Start <= l.End }

// Len returns the length as fcntl(2) wants it: 0 to the end of the file.
func (l *Lock) Len() int64 {
	if l.End == math.MaxInt64 {
		return 0
	}
	return l.End - l.Start + 1
}

// ParseLock parses a line of /proc/locks, or what stands behind "lock:" in
// fdinfo: "1: POSIX  ADVISORY  WRITE 4242 fe:00:123 0 EOF".
//
// Expected errors: one that says what is not understood.
func ParseLock(line string) (Lock, error) {
	l := Lock{}
	_, rest, ok := strings.Cut(line, ":")
	f := strings.Fields(rest)
	if ok && len(f) > 0 && f[0] == "->" {
		l.Blocked, f = true, f[1:]
	}
	if len(f) != 7 {
		return l, fmt.Errorf("%d words in a lock, want 7", len(f))
	}
	switch f[0] {
	case "POSIX", "ACCESS":
		l.Kind = LockPOSIX
	case "OFDLCK":
		l.Kind = LockOFD
	case "FLOCK":
		l.Kind = LockFlock
	case "LEASE", "DELEG":
		l.Kind = LockLease
	default:
		return l, fmt.Errorf("lock of unknown kind %q", f[0])
	}
	l.Write = f[2] == "WRITE"
	if l.Kind != LockLease && !l.Write && f[2] != "READ" {
		return l, fmt.Errorf("lock of unknown mode %q", f[2])
	}
	dev := strings.Split(f[4], ":")
	if len(dev) != 3 {
		return l, fmt.Errorf("no inode in %q", f[4])
	}
	var errs [4]error
	l.PID, errs[0] = strconv.Atoi(f[3])
	l.Ino, errs[1] = strconv.ParseUint(dev[2], 10, 64)
	l.Start, errs[2] = strconv.ParseInt(f[5], 10, 64)
	l.End = math.MaxInt64
	if f[6] != "EOF" {
		l.End, errs[3] = strconv.ParseInt(f[6], 10, 64)
	}
	for _, err := range errs {
		if err != nil {
			return l, err
		}
	}
	if l.Start < 0 || l.End < l.Start {
		return l, fmt.Errorf("lock of bytes %d to %d", l.Start, l.End)
	}
	return l, nil
}

// Locks reads /proc/locks: the locks of all processes that the reader can see,
// and those that belong to no process. Lines that are not understood are
// passed over.
//
// Expected errors: those of reading the file.
func Locks() ([]Lock, error) {
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		return nil, fmt.Errorf("proc: %w", err)
	}
	var out []Lock
	for line := range strings.Lines(string(b)) {
		if l, err := ParseLock(line); err == nil {
			out = append(out, l)
		}
	}
	return out, nil
}

// LockHolder looks for somebody who keeps want from being taken: through fd,
// any descriptor of the file. It returns words for who that is, "" for nobody.
// Locks for which ours answers true do not count; nil means that none is ours.
// The file's locks change only by the test of a flock, which is given back at
// once; none is tried where ours has one.
//
// Expected errors: those of fcntl(2) and flock(2).
func LockHolder(fd int, want Lock, ours func(l *Lock) bool) (string, error) {
	if want.Kind == LockFlock {
		return flockHolder(fd, want, ours)
	}
	for at := want.Start; ; {
		probe := unix.Flock_t{Type: unix.F_RDLCK, Start: at}
		if want.Write {
			probe.Type = unix.F_WRLCK
		}
		if want.End != math.MaxInt64 {
			probe.Len = want.End - at + 1
		}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &probe); err != nil {
			return "", fmt.Errorf("ask for locks: %w", err)
		}
		if probe.Type == unix.F_UNLCK {
			return "", nil
		}
		found := Lock{Kind: LockPOSIX, Write: probe.Type == unix.F_WRLCK, PID: int(probe.Pid), Start: probe.Start, End: math.MaxInt64}
		if probe.Pid == -1 {
			found.Kind = LockOFD
		}
		if probe.Len > 0 {
			found.End = probe.Start + probe.Len - 1
		}
		if ours == nil || !ours(&found) {
			return holderName(&found), nil
		}
		if found.End >= want.End {
			return "", nil
		}
		at = found.End + 1
	}
}

// flockHolder tries the lock on a description of its own.
func flockHolder(fd int, want Lock, ours func(l *Lock) bool) (string, error) {
	if ours != nil && ours(&want) {
		return "", nil
	}
	own, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", fmt.Errorf("open the locked file: %w", err)
	}
	defer func() { _ = unix.Close(own) }() // gives the lock back
	how := unix.LOCK_SH
	if want.Write {
		how = unix.LOCK_EX
	}
	err = unix.Flock(own, how|unix.LOCK_NB)
	if err != unix.EWOULDBLOCK { //nolint:errorlint // an errno
		return "", err
	}
	all, err := Locks()
	if err != nil {
		return "", err
	}
	for i := range all {
		if l := &all[i]; l.Kind == LockFlock && l.Ino == want.Ino && !l.Blocked {
			return holderName(l), nil
		}
	}
	return "somebody whom this process cannot see", nil
}

func holderName(l *Lock) string {
	if l.PID > 0 {
		return "process " + strconv.Itoa(l.PID)
	}
	return "an open file of a process that cannot be told"
}
