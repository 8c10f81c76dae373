package proctool

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/progtest"
)

// build compiles testdata/NAME.c.
func build(t *testing.T, name string) string {
	t.Helper()
	return progtest.Build(t, filepath.Join("testdata", name+".c"), "-lm", "-lrt")
}

// world is a directory with the files of one program's life.
type world struct {
	t   *testing.T
	dir string
	out string // collects stdout of all its lives

	// file gives the program the file itself, which is then part of its state;
	// otherwise it writes to a pipe.
	file bool
}

func newWorld(t *testing.T) *world {
	dir := t.TempDir()
	return &world{t: t, dir: dir, out: filepath.Join(dir, "out")}
}

// open lets the program end.
func (w *world) open() {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, "gate"), nil, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// life is a running `lam proc run` or `lam proc restart`.
type life struct {
	w    *world
	cmd  *exec.Cmd
	pid  int // of the program
	errs bytes.Buffer
}

// start runs a command of lam that has --pid-file, and waits for the pid.
// stdout is a pipe that is copied to the world's output.
func (w *world) start(args ...string) *life {
	w.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	pidFile := filepath.Join(w.dir, "pid")
	_ = os.Remove(pidFile)
	l := &life{w: w}
	sink, err := os.OpenFile(w.out, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = sink.Close() })
	full := append([]string{"proc", args[0], "--pid-file", pidFile}, args[1:]...)
	l.cmd = exec.Command(exe, full...) //nolint:forbidigo // ended by the test itself
	l.cmd.Stdout, l.cmd.Stderr, l.cmd.Dir = writer{sink}, &l.errs, w.dir
	if w.file {
		l.cmd.Stdout = sink
	}
	if err := l.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.cmd.Process.Kill(); _ = l.cmd.Wait() })
	for range 5000 {
		if b, err := os.ReadFile(pidFile); err == nil && bytes.HasSuffix(b, []byte("\n")) {
			l.pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
			return l
		}
		time.Sleep(time.Millisecond)
	}
	_ = l.cmd.Process.Kill()
	w.t.Fatalf("lam %v did not start: %v %s", args, l.cmd.Wait(), l.errs.String())
	return nil
}

// writer hides that a file is one, so that the program gets a pipe.
type writer struct{ f *os.File }

func (w writer) Write(b []byte) (int, error) { return w.f.Write(b) }

// end waits for the life's own end and returns the exit code.
func (l *life) end() int {
	l.w.t.Helper()
	done := make(chan error, 1)
	go func() { done <- l.cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		_ = l.cmd.Process.Kill()
		<-done
		l.w.t.Fatalf("the program did not end; it has written %q", l.w.text())
	}
	return l.cmd.ProcessState.ExitCode()
}

func (l *life) wantEnd(code int) {
	l.w.t.Helper()
	if got := l.end(); got != code {
		l.w.t.Fatalf("exit code %d, want %d: %s\n%s", got, code, l.errs.String(), l.w.text())
	}
}

func (w *world) text() string {
	b, _ := os.ReadFile(w.out)
	return string(b)
}

// until waits for text in the output.
func (w *world) until(text string) {
	w.t.Helper()
	for range 10000 {
		if strings.Contains(w.text(), text) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	w.t.Fatalf("%q did not come; there is %q", text, w.text())
}

// lam runs a command to its end and decodes what it prints.
func (w *world) lam(v any, args ...string) {
	w.t.Helper()
	out, code := w.tryLam(args...)
	if code != 0 {
		w.t.Fatalf("lam %v: exit code %d: %s", args, code, out)
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		w.t.Fatalf("lam %v: %v: %s", args, err, out)
	}
}

func (w *world) tryLam(args ...string) (string, int) {
	w.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe, append([]string{"proc", "-o", "json"}, args...)...)
	cmd.Dir = w.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		return string(b) + stderr.String(), cmd.ProcessState.ExitCode()
	}
	return string(b), 0
}

func pidArg(l *life) string { return strconv.Itoa(l.pid) }

// fixture is a self-checking program. Its output is a sequence of lines and
// does not depend on when it is disturbed; it says "step N" for N = 0, 1, ...
type fixture struct {
	name string
	args []string
	exit int

	files string // --files of its checkpoints and rollbacks
}

// policy are the flags for the files of f.
func (f fixture) policy() []string {
	if f.files == "" {
		return nil
	}
	return []string{"--files", f.files}
}

func fixtures() []fixture {
	return []fixture{
		{name: "worker", args: []string{"0", "12", "8", "/dev/null"}},
		{name: "worker", args: []string{"4", "12", "8", "log"}},
		{name: "tree", exit: 3},
		{name: "unixpair"},
		{name: "files"},
		{name: "maps"},
		{name: "signals"},
		{name: "timers"},
		{name: "threads"},
		{name: "vector"},
		{name: "shared"},
		{name: "tcp"},
		{name: "udp"},
		{name: "unixnamed"},
		{name: "passfd"},
		{name: "locks"},
		{name: "savefiles", files: "save"},
		{name: "sessions"},
		{name: "sysv"},
	}
}

func (f fixture) String() string { return f.name + " " + strings.Join(f.args, " ") }

// eachFixture runs test with every fixture and its undisturbed output.
func eachFixture(t *testing.T, test func(t *testing.T, w *world, f fixture, argv []string, want string)) {
	for _, f := range fixtures() {
		t.Run(f.String(), func(t *testing.T) {
			argv := append([]string{build(t, f.name)}, f.args...)
			plain := newWorld(t)
			plain.open()
			plain.start(append([]string{"run"}, argv...)...).wantEnd(f.exit)
			test(t, newWorld(t), f, argv, plain.text())
		})
	}
}

// TestCheckpointAndContinue: three checkpoints change nothing.
func TestCheckpointAndContinue(t *testing.T) {
	eachFixture(t, func(t *testing.T, w *world, f fixture, argv []string, want string) {
		l := w.start(append([]string{"run"}, argv...)...)
		for i, at := range []string{"step 1", "step 4", "step 8"} {
			w.until(at + " ")
			var c Checkpoint
			w.lam(&c, append([]string{"checkpoint", "--pid", pidArg(l), "--out", "ckpt"}, f.policy()...)...)
			if int(c.Epoch) != i+1 || c.Bytes == 0 || c.StallMS <= 0 {
				t.Errorf("%+v", c)
			}
		}
		w.open()
		l.wantEnd(f.exit)
		if got := w.text(); got != want {
			t.Errorf("output differs:\n%s\nwant:\n%s", got, want)
		}
	})
}

// TestKillAndRestart: the program dies with its checkpoint and is rebuilt,
// three times over, the restarted one being checkpointed again.
func TestKillAndRestart(t *testing.T) {
	eachFixture(t, func(t *testing.T, w *world, f fixture, argv []string, want string) {
		l := w.start(append([]string{"run"}, argv...)...)
		for _, at := range []string{"step 1", "step 4", "step 8"} {
			w.until(at + " ")
			var c Checkpoint
			w.lam(&c, append([]string{"checkpoint", "--kill", "--pid", pidArg(l), "--out", "ckpt"}, f.policy()...)...)
			l.wantEnd(128 + int(unix.SIGKILL))
			l = w.start("restart", "ckpt")
		}
		w.open()
		l.wantEnd(f.exit)
		if got := w.text(); got != want {
			t.Errorf("output differs:\n%s\nwant:\n%s", got, want)
		}
	})
}

// TestRollback: the program goes back to its checkpoint several times; what it
// writes is the same again from there.
func TestRollback(t *testing.T) {
	eachFixture(t, func(t *testing.T, w *world, f fixture, argv []string, want string) {
		w.file = true
		l := w.start(append([]string{"run"}, argv...)...)
		w.until("step 2 ")
		var c Checkpoint
		w.lam(&c, append([]string{"checkpoint", "--pid", pidArg(l), "--out", "ckpt"}, f.policy()...)...)
		for _, at := range []string{"step 4 ", "step 7 ", "step 5 "} {
			w.until(at)
			var r Rollback
			w.lam(&r, append([]string{"rollback", "--pid", pidArg(l), "ckpt@1"}, f.policy()...)...)
			if r.RestoredBytes == 0 {
				t.Errorf("%+v", r)
			}
		}
		w.open()
		l.wantEnd(f.exit)
		if got := w.text(); got != want {
			t.Errorf("output differs:\n%s\nwant:\n%s", got, want)
		}
	})
}

// TestInspectAndCheck looks at what the commands say.
func TestInspectAndCheck(t *testing.T) {
	w := newWorld(t)
	l := w.start("run", build(t, "worker"), "2", "400", "4")
	w.until("step 1 ")
	var o Obstacles
	w.lam(&o, "check", "--pid", pidArg(l))
	if !o.OK || len(o.Obstacles) != 0 {
		t.Errorf("%+v", o)
	}
	var c Checkpoint
	w.lam(&c, "checkpoint", "--pid", pidArg(l), "--out", "ckpt", "--compress", "s2")
	var v Inspection
	w.lam(&v, "inspect", "ckpt")
	if !v.Verified || len(v.Manifest.Processes) != 1 || len(v.Manifest.Processes[0].Threads) != 3 || v.Pages[firstPID].Data == 0 {
		t.Errorf("%+v", v)
	}
	path := filepath.Join(w.dir, "ckpt", "1", "pod0", image.ProcessFile(firstPID, 1))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"inspect", "ckpt"}, {"restart", "ckpt@1"}, {"rollback", "--pid", pidArg(l), "ckpt"}} {
		if out, code := w.tryLam(args...); code != 70 || !strings.Contains(out, "corrupt") {
			t.Errorf("%v of a corrupt image: exit code %d: %s", args, code, out)
		}
	}
	if err := unix.Kill(l.cmd.Process.Pid, unix.SIGTERM); err != nil { // forwarded
		t.Fatal(err)
	}
	l.wantEnd(128 + int(unix.SIGTERM))
}
