package stream

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestIPv6 takes connections of IPv6 sockets back: native ones, and IPv4
// clients of a listener for both.
func TestIPv6(t *testing.T) {
	for name, connect := range map[string]struct {
		family int
		addr   func(port int) unix.Sockaddr
	}{
		"native": {unix.AF_INET6, func(port int) unix.Sockaddr { return &unix.SockaddrInet6{Port: port, Addr: [16]byte{15: 1}} }},
		"mapped": {unix.AF_INET, func(port int) unix.Sockaddr { return &unix.SockaddrInet4{Port: port, Addr: [4]byte{10, 9, 0, 1}} }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			st := s.ns.streams(t, nil)
			socket := func(family int) int {
				fd, err := s.sys.Socket(int(s.ns.file.Fd()), family)
				must(t, err)
				return s.own(fd)
			}
			l := socket(unix.AF_INET6)
			if err := s.sys.Bind(l, &unix.SockaddrInet6{Port: 4444}); err != nil {
				t.Skipf("no IPv6 here: %v", err)
			}
			must(t, s.sys.Listen(l, 5))
			a := socket(connect.family)
			if err := s.sys.Connect(a, connect.addr(4444)); err != nil {
				t.Skipf("no IPv6 here: %v", err)
			}
			b := s.own(mustAccept(t, l))
			s.write(a, "one ")
			s.arrives(b, 4)
			rec, err := s.capture(st)
			must(t, err)
			s.write(a, "lost")
			for gen := range uint64(2) {
				must(t, s.back(st, rec, gen))
				s.write(a, "two")
				s.expect(b, "one two")
				s.write(b, "three")
				s.expect(a, "three")
			}
			a2, b2, l2 := s.anew(st, rec, a, b, l)
			s.write(a2, "four")
			s.expect(b2, "one four")
			c := socket(connect.family)
			must(t, s.sys.Connect(c, connect.addr(4444)))
			s.write(c, "five")
			s.expect(s.own(mustAccept(t, l2)), "five")
		})
	}
}
