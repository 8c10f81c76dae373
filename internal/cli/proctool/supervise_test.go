package proctool

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDetach: a detached restart returns when the program runs, reports its
// pid, and leaves it alone; its errors are those of a restart.
func TestDetach(t *testing.T) {
	w := newWorld(t)
	w.file = true
	l := w.start("run", build(t, "worker"), "1", "12", "4", "/dev/null")
	w.until("step 1 ")
	var c Checkpoint
	w.lam(&c, "checkpoint", "--kill", "--pid", pidArg(l), "--out", "ckpt")
	l.wantEnd(128 + int(unix.SIGKILL))
	var r Restart
	w.lam(&r, "restart", "--detach", "--pid-file", "detached", "ckpt")
	b, err := os.ReadFile(filepath.Join(w.dir, "detached"))
	if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(r.PID) || r.Epoch != 1 {
		t.Errorf("%+v, pid file %q (%v)", r, b, err)
	}
	t.Cleanup(func() { _ = unix.Kill(r.PID, unix.SIGKILL) })
	w.until("step 11 ")
	w.open()
	for range 10000 {
		if unix.Kill(r.PID, 0) == unix.ESRCH {
			break
		}
		time.Sleep(time.Millisecond)
	}
	plain := newWorld(t)
	plain.open()
	plain.start("run", build(t, "worker"), "1", "12", "4", "/dev/null").wantEnd(0)
	if w.text() != plain.text() {
		t.Errorf("%q, want %q", w.text(), plain.text())
	}
	if out, code := w.tryLam("restart", "--detach", "nowhere"); code != 70 || !strings.Contains(out, "nowhere") {
		t.Errorf("no image: exit code %d: %s", code, out)
	}
	if out, code := w.tryLam("restart", "--detach", "--extra-file", "7=&1", "ckpt"); code != 64 || !strings.Contains(out, "name a path") {
		t.Errorf("descriptor of the caller: exit code %d: %s", code, out)
	}
}

// TestExtraFile: a descriptor whose other end is outside is an obstacle until
// it is declared; a restart must be told what replaces it.
func TestExtraFile(t *testing.T) {
	w := newWorld(t)
	fifo := filepath.Join(w.dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	l := w.start("run", "perl", "-e", `use POSIX; open(F, ">fifo"); dup2(fileno(F), 5); close F; open(T, ">&=5"); $| = 1;
		while (! -e "gate") { $i++; syswrite T, "tick $i\n"; print "step $i ok\n"; select(undef, undef, undef, 0.01) }`)
	w.until("step 3 ")
	if out, code := w.tryLam("checkpoint", "--pid", pidArg(l), "--out", "ckpt"); code != 70 || !strings.Contains(out, "other end of the pipe is in no captured process") {
		t.Fatalf("undeclared: exit code %d: %s", code, out)
	}
	if out, code := w.tryLam("checkpoint", "--pid", pidArg(l), "--out", "ckpt", "--extra-file", "99"); code != 64 || !strings.Contains(out, "no such descriptor") {
		t.Fatalf("of nothing: exit code %d: %s", code, out)
	}
	var c Checkpoint
	w.lam(&c, "checkpoint", "--pid", pidArg(l), "--out", "ckpt", "--extra-file", "5")
	var back Rollback
	w.lam(&back, "rollback", "--pid", pidArg(l), "--extra-file", "5", "ckpt")
	w.lam(&c, "checkpoint", "--kill", "--pid", pidArg(l), "--out", "ckpt", "--extra-file", "5")
	l.wantEnd(128 + int(unix.SIGKILL))
	if out, code := w.tryLam("restart", "ckpt"); code != 64 || !strings.Contains(out, "--extra-file 5=PATH") {
		t.Fatalf("not given: exit code %d: %s", code, out)
	}
	l = w.start("restart", "--extra-file", "5=instead", "ckpt")
	instead := filepath.Join(w.dir, "instead")
	for range 5000 {
		if b, err := os.ReadFile(instead); err == nil && strings.Contains(string(b), "tick ") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	w.open()
	l.wantEnd(0)
	if b, err := os.ReadFile(instead); err != nil || !strings.HasPrefix(string(b), "tick ") {
		t.Errorf("%q (%v)", b, err)
	}
}

// TestRunSupervises: exit codes, signals and missing programs.
func TestRunSupervises(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"run", "sh", "-c", "exit 7"}, 7, ""},
		{[]string{"run", "sh", "-c", "kill -SEGV $$"}, 128 + 11, ""},
		{[]string{"run", "no-such-program"}, 64, "no-such-program"},
		{[]string{"run", "/etc/passwd"}, 77, "permission denied"},
		{[]string{"run"}, 64, "missing CMD"},
		{[]string{"restart", "--files", "other", "x"}, 64, "not one of"},
		{[]string{"checkpoint", "--pid", "2000000000", "--out", "x"}, 64, "no such process"},
	} {
		if out, code := w.tryLam(c.args...); code != c.code || !strings.Contains(out, c.text) {
			t.Errorf("%v: exit code %d: %s", c.args, code, out)
		}
	}
	l := w.start("run", "sh", "-c", `trap 'echo got USR1' USR1; trap 'echo got TERM; exit 3' TERM; echo "step 1 "; while :; do sleep 0.01; done`)
	w.until("step 1 ")
	for _, sig := range []unix.Signal{unix.SIGUSR1, unix.SIGTERM} {
		if err := unix.Kill(l.cmd.Process.Pid, sig); err != nil {
			t.Fatal(err)
		}
		if sig == unix.SIGUSR1 {
			w.until("got USR1")
		}
	}
	l.wantEnd(3)
	if !strings.Contains(w.text(), "got TERM") {
		t.Errorf("%q", w.text())
	}
}
