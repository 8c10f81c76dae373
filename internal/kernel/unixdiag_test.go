package kernel

import (
	"errors"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

func TestUnixSocket(t *testing.T) {
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
		fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var ino [2]uint64
		for i, fd := range fds {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				t.Fatal(err)
			}
			ino[i] = st.Ino
		}
		var s *Sys
		for i := range fds {
			got, err := s.UnixSocket(ino[i])
			if errors.Is(err, unix.ENOENT) {
				t.Skip("this kernel does not describe unix sockets (CONFIG_UNIX_DIAG)")
			}
			if want := (UnixInfo{Type: typ, PeerIno: ino[1-i], Peered: true}); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("end %d: %+v, want %+v (%v)", i, got, want, err)
			}
		}
		if err := unix.Shutdown(fds[0], unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		got, err := s.UnixSocket(ino[0])
		if err != nil || got.Shutdown != 2 {
			t.Errorf("after shutdown: %+v (%v)", got, err)
		}
		if err := unix.Close(fds[1]); err != nil {
			t.Fatal(err)
		}
		if got, err = s.UnixSocket(ino[0]); err != nil || got.PeerIno != 0 {
			t.Errorf("after close: %+v (%v)", got, err)
		}
		if err := unix.Close(fds[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := s.UnixSocket(ino[0]); !errors.Is(err, unix.ENOENT) {
			t.Errorf("closed socket: %v", err)
		}
	}
}

func FuzzUnixDiag(f *testing.F) {
	f.Add(make([]byte, 40))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = parseUnixDiag(b) // must not panic
	})
}
