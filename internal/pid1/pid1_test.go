package pid1

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a connected pair as init and its starter have.
func pair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

func TestServeElsewhere(t *testing.T) {
	if err := Serve(t.Context(), 99, func() error { t.Error("completed"); return nil }); err == nil {
		t.Error("served outside of a pid namespace")
	}
}

// TestClient plays init by hand: news before and between answers, answers out
// of order, errors with their errno, the end with a call under way.
func TestClient(t *testing.T) {
	ours, theirs := pair(t)
	c := NewClient(ours)
	exits := make(chan int, 4)
	received := make(chan struct{})
	go func() {
		defer close(received)
		c.Receive(func(pid int, status unix.WaitStatus) { exits <- pid<<8 | status.ExitStatus() })
		c.Close()
	}()
	say := func(m message, fds ...int) {
		t.Helper()
		if err := send(theirs, m, fds...); err != nil {
			t.Fatal(err)
		}
	}
	say(message{PID: 7, Exit: true, Status: 3 << 8})
	say(message{Ready: true})
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-exits; got != 7<<8|3 {
		t.Errorf("exit %#x", got)
	}
	type outcome struct {
		p   Process
		err error
	}
	done := make(chan outcome, 2)
	for range 2 {
		go func() {
			p, err := c.Start(t.Context(), Spec{Path: "/bin/true", Dir: "/"}, os.Stdin)
			done <- outcome{p, err}
		}()
	}
	for i := range 2 {
		var r request
		fds, err := receive(theirs, &r)
		if err != nil || r.Op != opStart || len(fds) != 2 {
			t.Fatalf("%+v with %v (%v)", r, fds, err)
		}
		if s, err := readSpec(fds[0]); err != nil || s.Path != "/bin/true" {
			t.Errorf("%+v (%v)", s, err)
		}
		closeAll(fds)
		if i == 0 {
			say(message{ID: r.ID, Error: "execute: no such file or directory", Errno: int(unix.ENOENT)})
		} else {
			say(message{ID: 99}) // nobody's: dropped
			self, err := unix.PidfdOpen(os.Getpid(), 0)
			if err != nil {
				t.Fatal(err)
			}
			say(message{ID: r.ID, PID: 12}, self)
			closeAll([]int{self})
		}
	}
	for range 2 {
		o := <-done
		if o.err != nil {
			if !errors.Is(o.err, unix.ENOENT) || !strings.Contains(o.err.Error(), "execute") {
				t.Errorf("error %v", o.err)
			}
			continue
		}
		if o.p.Inner != 12 || o.p.Outer != os.Getpid() {
			t.Errorf("process %+v, this one is %d", o.p, os.Getpid())
		}
		if err := o.p.Pidfd.Close(); err != nil {
			t.Error(err)
		}
	}
	late := make(chan error, 1)
	go func() { late <- c.Signal(t.Context(), unix.SIGTERM) }()
	var r request
	if _, err := receive(theirs, &r); err != nil || r.Op != opSignal || r.Signal != int(unix.SIGTERM) {
		t.Fatalf("%+v (%v)", r, err)
	}
	closeAll([]int{theirs})
	if err := <-late; !errors.Is(err, ErrGone) {
		t.Errorf("a call under way when init ended: %v", err)
	}
	<-received
	if err := c.Signal(t.Context(), unix.SIGTERM); !errors.Is(err, ErrGone) {
		t.Errorf("a call after the end: %v", err)
	}
}

// TestNotReady: what stops init before it is ready reaches the starter, also
// when init just ends.
func TestNotReady(t *testing.T) {
	for _, why := range []string{"mount /proc: operation not permitted", ""} {
		ours, theirs := pair(t)
		c := NewClient(ours)
		received := make(chan struct{})
		go func() { defer close(received); c.Receive(nil); c.Close() }()
		if why != "" {
			if err := send(theirs, message{Error: why, Errno: int(unix.EPERM)}); err != nil {
				t.Fatal(err)
			}
		}
		closeAll([]int{theirs})
		err := c.Ready(t.Context())
		if why != "" && !errors.Is(err, unix.EPERM) || why == "" && !errors.Is(err, ErrGone) {
			t.Errorf("%q: %v", why, err)
		}
		<-received
	}
}

func TestMemoryFile(t *testing.T) {
	want := Spec{PID: 3, Path: "/x", Env: []string{"A=" + strings.Repeat("x", 1<<20)}}
	f, err := MemoryFile("spec", want)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var got Spec
	if err := ReadMemoryFile(f, &got); err != nil || got.Path != "/x" || len(got.Env[0]) != len(want.Env[0]) {
		t.Errorf("%v, path %s", err, got.Path)
	}
	if err := f.Truncate(maxFile + 1); err != nil {
		t.Fatal(err)
	}
	if err := ReadMemoryFile(f, &got); err == nil {
		t.Error("a file that is too large was read")
	}
}

// TestTooLong: a message that would not fit is refused here, not cut there.
func TestTooLong(t *testing.T) {
	a, b := pair(t)
	defer closeAll([]int{a, b})
	if err := send(a, message{Error: strings.Repeat("x", maxPacket)}); err == nil {
		t.Error("sent")
	}
	if err := unix.SetsockoptTimeval(b, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: int64(time.Millisecond / time.Microsecond)}); err != nil {
		t.Fatal(err)
	}
	if _, err := receive(b, &message{}); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("something arrived: %v", err)
	}
}
