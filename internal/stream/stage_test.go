package stream

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// stage is a pod whose sockets are this process's own: quick to bring into
// rare states.
type stage struct {
	t    testing.TB
	ns   *netns
	sys  *kernel.Sys
	port int
	open map[int]bool // descriptors that we have to close
}

func newStage(t testing.TB) *stage {
	t.Helper()
	ns := newHub(t).pod(t, "10.9.0.1", "02:00:00:00:00:01")
	s := &stage{t: t, ns: ns, sys: kernel.New(nil), port: 5000, open: map[int]bool{}}
	t.Cleanup(func() {
		for fd := range s.open {
			_ = unix.Close(fd)
		}
	})
	return s
}

// own makes a descriptor ours to close.
func (s *stage) own(fd int) int {
	s.open[fd] = true
	return fd
}

func (s *stage) close(fd int) {
	s.t.Helper()
	delete(s.open, fd)
	must(s.t, unix.Close(fd))
}

func (s *stage) socket() int {
	s.t.Helper()
	fd, err := s.sys.Socket(int(s.ns.file.Fd()), unix.AF_INET)
	must(s.t, err)
	return s.own(fd)
}

func (s *stage) addr(port int) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: port, Addr: [4]byte{10, 9, 0, 1}}
}

func (s *stage) listener() int {
	s.t.Helper()
	fd := s.socket()
	s.port++
	must(s.t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	must(s.t, s.sys.Bind(fd, s.addr(s.port)))
	must(s.t, s.sys.Listen(fd, 9))
	return fd
}

// pair makes a connection; a connected, b was accepted from l.
func (s *stage) pair(l int) (a, b int) {
	s.t.Helper()
	a = s.socket()
	must(s.t, s.sys.Connect(a, s.addr(s.port)))
	b, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	must(s.t, err)
	return a, s.own(b)
}

func (s *stage) procs() []Process { return []Process{{PID: os.Getpid(), Rank: 0}} }

// capture takes a checkpoint of all sockets of this process.
func (s *stage) capture(st *Streams) (*Record, error) {
	ctx := testCtx(s.t)
	set, err := st.Scan(ctx, s.procs())
	if err != nil {
		return nil, err
	}
	defer func() { must(s.t, set.Close()) }()
	if err := set.Refusal(); err != nil {
		return nil, err
	}
	if err := set.CaptureSend(ctx); err != nil {
		return nil, err
	}
	if err := set.CaptureRecv(ctx); err != nil {
		return nil, err
	}
	rec, err := set.Record()
	if err != nil {
		return nil, err
	}
	peers, err := Pair(map[job.PodIndex][]podapi.Mark{0: set.Marks()})
	if err != nil {
		return nil, err
	}
	return rec, rec.Trim(peers[0])
}

// back restores rec in place and releases it.
func (s *stage) back(st *Streams, rec *Record, gen uint64) error {
	ctx := testCtx(s.t)
	live, err := st.Scan(ctx, s.procs())
	if err != nil {
		return err
	}
	r, err := st.Restore(ctx, rec, live, gen)
	if err != nil {
		return errors.Join(err, live.Close())
	}
	return errors.Join(r.Release(ctx), r.Close())
}

func (s *stage) write(fd int, text string) {
	s.t.Helper()
	n, err := unix.SendmsgN(fd, []byte(text), nil, nil, unix.MSG_NOSIGNAL)
	if err != nil || n != len(text) {
		s.t.Fatalf("write: %d, %v", n, err)
	}
}

// expect reads exactly text.
func (s *stage) expect(fd int, text string) {
	s.t.Helper()
	must(s.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	got := make([]byte, 0, len(text))
	for len(got) < len(text) {
		buf := make([]byte, len(text)-len(got))
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil || n == 0 {
			s.t.Fatalf("read %q then %d, %v; want %q", got, n, err, text)
		}
		got = append(got, buf[:n]...)
	}
	if string(got) != text {
		s.t.Fatalf("read %q, want %q", got, text)
	}
}

// expectEnd reads the end of the stream.
func (s *stage) expectEnd(fd int) {
	s.t.Helper()
	must(s.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	if n, _, err := unix.Recvfrom(fd, make([]byte, 10), 0); n != 0 || err != nil {
		s.t.Fatalf("read %d, %v; want the end", n, err)
	}
}

// arrives waits until n bytes wait to be read.
func (s *stage) arrives(fd, n int) {
	s.t.Helper()
	for limit := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		have, err := s.sys.SockIoctl(fd, unix.SIOCINQ)
		must(s.t, err)
		if have >= n {
			return
		}
		if time.Now().After(limit) {
			s.t.Fatalf("%d of %d bytes arrive", have, n)
		}
	}
}
