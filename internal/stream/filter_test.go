package stream

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// nextSeq returns the sequence number that a socket expects next.
func (s *stage) nextSeq(fd int) uint32 {
	s.t.Helper()
	must(s.t, s.sys.TCPRepair(fd))
	must(s.t, s.sys.TCPQueue(fd, kernel.QueueRecv))
	seq, err := s.sys.TCPSeq(fd)
	must(s.t, err)
	must(s.t, s.sys.TCPRepairOff(fd, false))
	return seq
}

// TestFilter checks what a socket takes before its release: bytes of its new
// life, none of another, and no reset.
func TestFilter(t *testing.T) {
	for _, tt := range []struct {
		name   string
		off    uint32 // of the filter's first number from the next expected
		span   uint32
		passes bool
	}{
		{"from the first", 0, 1 << 20, true},
		{"a probe too", ^uint32(0), filterSpan, true},
		{"ends before", ^uint32(0) - 99, 100, false},
		{"begins behind", 1, 1 << 20, false},
		{"elsewhere", 1 << 31, filterSpan, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			a, b := s.pair(s.listener())
			must(t, s.sys.TCPAccept(b, s.nextSeq(b)+tt.off, tt.span))
			s.write(a, "hello")
			wait := 2000
			if !tt.passes {
				wait = 30
			}
			ready, err := s.sys.Poll(b, unix.POLLIN, wait)
			must(t, err)
			if (ready&unix.POLLIN != 0) != tt.passes {
				t.Fatalf("passes: %v", !tt.passes)
			}
			if tt.passes { // then a reset, which must not
				must(t, unix.SetsockoptLinger(a, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
				must(t, s.sys.Disconnect(a))
				time.Sleep(10 * time.Millisecond) // a reset would have come at once
				waitState(t, s, b, stateEstablished)
			}
			must(t, s.sys.TCPAcceptAll(b))
			s.expect(b, "hello") // sent again when it was dropped
		})
	}
}

// TestForget ends connections that no process holds any more.
func TestForget(t *testing.T) {
	s := newStage(t)
	l := s.listener()
	a, b := s.pair(l)
	must(t, s.sys.TCPDropAll(a))
	s.write(b, "nobody takes this")
	s.close(b)
	st := s.ns.streams(t, nil)
	must(t, st.Forget())
	if n, err := s.sys.TCPDestroyAll(st.netns); err != nil || n != 0 {
		t.Fatalf("%d connections are left, %v", n, err)
	}
	waitState(t, s, a, stateClose)
	waitState(t, s, l, stateListen)
}
