package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/nsinit"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/internal/progtest"
	"github.com/lampause/lampause/migrate"
)

const initWord = "serve-as-init"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == initWord {
		if err := nsinit.Serve(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// worker builds the program of these tests, that of lam proc; it does not wait
// to be let go at its end.
func worker(t testing.TB) string {
	t.Helper()
	return progtest.Build(t, filepath.Join("..", "internal", "cli", "proctool", "testdata", "worker.c"), "-DNO_GATE")
}

func namespace(t testing.TB) *nsinit.Namespace {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n, err := nsinit.Start(t.Context(), []string{exe, initWord}, os.Environ())
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("no user namespaces here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// output collects what a program writes, in a file.
func output(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func contents(t testing.TB, f *os.File) string {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// stdio gives external descriptors: nothing to read, one file to write.
type stdio struct{ null, out *os.File }

func (s stdio) Descriptor(_ context.Context, _ int, d *image.Description) (int, error) {
	if d.External == "stdin" {
		return int(s.null.Fd()), nil
	}
	return int(s.out.Fd()), nil
}

func newStdio(t testing.TB, out *os.File) stdio {
	t.Helper()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	return stdio{null, out}
}

// seedWithEnd starts a seed and returns what ends it.
func seedWithEnd(t testing.TB, n *nsinit.Namespace) (migrate.Seed, func()) {
	t.Helper()
	prog, err := migrate.SeedFile()
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs, err := migrate.SeedSocket()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ours.Close() })
	p, err := n.Spawn(t.Context(), nsinit.Spec{Path: migrate.SeedPath, Argv: []string{"lam-seed"}, Dir: "/"}, prog, theirs)
	if err = errors.Join(err, prog.Close(), theirs.Close()); err != nil {
		t.Fatal(err)
	}
	_ = p.Pidfd.Close()
	return migrate.Seed{PID: p.PID, Sock: ours}, func() { _ = unix.Kill(p.PID, unix.SIGKILL) }
}

// restore rebuilds image dir in a new namespace.
func restore(t *testing.T, dir string, out *os.File) (*nsinit.Namespace, *migrate.Restored) {
	t.Helper()
	n := namespace(t)
	r, err := tryRestore(t, n, nil, dir, out)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("restored %d bytes: %v %v", r.Bytes, r.Times, r.Notes)
	return n, r
}

func tryRestore(t testing.TB, n *nsinit.Namespace, hook kernel.Hook, dir string, out *os.File) (*migrate.Restored, error) {
	t.Helper()
	r, err := image.OpenAt(dir)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, end := seedWithEnd(t, n)
	defer end()
	return migrate.Restore(ctx, migrate.Config{
		Sys: kernel.New(hook), Log: zerolog.Nop(),
		Seeds: []migrate.Seed{s}, Sources: newStdio(t, out),
	}, r)
}

// run runs a program undisturbed and returns what it writes.
func run(t *testing.T, argv ...string) string {
	t.Helper()
	out := output(t)
	n := namespace(t)
	p := spawn(t, n, out, argv...)
	wantExit(t, n, p.Inner)
	return contents(t, out)
}

func spawn(t testing.TB, n *nsinit.Namespace, out *os.File, argv ...string) *nsinit.Program {
	t.Helper()
	s := newStdio(t, out)
	p, err := n.Spawn(t.Context(), nsinit.Spec{PID: 2000, Path: argv[0], Argv: argv, Env: os.Environ(), Dir: t.TempDir()}, s.null, out, out)
	if err != nil {
		t.Fatal(err)
	}
	_ = p.Pidfd.Close()
	return p
}

func wantExit(t *testing.T, n *nsinit.Namespace, inner int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	ws, err := n.Wait(ctx, inner)
	if err != nil || !ws.Exited() || ws.ExitStatus() != 0 {
		t.Fatalf("program ended with status %#x (%v)", uint32(ws), err)
	}
}

// until waits until out has the text.
func until(t testing.TB, out *os.File, text string) {
	t.Helper()
	for range 5000 {
		if strings.Contains(contents(t, out), text) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%q did not come; there is %q", text, contents(t, out))
}

// TestRestart kills a program at several steps, restarts it elsewhere, more
// than once, and wants the output of an undisturbed run.
func TestRestart(t *testing.T) {
	prog := worker(t)
	for _, threads := range []string{"0", "3"} {
		t.Run(threads+" threads", func(t *testing.T) {
			args := []string{prog, threads, "12", "8"}
			want := run(t, args...)
			out := output(t)
			n := namespace(t)
			p := spawn(t, n, out, args...)
			pid := p.PID
			for i, at := range []string{"step 1 ", "step 4 ", "step 8 "} {
				until(t, out, at)
				dir := filepath.Join(t.TempDir(), fmt.Sprint("image", i))
				capture(t.Context(), t, pid, dir)
				var r *migrate.Restored
				n, r = restore(t, dir, out)
				pid = r.PIDs()[2000]
				if err := r.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			wantExit(t, n, 2000)
			if got := contents(t, out); got != want {
				t.Errorf("output differs:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// captured runs the worker until the text comes and returns the image of it.
func captured(t testing.TB, out *os.File, at string, args ...string) string {
	t.Helper()
	n := namespace(t)
	p := spawn(t, n, out, args...)
	until(t, out, at)
	dir := filepath.Join(t.TempDir(), "image")
	capture(t.Context(), t, p.PID, dir)
	return dir
}

// wantNobody wants that init has no children, at the latest when it has reaped
// what was killed.
func wantNobody(t *testing.T, n *nsinit.Namespace, after string) {
	t.Helper()
	var kids []int
	for range 2000 {
		var err error
		if kids, err = proc.Children(n.PID()); err != nil {
			t.Fatal(err)
		}
		if len(kids) == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	for _, k := range kids {
		st, err := proc.ReadStatus(k)
		t.Errorf("after %s: process %d is left: %+v %v", after, k, st, err)
	}
	t.FailNow()
}

// TestFailEveryCall makes the n-th kernel or injected call of a restart fail,
// for n from 1 until there is no n-th: every failure is reported, leaves no
// process, and the next attempt in the same namespaces succeeds.
func TestFailEveryCall(t *testing.T) {
	args := []string{worker(t), "1", "12", "1"}
	want := run(t, args...)
	out := output(t)
	dir := captured(t, out, "step 2 ", args...)
	n := namespace(t)
	kinds := map[string]int{}
	stride := int64(1)
	if testing.Short() {
		stride = 13
	}
	for k := int64(1); ; k += stride {
		var calls atomic.Int64
		var hit atomic.Value
		r, err := tryRestore(t, n, func(op string, _ int) unix.Errno {
			if calls.Add(1) != k {
				return 0
			}
			hit.Store(op)
			return unix.EIO
		}, dir, out)
		op, failed := hit.Load().(string)
		switch {
		case err == nil && failed: // what can be done without, or was tried again
			if err := r.Kill(); err != nil {
				t.Fatalf("kill after %s: %v", op, err)
			}
		case err == nil:
			// Init has reported many ends of this pid: go on in another one.
			if err := r.Kill(); err != nil {
				t.Fatal(err)
			}
			n, r := restore(t, dir, out)
			if err := r.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantExit(t, n, 2000)
			if got := contents(t, out); got != want {
				t.Errorf("output differs:\n%s\nwant:\n%s", got, want)
			}
			t.Logf("%d calls: %v", k-1, kinds)
			return
		case !failed:
			t.Fatalf("undisturbed restart: %v", err)
		case !errors.Is(err, unix.EIO):
			t.Errorf("call %d, %s: %v", k, op, err)
		}
		kinds[op]++
		wantNobody(t, n, op)
		if k > 5000 {
			t.Fatal("no end")
		}
	}
}

// TestRefusals: an image that does not fit, or is not whole, starts nothing.
func TestRefusals(t *testing.T) {
	args := []string{worker(t), "0", "12", "1"}
	out := output(t)
	dir := captured(t, out, "step 2 ", args...)
	n := namespace(t)
	path := filepath.Join(dir, image.ProcessFile(2000, 1))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte(nil), good...)
	bad[len(bad)/2] ^= 1
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tryRestore(t, n, nil, dir, out); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("corrupt image: %v", err)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	prog, err := os.ReadFile(args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(args[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := tryRestore(t, n, nil, dir, out); !errors.Is(err, image.ErrMismatch) {
		t.Errorf("program gone: %v", err)
	}
	if err := os.WriteFile(args[0], append(prog, 0), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	if _, err := tryRestore(t, n, nil, dir, out); !errors.Is(err, image.ErrMismatch) {
		t.Errorf("program changed: %v", err)
	}
	if err := os.WriteFile(args[0], prog, 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	wantNobody(t, n, "refusals")
	r, err := tryRestore(t, n, nil, dir, out)
	if err != nil {
		t.Fatal(err)
	}
	// The pids are taken now: a second copy is refused, the first unharmed.
	if _, err := tryRestore(t, n, nil, dir, out); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second copy: %v", err)
	}
	if err := r.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantExit(t, n, 2000)
}
