package proc

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/progtest"
)

// build compiles testdata/NAME.c and returns the program's path.
func build(t testing.TB, name string) string {
	t.Helper()
	return progtest.Build(t, filepath.Join("testdata", name+".c"))
}

// program is a running C program.
type program struct {
	t   testing.TB
	cmd *exec.Cmd
	out *bufio.Reader
	in  io.WriteCloser
}

// start runs the program and waits for its line "ready".
func start(t testing.TB, path string, args ...string) *program {
	t.Helper()
	cmd := exec.Command(path, args...) //nolint:forbidigo // ended by the test itself
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, cmd: cmd, out: bufio.NewReader(stdout), in: stdin}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := p.out.ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("program said %q, %v", line, err)
	}
	return p
}

func (p *program) pid() int { return p.cmd.Process.Pid }

// finish sends SIGTERM and wants the word "fine" and exit status 0.
func (p *program) finish() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	rest, _ := io.ReadAll(p.out)
	err := p.cmd.Wait()
	if err != nil || !strings.HasSuffix(string(rest), "fine\n") {
		p.t.Fatalf("program ended with %v and said %q", err, rest)
	}
}

func testCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newTracer(t testing.TB, hook kernel.Hook) *Tracer {
	tr := NewTracer(kernel.New(hook))
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}

// cycle freezes, injects in every thread, reads memory, and thaws.
func cycle(ctx context.Context, tr *Tracer, pid int) (err error) {
	f, err := tr.Freeze(ctx, pid)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Thaw(ctx)) }()
	for _, th := range f.Threads {
		b := f.Batch(th)
		name := b.String("/dev/null")
		b.Call(unix.SYS_GETPID)
		open := b.Call(unix.SYS_OPENAT, uint64(unix.AT_FDCWD&(1<<64-1)), name, unix.O_RDONLY, 0)
		if err := b.Run(ctx); err != nil {
			return err
		}
		b.Call(unix.SYS_CLOSE, uint64(open.Ret))
		if err := b.Run(ctx); err != nil {
			return err
		}
		if _, err := f.XState(th); err != nil {
			return err
		}
		if _, err := f.Rseq(th); err != nil {
			return err
		}
		if _, err := f.Pending(th, true); err != nil {
			return err
		}
	}
	return nil
}

func TestFreezeInjectThaw(t *testing.T) {
	p := start(t, build(t, "count"))
	tr := newTracer(t, nil)
	before, err := Maps(p.pid())
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if err := cycle(testCtx(t), tr, p.pid()); err != nil {
			t.Fatal(err)
		}
	}
	after, err := Maps(p.pid())
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != len(after) {
		t.Errorf("%d mappings became %d", len(before), len(after))
	}
	p.finish()
}

// TestFailEveryCall makes the n-th kernel or injected call fail, for n from 1
// until a cycle has no n-th call, and wants the program unharmed.
func TestFailEveryCall(t *testing.T) {
	p := start(t, build(t, "count"))
	failed := map[string]bool{}
	for n := int64(1); ; n++ {
		var calls atomic.Int64
		var hit string
		tr := newTracer(t, func(op string, _ int) unix.Errno {
			if calls.Add(1) == n {
				hit = op
				return unix.EIO
			}
			return 0
		})
		err := cycle(testCtx(t), tr, p.pid())
		_ = tr.Close()
		if hit == "" {
			if err != nil {
				t.Fatalf("undisturbed cycle: %v", err)
			}
			t.Logf("%d calls of kinds %v", n-1, failed)
			break
		}
		failed[hit] = true
		st, serr := ReadStatus(p.pid())
		if serr != nil || st.TracerPid != 0 || strings.ContainsRune("tTZX", rune(st.State)) {
			t.Fatalf("call %d (%s): program in state %+v, %v", n, hit, st, serr)
		}
		if n > 5000 {
			t.Fatal("no end")
		}
	}
	p.finish()
}

// TestSignalsAtFreeze sends signals while freezing: none may be lost, and a
// stopped program stays stopped.
func TestStoppedProgramStaysStopped(t *testing.T) {
	p := start(t, build(t, "count"))
	if err := unix.Kill(p.pid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitState(t, p.pid(), 'T')
	tr := newTracer(t, nil)
	if err := cycle(testCtx(t), tr, p.pid()); err != nil {
		t.Fatal(err)
	}
	waitState(t, p.pid(), 'T')
	if err := unix.Kill(p.pid(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.finish()
}

func waitState(t *testing.T, pid int, want byte) {
	t.Helper()
	var st *Status
	for range 2000 {
		var err error
		if st, err = ReadStatus(pid); err != nil {
			t.Fatal(err)
		}
		if st.State == want {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("state is %c, want %c", st.State, want)
}

func TestCloneAndExec(t *testing.T) {
	p := start(t, build(t, "count"))
	tr := newTracer(t, nil)
	ctx := testCtx(t)
	f, err := tr.Freeze(ctx, p.pid())
	if err != nil {
		t.Fatal(err)
	}
	child, err := f.CloneProcess(ctx, CloneArgs{Flags: unix.CLONE_PARENT})
	if err != nil {
		t.Fatal(err)
	}
	exe, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("sleep is not installed")
	}
	if err := child.Exec(ctx, exe, []string{"sleep", "1000"}, []string{"A=b"}); err != nil {
		t.Fatal(err)
	}
	b := child.Batch(child.Leader())
	pid := b.Call(unix.SYS_GETPID)
	if err := b.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if int(pid.Ret) != child.PID {
		t.Errorf("pid %d, want %d", pid.Ret, child.PID)
	}
	th, err := f.CloneThread(ctx, CloneArgs{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.ExitThread(ctx, th); err != nil {
		t.Fatal(err)
	}
	if err := child.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := f.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	p.finish()
}

func TestFreezeGone(t *testing.T) {
	tr := newTracer(t, nil)
	if _, err := tr.Freeze(testCtx(t), 1<<22-3); !errors.Is(err, kernel.ErrGone) {
		t.Errorf("got %v, want ErrGone", err)
	}
}
