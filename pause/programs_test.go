package pause

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/job"
)

// TestPrograms rolls programs back that nobody here wrote. Each is a shell
// command that writes its result to the file "out" of its directory.
func TestPrograms(t *testing.T) {
	var in bytes.Buffer
	for i := 0; in.Len() < 24<<20; i++ {
		fmt.Fprintf(&in, "line %d of the input %x\n", i, sha256.Sum256([]byte{byte(i), byte(i >> 8), byte(i >> 16)}))
	}
	for _, c := range []struct{ name, needs, script string }{
		{"xz", "xz", `exec xz -0 -T1 -c in > out`},
		{"xz-threads", "xz", `exec xz -1 -T2 -c in > out`},
		// xz sets the pace: a process that ends before the rollback cannot go
		// back in place, so all of them must live on any machine.
		{"pipeline", "xz", `cat in in in | xz -0 -T1 -c | xz -dc | tr a-m n-z | LC_ALL=C sort -S 32M -T . | sha256sum > out`},
		{"python", "/usr/bin/python3", `exec /usr/bin/python3 -c '
import hashlib, threading
h = [hashlib.sha256() for _ in range(3)]
data = open("in", "rb").read()
def work(k):
    for i in range(0, len(data), 65536):
        h[k].update(data[i:i+65536] * 12)
t = [threading.Thread(target=work, args=(k,)) for k in range(3)]
[x.start() for x in t]; [x.join() for x in t]
d = {i: str(i) * 10 for i in range(1500000)}
open("out", "w").write(" ".join(x.hexdigest() for x in h) + str(sum(len(v) for v in d.values())))
'`},
		{"perl", "perl", `exec perl -e 'for($i=0;$i<25000000;$i++){$s=($s*31+$i)%4294967291} open O,">out"; print O "$s\n"'`},
		{"sqlite", "sqlite3", `exec sqlite3 :memory: "create table t(a,b); with recursive c(x) as (select 1 union all select x+1 from c where x<1500000) insert into t select x, x*x%1009 from c; create index i on t(b); select sum(a),count(distinct b) from t;" > out`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := exec.LookPath(c.needs); err != nil {
				t.Skipf("%s is not installed", c.needs)
			}
			want, whole := runScript(t, in.Bytes(), c.script, nil)
			n := uint64(0)
			got, _ := runScript(t, in.Bytes(), c.script, func(pid int) {
				// Nothing ends before its last rollback, on a fast machine either.
				pause := func(most time.Duration) { time.Sleep(min(most, whole/12)) }
				pause(250 * time.Millisecond)
				log := zerolog.New(zerolog.NewTestWriter(t))
				pod := New(Config{Job: 1, Node: "n1", Log: log})
				defer func() { _ = pod.Close() }()
				pod.SetRanks([]Rank{{PID: pid}}, nil)
				dir, err := image.OpenJob(t.TempDir(), 1)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = dir.Close() }()
				for e := job.Epoch(1); e <= 2; e++ {
					pause(60 * time.Millisecond)
					checkpoint(t, pod, dir, e)
					pause(80 * time.Millisecond)
					n++
					r := rollback(t, pod, e, n)
					t.Logf("%d MB: %v", r.Bytes>>20, r.TimesMS)
				}
			})
			if got != want {
				t.Fatalf("result %s, want %s", got, want)
			}
		})
	}
}

// runScript runs a command in a directory with a file "in" and returns a hash
// of "out", and how long the command ran.
func runScript(t *testing.T, in []byte, script string, disturb func(pid int)) (hash string, took time.Duration) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in"), in, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
	cmd.Dir = dir
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
	if disturb != nil {
		disturb(cmd.Process.Pid)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	took = time.Since(begin)
	b, err := os.ReadFile(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x (%d bytes)", sha256.Sum256(b), len(b)), took
}
