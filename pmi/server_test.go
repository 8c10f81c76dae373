package pmi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/lampause/lampause/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// meeting is a Fencer for a job of one pod; hold makes it wait.
type meeting struct {
	mu   sync.Mutex
	hold bool
	seen []int
}

func (m *meeting) Fence(_ context.Context, f Fence) (map[string]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = append(m.seen, f.Seq)
	if m.hold || f.Ask {
		return nil, errors.New("not yet")
	}
	return f.Puts, nil
}

func (m *meeting) set(hold bool) { m.mu.Lock(); defer m.mu.Unlock(); m.hold = hold }

type noProbe struct{}

func (noProbe) Unread(context.Context, []job.Rank) (bool, error) { return false, nil }

type events struct {
	mu    sync.Mutex
	abort []string
}

func (*events) Phase(job.Rank, Phase) {}
func (*events) Fence(int)             {}
func (*events) Final()                {}
func (e *events) Abort(r job.Rank, code int, _ string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.abort = append(e.abort, fmt.Sprint(r, code, err != nil))
}

// client speaks for one rank.
type client struct {
	t *testing.T
	f *os.File
	r *bufio.Reader
}

func serve(t *testing.T, local ...job.Rank) (*Server, *meeting, *events, func(job.Rank) client) {
	t.Helper()
	m, ev := &meeting{}, &events{}
	s, err := New(Config{KVSName: "kvs", Size: len(local), Local: local, Fencer: m, Prober: noProbe{}, Events: ev, Log: zerolog.New(zerolog.NewTestWriter(t))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s, m, ev, func(r job.Rank) client {
		f := s.RankEnd(r)
		return client{t, f, bufio.NewReader(f)}
	}
}

func (c client) send(text string) {
	c.t.Helper()
	if _, err := c.f.WriteString(text); err != nil {
		c.t.Fatal(err)
	}
}

func (c client) ask(line, want string) {
	c.t.Helper()
	c.send(line + "\n")
	c.want(want)
}

func (c client) want(want string) {
	c.t.Helper()
	got, err := c.r.ReadString('\n')
	if err != nil || strings.TrimSpace(got) != want {
		c.t.Fatalf("answer %q (%v), want %q", got, err, want)
	}
}

const (
	hello     = "cmd=init pmi_version=1 pmi_subversion=1"
	helloBack = "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0"
)

func TestServer(t *testing.T) {
	s, _, ev, dial := serve(t, 0, 1)
	a, b := dial(0), dial(1)
	a.ask(hello, helloBack)
	b.ask(hello, helloBack)
	a.send("cmd=put kvsname=kvs key=k val") // a line in two pieces
	a.send("ue=v\n")
	a.want("cmd=put_result rc=0 msg=success")
	a.send("cmd=barrier_in\n")
	b.ask("cmd=barrier_in", "cmd=barrier_out")
	a.want("cmd=barrier_out")
	b.ask("cmd=get kvsname=kvs key=k", "cmd=get_result rc=0 msg=success value=v")
	if got := s.Fences(); len(got) != 1 || got[0].Puts["k"] != "v" {
		t.Errorf("fences %+v", got)
	}
	b.ask("cmd=finalize", "cmd=finalize_ack")
	a.send("junk\n")
	waitFor(t, func() bool { ev.mu.Lock(); defer ev.mu.Unlock(); return len(ev.abort) == 1 })
	if s.Phases()[1] != Finalized {
		t.Errorf("phases %v", s.Phases())
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("it never happened")
		}
		time.Sleep(time.Millisecond)
	}
}

// A rollback puts bytes in both directions, puts and waiting ranks back.
func TestExportImport(t *testing.T) {
	s, m, _, dial := serve(t, 0, 1)
	m.set(true)
	a, b := dial(0), dial(1)
	a.ask(hello, helloBack)
	b.ask(hello, helloBack)
	a.ask("cmd=put kvsname=kvs key=k value=v", "cmd=put_result rc=0 msg=success")
	a.send("cmd=barrier_in\n")
	b.send("cmd=get_maxes\n") // answered, not read
	waitFor(t, func() bool { m.mu.Lock(); defer m.mu.Unlock(); return s.RankEnd(1) != nil && b.unread() })
	b.send("cmd=get_app") // half a line
	waitFor(t, func() bool { return s.holds(1, "cmd=get_app") })
	s.Pause()
	a.send("") // nothing
	blob, err := s.Export()
	if err != nil {
		t.Fatal(err)
	}
	s.Resume()
	// The future that does not count.
	b.want("cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024")
	b.send("num\n")
	b.want("cmd=appnum appnum=0")
	m.set(false)
	b.send("cmd=barrier_in\n")
	b.want("cmd=barrier_out")
	a.want("cmd=barrier_out")
	b.send("cmd=fina") // in flight at the rollback
	s.Pause()
	if err := s.Import(blob); err != nil {
		t.Fatal(err)
	}
	s.Resume()
	// The past again.
	b.want("cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024")
	b.send("num\n")
	b.want("cmd=appnum appnum=0")
	b.send("cmd=barrier_in\n")
	b.want("cmd=barrier_out")
	a.want("cmd=barrier_out")
	b.ask("cmd=get kvsname=kvs key=k", "cmd=get_result rc=0 msg=success value=v")
}

// unread reports whether an answer waits for the client.
func (c client) unread() bool {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n = peek(int(fd)) })
	return n > 0
}

// holds reports whether the server has taken half a line of a rank.
func (s *Server) holds(r job.Rank, half string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.conns[r].in) == half
}

func TestImportRefusesOthers(t *testing.T) {
	s, _, _, _ := serve(t, 0, 1)
	o, _, _, _ := serve(t, 0, 2)
	if _, err := s.Export(); err == nil {
		t.Error("export of a running server")
	}
	s.Pause()
	o.Pause()
	blob, err := o.Export()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{blob, nil, []byte("{}"), []byte(`{"version":9}`)} {
		if err := s.Import(b); err == nil {
			t.Errorf("import of %.60q", b)
		}
	}
}

// A rank that ended while the server was paused counts afterwards.
func TestGoneWhilePaused(t *testing.T) {
	s, _, _, dial := serve(t, 0, 1)
	a := dial(0)
	a.ask(hello, helloBack)
	a.send("cmd=barrier_in\n")
	s.Pause()
	s.Gone(1)
	s.Resume()
	a.want("cmd=barrier_out")
}
