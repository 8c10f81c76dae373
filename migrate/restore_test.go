package migrate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/nsinit"
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

// build compiles testdata/NAME.c.
func build(t *testing.T, name string) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is not installed: the program under test cannot be built")
	}
	out := filepath.Join(t.TempDir(), name)
	cmd := exec.CommandContext(t.Context(), gcc, "-O1", "-g", "-pthread", "-o", out, filepath.Join("testdata", name+".c"))
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, b)
	}
	return out
}

func namespace(t *testing.T) *nsinit.Namespace {
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
func output(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func contents(t *testing.T, f *os.File) string {
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

func newStdio(t *testing.T, out *os.File) stdio {
	t.Helper()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	return stdio{null, out}
}

// seed starts a seed in n.
func seed(t *testing.T, n *nsinit.Namespace) migrate.Seed {
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
	return migrate.Seed{PID: p.PID, Sock: ours}
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

func tryRestore(t *testing.T, n *nsinit.Namespace, hook kernel.Hook, dir string, out *os.File) (*migrate.Restored, error) {
	t.Helper()
	r, err := image.OpenAt(dir)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return migrate.Restore(ctx, migrate.Config{
		Sys: kernel.New(hook), Log: zerolog.New(zerolog.NewTestWriter(t)),
		Seeds: []migrate.Seed{seed(t, n)}, Sources: newStdio(t, out),
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

func spawn(t *testing.T, n *nsinit.Namespace, out *os.File, argv ...string) *nsinit.Program {
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
func until(t *testing.T, out *os.File, text string) {
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
	prog := build(t, "worker")
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

var _ = io.Discard
var _ = bytes.NewReader
