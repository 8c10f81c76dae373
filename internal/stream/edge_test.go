package stream

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestRestoreTwiceAndBytesBothWays(t *testing.T) {
	s := newStage(t)
	st := s.ns.streams(t, nil)
	a, b := s.pair(s.listener())
	s.write(a, "hello ")
	s.write(b, "salute ")
	s.arrives(b, 6)
	s.arrives(a, 7)
	rec, err := s.capture(st)
	must(t, err)
	s.write(a, "lost future")
	s.expect(b, "hello lost")
	// A recovery that is never released, then one that is.
	ctx := testCtx(t)
	live, err := st.Scan(ctx, s.procs())
	must(t, err)
	r, err := st.Restore(ctx, rec, live, 1)
	must(t, err)
	rec = r.Record()
	must(t, r.Close())
	for gen := range uint64(3) {
		must(t, s.back(st, rec, 2+gen))
		s.write(a, "world")
		s.write(b, "all")
		s.expect(b, "hello world")
		s.expect(a, "salute all")
	}
	again, err := s.capture(st) // nothing of the recovery shows
	must(t, err)
	for i := range again.Ends {
		x, y := again.Ends[i].TCP, rec.Ends[i].TCP
		if d := cmp.Diff(y.Options, x.Options, ignoreBuffers()); d != "" {
			t.Errorf("options of %s: %s", x.Local, d)
		}
		if x.MSS != y.MSS || x.SndWScale != y.SndWScale || x.RcvWScale != y.RcvWScale || x.SACK != y.SACK || x.Timestamps != y.Timestamps || x.Congestion != y.Congestion {
			t.Errorf("handshake of %s: %+v, was %+v", x.Local, x, y)
		}
	}
}

// ignoreBuffers leaves out what the kernel tunes by itself.
func ignoreBuffers() cmp.Option {
	return cmp.FilterPath(func(p cmp.Path) bool {
		if i, ok := p.Last().(cmp.MapIndex); ok {
			switch i.Key().String() {
			case optSndBuf, optRcvBuf, "quickack", optRcvTimeo:
				return true
			}
		}
		return false
	}, cmp.Ignore())
}

// TestNewSockets restores a record none of whose sockets lives.
func TestNewSockets(t *testing.T) {
	s := newStage(t)
	st := s.ns.streams(t, nil)
	l := s.listener()
	a, b := s.pair(l)
	for fd, opts := range map[int][][3]int{
		a: {
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 33},
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 4321},
			{unix.SOL_SOCKET, unix.SO_SNDBUF, 100000},
			{unix.IPPROTO_IP, unix.IP_TOS, 8},
		},
		b: {{unix.SOL_SOCKET, unix.SO_RCVBUF, 90000}, {unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1}, {unix.SOL_SOCKET, unix.SO_REUSEADDR, 0}},
		l: {{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 3}},
	} {
		for _, o := range opts {
			must(t, unix.SetsockoptInt(fd, o[0], o[1], o[2]))
		}
	}
	must(t, unix.SetsockoptLinger(a, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 7}))
	must(t, unix.SetsockoptString(a, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"))
	must(t, unix.SetNonblock(a, true))
	s.write(a, strings.Repeat("x", 1000))
	s.arrives(b, 1000)
	rec, err := s.capture(st)
	must(t, err)
	a2, b2, l2 := s.anew(st, rec, a, b, l)
	s.write(a2, "y")
	s.expect(b2, strings.Repeat("x", 1000)+"y")
	s.write(b2, "z")
	s.expect(a2, "z")
	now, err := s.capture(st)
	must(t, err)
	for i, e := range rec.Ends {
		for _, n := range now.Ends {
			if n.TCP.Local != e.TCP.Local || n.TCP.Remote != e.TCP.Remote {
				continue
			}
			want := rec.Ends[i].TCP.Options
			if d := cmp.Diff(want, n.TCP.Options, ignoreBuffers()); d != "" {
				t.Errorf("options of %s-%s: %s", e.TCP.Local, e.TCP.Remote, d)
			}
			for bit, opt := range map[int]string{unix.SOCK_SNDBUF_LOCK: optSndBuf, unix.SOCK_RCVBUF_LOCK: optRcvBuf} {
				if want[optBufLock]&bit != 0 && want[opt] != n.TCP.Options[opt] {
					t.Errorf("%s of %s: %d, was %d", opt, e.TCP.Local, n.TCP.Options[opt], want[opt])
				}
			}
			if n.Flags != e.Flags || n.TCP.Backlog != e.TCP.Backlog || n.TCP.Congestion != e.TCP.Congestion {
				t.Errorf("%s: flags %x backlog %d %s, was %x %d %s", e.TCP.Local, n.Flags, n.TCP.Backlog, n.TCP.Congestion, e.Flags, e.TCP.Backlog, e.TCP.Congestion)
			}
		}
	}
	// The listener listens.
	s2 := *s
	c := s2.socket()
	must(t, s.sys.Connect(c, s.addr(s.port)))
	s.write(c, "new")
	s.expect(s.own(mustAccept(t, l2)), "new")
}

// anew closes sockets for good, as the loss of their process does, and returns
// new ones in their place, in the same order.
func (s *stage) anew(st *Streams, rec *Record, old ...int) (a, b, c int) {
	s.t.Helper()
	ctx := testCtx(s.t)
	var cookies []uint64
	for _, fd := range old {
		k, err := s.sys.SockCookie(fd)
		must(s.t, err)
		cookies = append(cookies, k)
		if domain, err := s.sys.SockInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && domain == 0 {
			must(s.t, silence(s.sys, fd))
		}
		null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(s.t, err)
		must(s.t, unix.Dup3(null, fd, unix.O_CLOEXEC)) // the number stays ours to close
		must(s.t, unix.Close(null))
	}
	r, err := st.Restore(ctx, rec, nil, 77)
	must(s.t, err)
	got := []int{-1, -1, -1}
	for i, k := range cookies {
		fd, ok := r.Socket(k)
		if !ok {
			s.t.Fatalf("no socket %d", k)
		}
		got[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		must(s.t, err)
		s.own(got[i])
	}
	must(s.t, r.Release(ctx))
	must(s.t, r.Close())
	return got[0], got[1], got[2]
}

func TestEndedStreams(t *testing.T) {
	for name, fresh := range map[string]bool{"in place": false, "new": true} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			st := s.ns.streams(t, nil)
			l := s.listener()
			again := func(fds ...int) (int, int) {
				t.Helper()
				rec, err := s.capture(st)
				must(t, err)
				if fresh {
					x, y, _ := s.anew(st, &Record{Ends: endsOf(t, s, rec, fds)}, fds...)
					fds = []int{x, y}
				} else {
					must(t, s.back(st, rec, 5))
				}
				if len(fds) == 1 {
					return fds[0], -1
				}
				return fds[0], fds[1]
			}

			// One side ended its stream; the other has not read it, goes on.
			a, b := s.pair(l)
			s.write(a, "bye")
			must(t, unix.Shutdown(a, unix.SHUT_WR))
			waitState(t, s, b, stateCloseWait)
			a, b = again(a, b)
			s.expect(b, "bye")
			s.expectEnd(b)
			s.write(b, "reply")
			s.expect(a, "reply")
			if _, err := unix.SendmsgN(a, []byte("x"), nil, nil, unix.MSG_NOSIGNAL); !errors.Is(err, unix.EPIPE) {
				t.Errorf("write after the end: %v", err)
			}
			s.close(a)
			s.close(b)

			// The other end was closed.
			a, b = s.pair(l)
			s.write(a, "last words")
			s.close(a)
			waitState(t, s, b, stateCloseWait)
			b, _ = again(b)
			s.expect(b, "last words")
			s.expectEnd(b)
			b, _ = again(b) // an end that came back is captured like any other
			s.expectEnd(b)
			s.close(b)

			// Both ended, and something is unread.
			a, b = s.pair(l)
			s.write(b, "unread")
			s.arrives(a, 6)
			must(t, unix.Shutdown(a, unix.SHUT_WR))
			must(t, unix.Shutdown(b, unix.SHUT_WR))
			waitState(t, s, a, stateClose)
			a, b = again(a, b)
			s.expect(a, "unread")
			s.expectEnd(a)
			s.expectEnd(b)
			if _, err := unix.SendmsgN(a, []byte("x"), nil, nil, unix.MSG_NOSIGNAL); !errors.Is(err, unix.EPIPE) {
				t.Errorf("write after both ends: %v", err)
			}
		})
	}
}

// endsOf picks the ends of some sockets.
func endsOf(t testing.TB, s *stage, rec *Record, fds []int) (ends []End) {
	for _, fd := range fds {
		k, err := s.sys.SockCookie(fd)
		must(t, err)
		for _, e := range rec.Ends {
			if e.TCP.Cookie == k {
				ends = append(ends, e)
			}
		}
	}
	return ends
}

func waitState(t testing.TB, s *stage, fd int, want uint8) {
	t.Helper()
	for limit := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		info, err := s.sys.TCPInfo(fd)
		must(t, err)
		if info.State == want {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("state %d, want %d", info.State, want)
		}
	}
}

// TestReset puts a connection back that the network has killed, one whose
// addresses are taken by remains of an old one, and drops a queue of
// connections that nobody accepted.
func TestReset(t *testing.T) {
	s := newStage(t)
	st := s.ns.streams(t, nil)
	l := s.listener()
	a, b := s.pair(l)
	s.write(a, "one ")
	s.arrives(b, 4)
	rec, err := s.capture(st)
	must(t, err)
	cookie, err := s.sys.SockCookie(b)
	must(t, err)

	// b is reset; a new connection waits to be accepted.
	must(t, unix.SetsockoptLinger(a, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	s.write(a, "never")
	must(t, s.sys.Disconnect(a)) // sends a reset
	waitState(t, s, b, stateClose)
	c := s.socket()
	must(t, s.sys.Connect(c, s.addr(s.port)))
	must(t, s.back(st, rec, 1))
	if _, ok, err := s.sys.Accept(l); ok || err != nil {
		t.Errorf("the accept queue is not empty: %v, %v", ok, err)
	}
	s.write(a, "two")
	s.expect(b, "one two")

	// b's process closed it, with bytes that cannot be delivered: an orphan
	// holds the addresses.
	s.write(a, strings.Repeat("unread", 10))
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(null)
	must(t, s.sys.TCPDropAll(a)) // it will not hear of the end
	s.write(b, "undeliverable")
	must(t, unix.Dup3(null, b, unix.O_CLOEXEC))
	ctx := testCtx(t)
	live, err := st.Scan(ctx, s.procs())
	must(t, err)
	r, err := st.Restore(ctx, rec, live, 2)
	must(t, err)
	items, err := r.Plan(os.Getpid(), slices.DeleteFunc(slices.Clone(rec.Slots), func(k Slot) bool {
		return k.FD != a && k.FD != b && k.FD != l // our own duplicates: we are the process that is looked at
	}))
	must(t, err)
	if len(items) != 1 || items[0].FD != b {
		t.Fatalf("to install: %+v, want descriptor %d", items, b)
	}
	if r.Record().Find(cookie) != nil {
		t.Error("the new record has the identity of the closed socket")
	}
	must(t, unix.Dup3(items[0].Socket, b, unix.O_CLOEXEC))
	must(t, r.Release(ctx))
	must(t, r.Close())
	s.write(a, "three")
	s.expect(b, "one three")
}

// urgent waits until an urgent byte is there.
func (s *stage) urgent(fd int) {
	s.t.Helper()
	ready, err := s.sys.Poll(fd, unix.POLLPRI, 5000)
	must(s.t, err)
	if ready&unix.POLLPRI == 0 {
		s.t.Fatal("no urgent byte")
	}
}

func TestObstacles(t *testing.T) {
	s := newStage(t)
	st := s.ns.streams(t, nil)
	l := s.listener()
	a, b := s.pair(l)
	expect := func(text string, retry bool) {
		t.Helper()
		_, err := s.capture(st)
		var r *Refusal
		if !errors.As(err, &r) || !strings.Contains(err.Error(), text) || r.Retry() != retry {
			t.Errorf("got %v, want a refusal with %q, retry %v", err, text, retry)
		}
	}
	must(t, unix.Sendto(a, []byte("!"), unix.MSG_OOB, nil))
	s.urgent(b)
	expect("urgent data", true)
	_, _, err := unix.Recvfrom(b, make([]byte, 1), unix.MSG_OOB)
	must(t, err)
	if _, err := s.capture(st); err != nil {
		t.Errorf("after the urgent byte was read: %v", err)
	}
	must(t, unix.SetsockoptInt(a, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0))
	expect("peek offset", false)
	must(t, unix.SetsockoptInt(a, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1))
	c := s.socket()
	must(t, s.sys.Connect(c, s.addr(s.port))) // nobody accepts
	expect("no process of the job", true)
	must(t, unix.Close(mustAccept(t, l)))
	s.close(c)

	s.ns.neighbour(t, "10.9.0.99", "02:00:00:00:00:99") // where nobody is
	d := s.socket()
	must(t, unix.SetNonblock(d, true))
	if err := unix.Connect(d, &unix.SockaddrInet4{Port: 1, Addr: [4]byte{10, 9, 0, 99}}); !errors.Is(err, unix.EINPROGRESS) {
		t.Fatalf("connect: %v", err)
	}
	expect("being set up", true)
	s.close(d)
	if err := unix.SetsockoptString(a, unix.IPPROTO_TCP, unix.TCP_ULP, "tls"); err == nil {
		expect("protocol layer tls", false)
	}
}

func mustAccept(t testing.TB, l int) int {
	t.Helper()
	fd, _, err := unix.Accept(l)
	must(t, err)
	return fd
}

// TestSmallBuffers restores more bytes than fit the buffers that the program
// asked for meanwhile.
func TestSmallBuffers(t *testing.T) {
	s := newStage(t)
	st := s.ns.streams(t, nil)
	l := s.listener()
	a, b := s.pair(l)
	must(t, unix.SetNonblock(a, true))
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	sent := 0
	for quiet := 0; quiet < 20 && sent < len(data); {
		n, _ := unix.SendmsgN(a, data[sent:], nil, nil, unix.MSG_NOSIGNAL)
		if n <= 0 {
			quiet++
			time.Sleep(time.Millisecond)
			continue
		}
		sent += n
	}
	for _, fd := range []int{a, b} { // smaller than what is in flight
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 40000))
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 80000))
	}
	rec, err := s.capture(st)
	must(t, err)
	a2, b2, _ := s.anew(st, rec, a, b, l)
	_ = a2
	if rec.Bytes() != int64(sent) {
		t.Fatalf("%d bytes captured of %d", rec.Bytes(), sent)
	}
	s.expect(b2, string(data[:sent]))
	t.Logf("%d bytes", sent)
}

func TestReleaseHasADeadline(t *testing.T) {
	s := newStage(t)
	st := s.ns.streams(t, nil)
	a, _ := s.pair(s.listener())
	rec, err := s.capture(st)
	must(t, err)
	live, err := st.Scan(testCtx(t), s.procs())
	must(t, err)
	r, err := st.Restore(testCtx(t), rec, live, 1)
	must(t, err)
	defer func() { must(t, r.Close()) }()
	for i := range rec.Ends { // more than the buffer was made for
		if c, _ := s.sys.SockCookie(a); rec.Ends[i].TCP.Cookie == c {
			rec.Ends[i].TCP.Send = make([]byte, 40<<20)
		}
	}
	ctx, cancel := context.WithTimeout(testCtx(t), 200*time.Millisecond)
	defer cancel()
	if err := r.Release(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("release: %v", err)
	}
}
