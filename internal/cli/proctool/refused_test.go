package proctool

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOutside: a connection to a program outside of the tree is refused by
// name, and both go on; a listener whose clients are outside is not.
func TestOutside(t *testing.T) {
	if _, err := os.Stat("/usr/bin/python3"); err != nil {
		t.Skip("/usr/bin/python3 is not installed")
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := newWorld(t)
	w.file = true
	w.write("p.py", fmt.Appendf(nil, `
import socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", 0)); s.listen(5)
c = socket.create_connection(("127.0.0.1", %d))
c.sendall(b"%%d\n" %% s.getsockname()[1])
print("ready", flush=True)
c.recv(1); c.close()
print("closed", flush=True)
while True:
    a, _ = s.accept()
    a.sendall(a.recv(100)); a.close()
    print("served", flush=True)
`, l.Addr().(*net.TCPAddr).Port))
	p := w.start("run", "/usr/bin/python3", filepath.Join(w.dir, "p.py"))
	if err := l.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	ours, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var port int
	if _, err := fmt.Fscan(ours, &port); err != nil {
		t.Fatal(err)
	}
	w.until("ready")
	out, code := w.tryLam("checkpoint", "--pid", pidArg(p), "--out", "ckpt")
	if code == 0 || !strings.Contains(out, "outside of the process tree") || !strings.Contains(out, l.Addr().String()) {
		t.Errorf("exit code %d: %s", code, out)
	}
	if _, err := ours.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	w.until("closed")
	ask := func() {
		t.Helper()
		c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b := make([]byte, 5)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(b); err != nil || string(b[:n]) != "hello" {
			t.Fatalf("%q (%v)", b[:n], err)
		}
	}
	ask()
	var c Checkpoint
	w.lam(&c, "checkpoint", "--kill", "--pid", pidArg(p), "--out", "ckpt")
	p.wantEnd(128 + int(unix.SIGKILL))

	// The port is taken now: named, and nothing is left running.
	thief, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	out, code = w.tryLam("restart", "ckpt")
	if code == 0 || !strings.Contains(out, fmt.Sprintf("127.0.0.1:%d", port)) || !strings.Contains(out, "another program has") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if err := thief.Close(); err != nil {
		t.Fatal(err)
	}
	p = w.start("restart", "ckpt")
	ask()
	var r Rollback
	w.lam(&r, "rollback", "--pid", pidArg(p), "ckpt")
	ask()
	if err := unix.Kill(p.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.wantEnd(128 + int(unix.SIGKILL))
}
