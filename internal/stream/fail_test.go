package stream

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// failing returns a hook that fails the n-th call, and whether it did.
func failing(n int) (kernel.Hook, *bool) {
	failed := false
	return func(op string, _ int) unix.Errno {
		if n--; n == 0 {
			failed = true
			return unix.EIO
		}
		return 0
	}, &failed
}

// TestCaptureFailures fails every kernel call of a capture in turn. The
// connection is unharmed each time.
func TestCaptureFailures(t *testing.T) {
	s := newStage(t)
	a, b := s.pair(s.listener())
	must(t, unix.SetsockoptInt(a, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	s.write(a, "pending")
	s.arrives(b, 7)
	errs := 0
	for n := 1; ; n++ {
		hook, failed := failing(n)
		_, err := s.capture(s.ns.streams(t, hook))
		if err != nil {
			errs++
		}
		for fd, reuse := range map[int]int{a: 1, b: 1} {
			if v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); err != nil || v != 0 {
				t.Fatalf("call %d failed: still in repair mode: %d, %v", n, v, err)
			}
			if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || v != reuse {
				t.Fatalf("call %d failed: SO_REUSEADDR %d, %v", n, v, err)
			}
		}
		if !*failed {
			must(t, err)
			break
		}
		s.write(a, "x")
		s.expect(b, "pending"+"x")
		s.write(a, "pending")
		s.arrives(b, 7)
	}
	if errs < 60 {
		t.Errorf("only %d calls failed", errs)
	}
	if fds := openSockets(t); fds > 3 {
		t.Errorf("%d sockets are open, 3 should be", fds)
	}
}

func openSockets(t testing.TB) (n int) {
	names, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range names {
		if link, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(link, "socket:") {
			n++
		}
	}
	return n
}

// TestRestoreFailures fails every kernel call of a recovery in turn. Trying
// again succeeds each time.
func TestRestoreFailures(t *testing.T) {
	s := newStage(t)
	l := s.listener()
	a, b := s.pair(l)
	s.write(a, "in flight ")
	s.arrives(b, 10)
	rec, err := s.capture(s.ns.streams(t, nil))
	must(t, err)
	for n := 1; ; n++ {
		hook, failed := failing(n)
		err := s.back(s.ns.streams(t, hook), rec, uint64(2*n))
		if !*failed {
			must(t, err)
			break
		}
		must(t, s.back(s.ns.streams(t, nil), rec, uint64(2*n+1)))
		s.write(a, "future")
		s.expect(b, "in flight future")
		s.write(b, "back")
		s.expect(a, "back")
	}
	if fds := openSockets(t); fds > 3 {
		t.Errorf("%d sockets are open, 3 should be", fds)
	}
}
