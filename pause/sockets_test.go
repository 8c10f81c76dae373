package pause

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/internal/progtest"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
)

// socketOps are the kernel calls that only sockets need.
func socketOps() []string {
	return []string{
		"getsockopt", "setsockopt", "getsockname", "getpeername", "ioctl socket", "recv", "recv peek", "send", "recvmsg", "sendmsg",
		"sock_diag tcp", "sock_diag unix", "socket", "socketpair", "bind", "connect", "connect AF_UNSPEC", "listen", "accept", "shutdown",
		"getsockopt TCP_INFO", "poll",
	}
}

// opFault fails the n-th call of an operation, and counts all of them.
type opFault struct {
	mu    sync.Mutex
	calls map[string]int
	op    string
	n     int
	hit   bool
}

func (f *opFault) hook(op string, _ int) unix.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	if op == f.op && f.calls[op] == f.n {
		f.hit = true
		return unix.EIO
	}
	return 0
}

// arm makes the n-th call of op fail from now on, and returns the counts since
// the last time and whether that call was made.
func (f *opFault) arm(op string, n int) (map[string]int, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts, hit := f.calls, f.hit
	f.calls, f.op, f.n, f.hit = map[string]int{}, op, n, false
	return counts, hit
}

// picks returns the calls of an operation that are to fail, of count: all of
// them in a long test, else some with the first and the last.
func picks(count int) []int {
	var out []int
	step := 1
	if os.Getenv("LAM_TEST_LONG") == "" {
		step = max(1, count/3)
	}
	for n := 1; n <= count; n += step {
		out = append(out, n)
	}
	return slices.Compact(append(out, count))
}

// startFixture starts a program of the tests of `lam proc`, until it has done
// all that its steps do and waits.
func startFixture(t *testing.T, name string) (*program, string) {
	t.Helper()
	exe := progtest.Build(t, filepath.Join("..", "internal", "cli", "proctool", "testdata", name+".c"))
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe) //nolint:forbidigo // ended by the test itself
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
		_ = out.Close()
	})
	p := &program{t: t, cmd: cmd, out: bufio.NewReader(strings.NewReader(""))}
	for ctx := testCtx(t); ; {
		b, err := os.ReadFile(out.Name())
		if err != nil || ctx.Err() != nil {
			t.Fatalf("the program said %q (%v)", b, err)
		}
		if strings.Contains(string(b), "step 11 ok") {
			return p, dir
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// wantFine lets the program check what it has.
func wantFine(t *testing.T, p *program, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "gate"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		st, _ := proc.ReadStatus(p.pid())
		in, _ := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", p.pid()))
		t.Fatalf("the program does not end: %+v, in %s", st, in)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "out")); !strings.HasSuffix(string(b), "fine\n") {
		t.Fatalf("the program says %s (%v)", b, p.cmd.ProcessState)
	}
}

func socketPod(t *testing.T, f *opFault, p *program) (*Pod, *image.JobDir) {
	t.Helper()
	sys := kernel.New(f.hook)
	log := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel)
	pod := New(Config{Job: 1, Node: "n1", Incarnation: 1, Sys: sys, Streams: stream.NewTree(sys, log), Backing: BackingCopy, Log: log})
	pod.SetRanks([]Rank{{PID: p.pid()}}, nil)
	dir, err := image.OpenJob(t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = pod.Close(), dir.Close() })
	return pod, dir
}

// ownFDs counts our descriptors.
func ownFDs(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func socketFixtures() []string { return []string{"tcp", "udp", "unixnamed", "passfd"} }

// TestSocketCheckpointFaults makes calls on sockets fail during checkpoints: the
// program has every byte and message that it had before.
func TestSocketCheckpointFaults(t *testing.T) {
	for _, name := range socketFixtures() {
		t.Run(name, func(t *testing.T) {
			p, cwd := startFixture(t, name)
			f := &opFault{calls: map[string]int{}}
			pod, _ := socketPod(t, f, p)
			e := job.Epoch(0)
			round := func(op string, n int) (map[string]int, bool, error) {
				e++
				ctx := testCtx(t)
				f.arm(op, n)
				_, err := capture(ctx, pod, e)
				counts, hit := f.arm("", 0)
				if aerr := pod.Abandon(ctx, e); aerr != nil {
					t.Fatalf("call %d of %s: abandon: %v", n, op, aerr)
				}
				runsFree(t, p.pid(), op)
				return counts, hit, err
			}
			counts, _, err := round("", 0)
			if err != nil {
				t.Fatal(err)
			}
			failed, before := 0, ownFDs(t)
			for _, op := range socketOps() {
				for _, n := range picks(counts[op]) {
					_, hit, err := round(op, n)
					if !hit && err != nil {
						t.Fatalf("call %d of %s was not made, and yet: %v", n, op, err)
					}
					if err != nil {
						failed++
					}
				}
			}
			t.Logf("%d rounds, %d failed", e, failed)
			if after := ownFDs(t); after != before {
				t.Errorf("we have %d descriptors, had %d", after, before)
			}
			wantFine(t, p, cwd)
		})
	}
}

// TestSocketRollbackFaults makes calls on sockets fail during rollbacks: the
// program is reported lost and stands, and a second attempt brings it back.
func TestSocketRollbackFaults(t *testing.T) {
	for _, name := range socketFixtures() {
		t.Run(name, func(t *testing.T) {
			p, cwd := startFixture(t, name)
			f := &opFault{calls: map[string]int{}}
			pod, dir := socketPod(t, f, p)
			checkpoint(t, pod, dir, 1)
			gen := uint64(0)
			attempt := func(op string, n int) (map[string]int, bool) {
				ctx := testCtx(t)
				if _, err := pod.Stop(ctx); err != nil {
					t.Fatal(err)
				}
				gen++
				f.arm(op, n)
				r, err := pod.Rollback(ctx, 1, gen)
				counts, hit := f.arm("", 0)
				if err != nil {
					if !hit {
						t.Fatalf("call %d of %s was not made, and yet: %v", n, op, err)
					}
					wantLostSocket(t, p, op, r, err)
					gen++
					if _, err = pod.Rollback(ctx, 1, gen); err != nil {
						t.Fatalf("call %d of %s: second attempt: %v", n, op, err)
					}
				}
				if _, err := pod.Release(ctx); err != nil {
					t.Fatalf("call %d of %s: release: %v", n, op, err)
				}
				runsFree(t, p.pid(), op)
				return counts, hit
			}
			counts, _ := attempt("", 0)
			before := ownFDs(t)
			for _, op := range socketOps() {
				for _, n := range picks(counts[op]) {
					attempt(op, n)
				}
			}
			t.Logf("%d rollbacks", gen)
			if after := ownFDs(t); after != before {
				t.Errorf("we have %d descriptors, had %d", after, before)
			}
			wantFine(t, p, cwd)
		})
	}
}

func wantLostSocket(t *testing.T, p *program, op string, r *Report, err error) {
	t.Helper()
	if !errors.Is(err, unix.EIO) {
		t.Fatalf("%s: %v", op, err)
	}
	wantLost(t, p, 0, op, r, err)
}
