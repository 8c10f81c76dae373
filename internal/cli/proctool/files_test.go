package proctool

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOverwrittenIsReported: the policy "truncate" does not bring contents
// back, and says so; what was only appended is not named.
func TestOverwrittenIsReported(t *testing.T) {
	w := newWorld(t)
	w.file = true
	l := w.start("run", build(t, "held"))
	w.until("step 0 ")
	var c Checkpoint
	w.lam(&c, "checkpoint", "--pid", pidArg(l), "--out", "ckpt")
	w.write("go", nil)
	w.until("step 1 ")
	if out, code := w.tryLam("rollback", "--files", "verify", "--pid", pidArg(l), "ckpt"); code != 70 || !strings.Contains(out, "data changed since the epoch: it was overwritten") {
		t.Errorf("verify: exit code %d: %s", code, out)
	}
	if err := os.Remove(filepath.Join(w.dir, "go")); err != nil {
		t.Fatal(err)
	}
	var r Rollback
	w.lam(&r, "rollback", "--pid", pidArg(l), "ckpt")
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "/data: it was overwritten") {
		t.Errorf("notes %q", r.Notes)
	}
	if strings.Contains(w.text(), "step 1") {
		t.Errorf("%q", w.text())
	}
	w.write("go", nil)
	w.open()
	l.wantEnd(0)
}

// TestLockHeldByOthers: a lock that somebody else has now keeps a rollback and
// a restart from beginning, by name.
func TestLockHeldByOthers(t *testing.T) {
	w := newWorld(t)
	w.file = true
	l := w.start("run", build(t, "held"))
	w.until("step 0 ")
	var c Checkpoint
	w.lam(&c, "checkpoint", "--pid", pidArg(l), "--out", "ckpt", "--files", "save")
	w.write("go", nil)
	w.until("step 1 ")
	taken := w.take("data")
	if out, code := w.tryLam("rollback", "--files", "save", "--pid", pidArg(l), "ckpt"); code != 70 || !strings.Contains(out, "its lock of bytes 3 to 6 is held by") {
		t.Errorf("rollback: exit code %d: %s", code, out)
	}
	w.open()
	l.wantEnd(0) // untouched
	out, code := w.tryLam("restart", "ckpt")
	if code != 70 || !strings.Contains(out, "data: it is held by") {
		t.Errorf("restart: exit code %d: %s", code, out)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	w.start("restart", "ckpt").wantEnd(0)
	if got := w.text(); got != "step 0 ok\nstep 1 ok\nfine\n" {
		t.Errorf("%q", got)
	}
}

// take locks a file of the world.
func (w *world) take(name string) *os.File {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(w.dir, name), os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = f.Close() })
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 5, Len: 1}); err != nil {
		w.t.Fatal(err)
	}
	return f
}
