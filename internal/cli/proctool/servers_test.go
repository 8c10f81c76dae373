package proctool

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const redisText = `
# The server is the same program as redis-check-rdb, which comes without a service.
(exec -a redis-server redis-check-rdb --port PORT --save '' --appendonly no --dir . >redis.log 2>&1) &
until redis-cli -p PORT ping >/dev/null 2>&1; do sleep 0.02; done
echo ready
redis-benchmark -p PORT -c 20 -n 50000 -P 2 -r 1000 -t set,incr,lpush -q | grep -c 'requests per second'
redis-cli -p PORT llen mylist
redis-cli -p PORT eval 'local s=0 for _,k in ipairs(redis.call("keys","counter:*")) do s=s+redis.call("get",k) end return s' 0
redis-cli -p PORT shutdown nosave
wait
`

const socketserverText = `
import hashlib, os, socket, socketserver, sys, threading
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(hashlib.sha256(line).hexdigest().encode() + b"\n")
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
s = Server(("127.0.0.1", PORT), Handler)
threading.Thread(target=s.serve_forever, daemon=True).start()
def client(k):
    h = hashlib.sha256()
    for round in range(10):
        c = socket.create_connection(("127.0.0.1", PORT))
        f = c.makefile("rwb")
        for i in range(900):
            f.write(b"%d %d %d\n" % (k, round, i)); f.flush()
            h.update(f.readline())
        c.close()
    return h.hexdigest()
r, w = os.pipe()
print("ready", flush=True)
for k in range(3):
    if os.fork() == 0:
        os.write(w, b"%d %s\n" % (k, client(k).encode()))
        os._exit(0)
for k in range(3): os.wait()
print(b"".join(sorted(os.read(r, 4096).splitlines(True))).decode())
`

// servers are programs that nobody here wrote and that talk over TCP.
func servers() []foreign {
	return []foreign{
		{"redis under load", "redis-benchmark", "exec bash ./script"},
		{"python socketserver", "/usr/bin/python3", "exec /usr/bin/python3 ./script.py"},
		{"xz through nc", "nc", `(nc -l 127.0.0.1 PORT | md5sum) & sleep 0.2; echo ready; head -c 1200000 noise | xz -T1 -6 -c | nc -N 127.0.0.1 PORT; wait`},
	}
}

// prepare writes what f needs and returns what runs it.
func (f foreign) prepare(t *testing.T, w *world) []string {
	t.Helper()
	if _, err := exec.LookPath(f.needs); err != nil {
		t.Skipf("%s is not installed", f.needs)
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	port := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	w.file = true
	w.write("noise", noise())
	w.write("script", []byte(strings.ReplaceAll(redisText, "PORT", port)))
	w.write("script.py", []byte(strings.ReplaceAll(socketserverText, "PORT", port)))
	return []string{"sh", "-c", strings.ReplaceAll(f.shell, "PORT", port)}
}

// TestForeignServers kills programs with live connections, twice, and wants the
// output of an undisturbed run.
func TestForeignServers(t *testing.T) {
	for _, f := range servers() {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			argv := f.prepare(t, w)
			begin := time.Now()
			want, err := w.plain(argv)
			if err != nil {
				t.Fatal(err)
			}
			third := time.Since(begin) / 3
			kills := w.killTwice(argv, third)
			if got := w.text(); got != want {
				t.Errorf("after %d kills the output is %q, want %q", kills, got, want)
			}
			t.Logf("%d kills", kills)
		})
	}
}

// TestForeignServersRollback puts them back in place, under load.
func TestForeignServersRollback(t *testing.T) {
	for _, f := range servers() {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			argv := f.prepare(t, w)
			want, err := w.plain(argv)
			if err != nil {
				t.Fatal(err)
			}
			l := w.start(append([]string{"run"}, argv...)...)
			w.until("ready")
			time.Sleep(60 * time.Millisecond) // any moment will do
			var c Checkpoint
			w.lam(&c, "checkpoint", "--pid", pidArg(l), "--out", "ckpt")
			backs := 0
			for range 3 {
				time.Sleep(30 * time.Millisecond)
				out, code := w.tryLam("rollback", "--pid", pidArg(l), "ckpt")
				if code == 0 {
					backs++
					continue
				}
				// A process that has ended cannot go back.
				if backs == 0 || !strings.Contains(out, "not a rank") && !strings.Contains(out, "no such process") {
					t.Fatalf("rollback: exit code %d: %s", code, out)
				}
				break
			}
			l.wantEnd(0)
			t.Logf("%d rollbacks", backs)
			if got := w.text(); got != want {
				t.Errorf("the output is %q, want %q", got, want)
			}
		})
	}
}
