package proctool

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminalPair is a pseudo-terminal whose output is collected.
type terminalPair struct {
	master, slave *os.File

	mu  sync.Mutex
	out bytes.Buffer
}

func newTerminal(t *testing.T) *terminalPair {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	p := &terminalPair{master: os.NewFile(uintptr(fd), "ptmx")}
	t.Cleanup(func() { _ = p.master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if p.slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.slave.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			k, err := p.master.Read(buf)
			if err != nil {
				return
			}
			p.mu.Lock()
			p.out.Write(buf[:k])
			p.mu.Unlock()
		}
	}()
	return p
}

func (p *terminalPair) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func (p *terminalPair) until(t *testing.T, text string) {
	t.Helper()
	for range 10000 {
		if strings.Contains(p.text(), text) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%q did not come; there is %q", text, p.text())
}

func (p *terminalPair) echoes(t *testing.T) bool {
	t.Helper()
	set, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return set.Lflag&unix.ECHO != 0
}

// start runs `lam proc` in a session of its own with p as terminal.
func (p *terminalPair) start(t *testing.T, w *world, args ...string) (*exec.Cmd, int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(w.dir, "pid")
	_ = os.Remove(pidFile)
	cmd := exec.CommandContext(t.Context(), exe, append([]string{"proc", args[0], "--pid-file", pidFile}, args[1:]...)...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = w.dir, p.slave, p.slave, p.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 5000 {
		if b, err := os.ReadFile(pidFile); err == nil && bytes.HasSuffix(b, []byte("\n")) {
			pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
			return cmd, pid
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("lam %v did not start: %q", args, p.text())
	return nil, 0
}

// TestTerminal: the terminal of a restart takes the place of the first one,
// set as that was, with the same group in the foreground; afterwards it is as
// it was before.
func TestTerminal(t *testing.T) {
	w := newWorld(t)
	first := newTerminal(t)
	cmd, pid := first.start(t, w, "run", "bash", "-c",
		`set -m; stty -echo; bash -c 'exec 7<>/dev/tty; echo "step 1 ok"; until read line <&7; do :; done; echo "got $line"; stty -a | grep -o " -echo "'; echo "fine"`)
	first.until(t, "step 1 ok")
	if first.echoes(t) {
		t.Error("the program did not set its terminal")
	}
	var c Checkpoint
	w.lam(&c, "checkpoint", "--kill", "--pid", strconv.Itoa(pid), "--out", "ckpt")
	_ = cmd.Wait()
	second := newTerminal(t)
	cmd, _ = second.start(t, w, "restart", "ckpt")
	for second.echoes(t) {
		time.Sleep(time.Millisecond)
	}
	if _, err := second.master.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	second.until(t, "fine")
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %q", err, second.text())
	}
	if got := strings.ReplaceAll(second.text(), "\r", ""); !strings.Contains(got, "got hello\n -echo \nfine\n") {
		t.Errorf("%q", got)
	}
	if !second.echoes(t) {
		t.Error("the terminal was left as the program had set it")
	}
	// A terminal that is somebody else's is refused by name.
	l := w.start("run", "perl", "-e", `use POSIX; open(F, "+<", $ARGV[0]); dup2(fileno(F), 9); print "step 2 ok\n"; $| = 1; print "\n"; sleep 60`, second.slave.Name())
	w.until("step 2 ok")
	if out, code := w.tryLam("checkpoint", "--pid", pidArg(l), "--out", "ckpt"); code != 70 || !strings.Contains(out, "a terminal that is not standard input, output or error") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if err := l.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.wantEnd(128 + int(unix.SIGTERM))
}
