package pod

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestShieldInTheKernel puts every state of the shield in force and ends
// connections with FIN and with RST: what is dropped must not arrive, all else
// must.
func TestShieldInTheKernel(t *testing.T) {
	inOneCluster(t, func(t *testing.T) {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
		var s shield
		for _, state := range []shieldState{{}, {rst: true}, {rst: true, fin: true}, {rst: true}, {}, {fin: true}, {}} {
			if err := s.set(state); err != nil {
				t.Fatal(err)
			}
			for _, reset := range []bool{false, true} {
				want := !state.fin
				if reset {
					want = !state.rst
				}
				if got := endArrives(t, reset); got != want {
					t.Errorf("%+v: an end arrives (by RST: %v): %v, want %v", state, reset, got, want)
				}
			}
		}
		if err := passAgain(shieldTable); err != nil { // not there
			t.Error(err)
		}
	})
}

// endArrives makes a connection, sends a word, ends it, and reports whether the
// other end hears of the end.
func endArrives(t *testing.T, reset bool) bool {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	near, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = far.Close() }()
	if _, err := near.Write([]byte("word")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(far, make([]byte, 4)); err != nil {
		t.Fatalf("data does not pass: %v", err)
	}
	if reset {
		if err := near.(*net.TCPConn).SetLinger(0); err != nil {
			t.Fatal(err)
		}
	}
	if err := near.Close(); err != nil {
		t.Fatal(err)
	}
	// What the close sent is in the queue when it returns: there is no wire.
	_ = far.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	switch _, err = far.Read(make([]byte, 1)); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false
	case errors.Is(err, io.EOF) && !reset, errors.Is(err, syscall.ECONNRESET) && reset:
		return true
	}
	t.Fatalf("the other end got %v", err)
	return false
}
