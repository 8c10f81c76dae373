package proc

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseLock(t *testing.T) {
	for _, c := range []struct {
		line string
		want Lock
		ok   bool
	}{
		{"1: POSIX  ADVISORY  WRITE 4242 fe:00:123 0 EOF", Lock{LockPOSIX, true, 4242, 123, 0, math.MaxInt64, false}, true},
		{"2: OFDLCK ADVISORY  READ -1 00:1f:9 10 19", Lock{LockOFD, false, -1, 9, 10, 19, false}, true},
		{"3: FLOCK  ADVISORY  WRITE 7 08:01:5 0 EOF", Lock{LockFlock, true, 7, 5, 0, math.MaxInt64, false}, true},
		{"3: -> FLOCK  ADVISORY  WRITE 7 08:01:5 0 EOF", Lock{LockFlock, true, 7, 5, 0, math.MaxInt64, true}, true},
		{"4: LEASE  ACTIVE    READ 7 08:01:5 0 EOF", Lock{LockLease, false, 7, 5, 0, math.MaxInt64, false}, true},
		{"4: LEASE  BREAKING  UNLCK 7 08:01:5 0 EOF", Lock{LockLease, false, 7, 5, 0, math.MaxInt64, false}, true},
		{"", Lock{}, false},
		{"1: POSIX ADVISORY WRITE 1 08:01:5 0", Lock{}, false},
		{"1: OTHER ADVISORY WRITE 1 08:01:5 0 EOF", Lock{}, false},
		{"1: POSIX ADVISORY UNLCK 1 08:01:5 0 EOF", Lock{}, false},
		{"1: POSIX ADVISORY WRITE 1 08:5 0 EOF", Lock{}, false},
		{"1: POSIX ADVISORY WRITE 1 08:01:x 0 EOF", Lock{}, false},
		{"1: POSIX ADVISORY WRITE 1 08:01:5 9 3", Lock{}, false},
	} {
		got, err := ParseLock(c.line)
		if (err == nil) != c.ok || c.ok && got != c.want {
			t.Errorf("%q: %+v (%v)", c.line, got, err)
		}
	}
}

func FuzzParseLock(f *testing.F) {
	f.Add("1: POSIX  ADVISORY  WRITE 4242 fe:00:123 0 EOF")
	f.Add("1: -> FLOCK  ADVISORY  READ 7 08:01:5 0 EOF")
	f.Fuzz(func(t *testing.T, line string) {
		l, err := ParseLock(line)
		if err == nil && (l.End < l.Start || l.Start < 0 || l.Len() < 0) {
			t.Errorf("%q: %+v", line, l)
		}
	})
}

// TestLocksOfOurs finds locks of this process where the kernel tells them.
func TestLocksOfOurs(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "locked"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	fd := int(file.Fd())
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 5, Len: 10}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	info, err := ReadFDInfo(os.Getpid(), fd)
	if err != nil || len(info.Locks) != 1 {
		t.Fatalf("%+v %v", info, err)
	}
	l, err := ParseLock(info.Locks[0])
	if err != nil || l.Kind != LockOFD || !l.Write || l.Start != 5 || l.End != 14 || l.Len() != 10 {
		t.Errorf("%+v %v", l, err)
	}
	all, err := Locks()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, x := range all {
		found = found || x.Ino == l.Ino && x.Kind == LockOFD && x.Start == 5
	}
	if !found {
		t.Errorf("not in /proc/locks: %+v", all)
	}
}
