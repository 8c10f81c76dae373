package proctool

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sqlText is 1200 transactions that overwrite one another's rows, with a
// journal each.
func sqlText() []byte {
	var b strings.Builder
	b.WriteString("PRAGMA synchronous=off;\nPRAGMA cache_size=20;\nCREATE TABLE t(a INTEGER PRIMARY KEY, b INTEGER, c TEXT);\n")
	for i := range 1200 {
		fmt.Fprintf(&b, "BEGIN; INSERT INTO t VALUES(%d,%d,hex(zeroblob(%d))); UPDATE t SET b=b+a*%d WHERE a%%7=%d; DELETE FROM t WHERE a=%d; COMMIT;\n",
			i, i*37%1009, 100+i%300, i%13, i%7, i-400)
		if i%300 == 299 {
			fmt.Fprintf(&b, "SELECT %d, count(*), sum(b), sum(length(c)) FROM t;\n", i)
		}
	}
	b.WriteString("PRAGMA integrity_check;\n")
	return []byte(b.String())
}

// TestSQLite kills sqlite3 in mid-work, restarts it, and takes it back to an
// older image several times: the database must be what an undisturbed run
// leaves.
func TestSQLite(t *testing.T) {
	if _, err := exec.LookPath("sqlite3"); err != nil {
		t.Skip("sqlite3 is not installed")
	}
	for _, mode := range []string{"delete", "wal"} {
		t.Run("sqlite3 "+mode, func(t *testing.T) { testSQLite(t, mode) })
	}
}

func testSQLite(t *testing.T, mode string) {
	w := newWorld(t)
	w.file = true
	w.write("script", append([]byte("PRAGMA journal_mode="+mode+";\n"), sqlText()...))
	argv := []string{"sh", "-c", "exec sqlite3 db <script"}
	begin := time.Now()
	want, err := w.plain(argv)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(want, "ok\n") {
		t.Fatalf("%q", want)
	}
	part := time.Since(begin) / 4
	for _, name := range []string{"db", "db-wal", "db-shm", "db-journal"} {
		_ = os.Remove(filepath.Join(w.dir, name))
	}
	l := w.start(append([]string{"run"}, argv...)...)
	undone, kills := 0, 0
	for k := range 3 {
		time.Sleep(part / 2) // any moment will do
		kind := "--continue"
		if k == 1 {
			kind = "--kill"
		}
		if out, code := w.tryLam("checkpoint", kind, "--files", "save", "--pid", pidArg(l), "--out", "ckpt"); code != 0 {
			if !strings.Contains(out, "no such process") && !strings.Contains(out, "has ended") {
				t.Fatalf("checkpoint: exit code %d: %s", code, out)
			}
			break // it was faster
		}
		if kind == "--kill" {
			kills++
			l.wantEnd(128 + int(unix.SIGKILL))
			l = w.start("restart", "ckpt")
			continue
		}
		time.Sleep(part / 2)
		if out, code := w.tryLam("rollback", "--files", "save", "--pid", pidArg(l), "ckpt"); code == 0 {
			undone++
		} else if !strings.Contains(out, "no such process") && !strings.Contains(out, "has ended") {
			t.Fatalf("rollback: exit code %d: %s", code, out)
		}
	}
	l.wantEnd(0)
	if got := w.text(); got != want {
		t.Errorf("after %d kills and %d rollbacks:\n%s\nwant:\n%s", kills, undone, got, want)
	}
	t.Logf("%d kills, %d rollbacks", kills, undone)
}
