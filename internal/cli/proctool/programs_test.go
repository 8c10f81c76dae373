package proctool

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// foreign is a program that nobody here wrote.
type foreign struct {
	name  string
	needs string // program that must be installed
	shell string // what sh -c runs; it writes to stdout
}

const pythonText = `
import threading, hashlib
res = {}
def work(k):
    h = hashlib.sha256(str(k).encode())
    d = {}
    for i in range(250000):
        h.update(b'%d' % i)
        d[i % 977] = h.hexdigest()
    res[k] = h.hexdigest() + str(len(d))
ts = [threading.Thread(target=work, args=(k,)) for k in range(4)]
[t.start() for t in ts]
[t.join() for t in ts]
print(sorted(res.items()))
`

const pipelineText = `
for i in $(seq 1 150000); do echo "line $i $((i*7%1000))"; done |
  sort -k3n -k2n | awk '{s+=$3*NR%97; if (NR%50000==0) print NR, s} END{print s}'
`

const numpyText = `
import numpy as np
a = np.arange(90000, dtype=np.float64).reshape(300, 300) % 17 / 17
x = np.eye(300)
out = np.memmap("table", dtype=np.float64, mode="w+", shape=(40,))
for i in range(40):
    for _ in range(3):
        x = x @ a
        x /= np.abs(x).max()
    out[i] = x.trace()
print(repr(np.linalg.norm(x)), repr(out.sum()), len(np.linalg.svd(a)[1]))
`

const jobsText = `
set -m
spin() { local i s=0; for i in $(seq 1 40000); do s=$(( (s*31+i) % 1000003 )); done; echo "$1 $s"; }
spin one > one & a=$!
(spin two; spin three | cat) > two & b=$!
jobs | wc -l
wait $a; echo "status $?"
wait $b; echo "status $?"
spin four | sort > four &
fg > /dev/null
cat one two four
`

const makeText = `
all: sum
sum: a.o b.o c.o
	gcc -o $@ $^
%.o: %.c
	gcc -O2 -c -o $@ $<
%.c:
	(echo "#include <stdio.h>"; for i in $$(seq 1 60); do echo "int $*$$i(int x) { for (int k = 0; k < 9; k++) x = x * $$i + k; return x % 1009; }"; done; [ $* != a ] || echo 'int main(void) { int s = 0; for (int i = 0; i < 99; i++) s += a60(i); printf("%d\\n", s); return 0; }') > $@
`

func foreigners() []foreign {
	return []foreign{
		{"xz", "xz", "exec xz -T1 -6 -c ../noise"},
		{"xz with threads", "xz", "exec xz -T2 --block-size=2MiB -6 -c ../noise"},
		{"gzip in a pipe", "gzip", "cat ../noise | gzip -n -9 | gzip -d | md5sum"},
		{"bash pipeline", "bash", "exec bash ../pipeline"},
		{"python threads", "/usr/bin/python3", "exec /usr/bin/python3 ../program.py"},
		{"python numpy", "/usr/lib/python3/dist-packages/numpy/__init__.py", "OPENBLAS_NUM_THREADS=2 exec /usr/bin/python3 ../array.py"},
		{"bash with job control", "bash", "exec bash ../jobs"},
		{"make -j2", "make", "make -rs -j2 -f ../rules && ./sum"},
		{"bc", "bc", `echo "scale=2200; 4*a(1)" | bc -l`},
		{"perl", "perl", `exec perl -e 'my %h; for my $i (1..900000) { $h{$i % 5003} .= chr(65 + $i % 26); } print join(",", map { length $h{$_} } sort keys %h), "\n"'`},
	}
}

// TestForeignPrograms kills programs in mid-work, twice, and wants the output
// of an undisturbed run.
func TestForeignPrograms(t *testing.T) {
	for _, f := range foreigners() {
		t.Run(f.name, func(t *testing.T) {
			if _, err := exec.LookPath(f.needs); err != nil {
				if _, err := os.Stat(f.needs); err != nil {
					t.Skipf("%s is not installed", f.needs)
				}
			}
			w := newWorld(t)
			w.file = true
			w.write("noise", noise())
			w.write("program.py", []byte(pythonText))
			w.write("pipeline", []byte(pipelineText))
			w.write("array.py", []byte(numpyText))
			w.write("jobs", []byte(jobsText))
			w.write("rules", []byte(makeText))
			if err := os.Mkdir(filepath.Join(w.dir, "sub"), 0o700); err != nil {
				t.Fatal(err)
			}
			argv := []string{"sh", "-c", "cd sub && " + f.shell}
			begin := time.Now()
			want, err := w.plain(argv)
			if err != nil {
				t.Fatal(err)
			}
			w.clear("sub")
			third := time.Since(begin) / 3
			kills := w.killTwice(argv, third)
			if got := w.text(); got != want {
				t.Errorf("after %d kills the output has %d bytes, want %d: %.500q, want %.500q", kills, len(got), len(want), got, want)
			}
			t.Logf("%d kills, %d bytes of output", kills, len(want))
		})
	}
}

func (w *world) write(name string, b []byte) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), b, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// clear empties a directory.
func (w *world) clear(name string) {
	w.t.Helper()
	dir := filepath.Join(w.dir, name)
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		w.t.Fatal(err)
	}
}

// plain runs argv undisturbed.
func (w *world) plain(argv []string) (string, error) {
	cmd := exec.CommandContext(w.t.Context(), argv[0], argv[1:]...)
	cmd.Dir = w.dir
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	return out.String(), err
}

// noise is 2 MB of text that compresses a little.
func noise() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 2<<20)
	for i := range b {
		b[i] = 'a' + byte(r.Uint32()%17)
	}
	return b
}

// killTwice runs a program and, twice, kills it with its checkpoint after a
// pause and restarts it. It returns how often that came before its end.
func (w *world) killTwice(argv []string, pause time.Duration) (kills int) {
	w.t.Helper()
	l := w.start(append([]string{"run"}, argv...)...)
	for range 2 {
		time.Sleep(pause) // any moment will do
		out, code := w.tryLam("checkpoint", "--kill", "--pid", pidArg(l), "--out", "ckpt")
		if code != 0 {
			if !strings.Contains(out, "no such process") && !strings.Contains(out, "has ended") {
				w.t.Fatalf("checkpoint: exit code %d: %s", code, out)
			}
			break // it was faster
		}
		kills++
		l.wantEnd(128 + int(unix.SIGKILL))
		l = w.start("restart", "ckpt")
	}
	l.wantEnd(0)
	return kills
}
