package lamd

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// restarted returns the manager of the next daemon of a node.
func restarted(t *testing.T, m *pods) *pods {
	t.Helper()
	next := newPods(m.dir, m.starter, m.linker, testLog(t))
	t.Cleanup(func() {
		for _, p := range next.list() {
			next.forget(p)
		}
	})
	return next
}

// adoptAll claims and meets every pod; it returns those that are gone.
func adoptAll(t *testing.T, m *pods) []job.ID {
	t.Helper()
	found, err := m.claim(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	var gone []job.ID
	for _, c := range found {
		g, err := m.meet(testContext(t), c)
		if err != nil {
			t.Fatal(err)
		}
		if g {
			gone = append(gone, c.pod.job)
		}
	}
	return gone
}

func TestAdoptLivingPod(t *testing.T) {
	m, s := testPods(t)
	f := startOne(t, m, s, specOf(7, 4))
	next := restarted(t, m)
	told := 0
	next.onUp = func(*localPod) { told++ }
	if gone := adoptAll(t, next); len(gone) != 0 {
		t.Fatalf("gone: %v", gone)
	}
	p, ok := next.get(7)
	if !ok || p.spec.Incarnation != 4 || told != 1 {
		t.Fatalf("%+v, told %d times", p, told)
	}
	if err := next.start(testContext(t), specOf(7, 4)); err != nil || len(s.pods()) != 1 {
		t.Errorf("an adopted pod was started again: %v", err)
	}
	if err := next.kill(testContext(t), 7, everyPod); err != nil || f.alive() {
		t.Errorf("kill: %v, alive %v", err, f.alive())
	}
}

// Nobody may be told that there is no such pod before its supervisor was met.
func TestClaimedPodIsNeitherAbsentNorFenced(t *testing.T) {
	m, s := testPods(t)
	f := startOne(t, m, s, specOf(7, 1))
	next := restarted(t, m)
	found, err := next.claim(testContext(t))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	if len(next.list()) != 1 {
		t.Error("a roll call would not name it")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := next.kill(ctx, 7, everyPod); err == nil {
		t.Error("kill was answered")
	}
	if gone, err := next.meet(testContext(t), found[0]); gone || err != nil || !f.alive() {
		t.Fatalf("gone %v, %v", gone, err)
	}
}

func TestAdoptDeadPod(t *testing.T) {
	m, s := testPods(t)
	startOne(t, m, s, specOf(7, 1)).die()
	next := restarted(t, m)
	if gone := adoptAll(t, next); len(gone) != 1 || gone[0] != 7 {
		t.Fatalf("gone: %v", gone)
	}
	if _, err := os.Stat(next.podDir(7)); !errors.Is(err, fs.ErrNotExist) || len(next.list()) != 0 {
		t.Errorf("it was left: %v", err)
	}
}

// A supervisor of another version is ended before anybody hears that its pod
// is gone: its replacement may be released on that word.
func TestAdoptEndsPodOfAnotherProtocol(t *testing.T) {
	m, s := testPods(t)
	f := startOne(t, m, s, specOf(7, 1))
	f.mu.Lock()
	f.version++
	f.mu.Unlock()
	if gone := adoptAll(t, restarted(t, m)); len(gone) != 1 || f.alive() {
		t.Fatalf("gone %v, alive %v", gone, f.alive())
	}
}

func TestAdoptDirectoryWithoutSpecification(t *testing.T) {
	m, _ := testPods(t)
	for _, text := range []string{"", "{"} {
		dir := m.podDir(9)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, specFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if gone := adoptAll(t, m); len(gone) != 0 {
			t.Errorf("%q: gone: %v", text, gone)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: swept: %v", text, err)
		}
	}
}

func TestAdoptIgnoresWhatIsNoPod(t *testing.T) {
	m, _ := testPods(t)
	if err := os.MkdirAll(filepath.Join(m.dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	if gone := adoptAll(t, m); len(gone) != 0 {
		t.Errorf("gone: %v", gone)
	}
	m.dir = filepath.Join(m.dir, "none")
	if gone := adoptAll(t, m); len(gone) != 0 {
		t.Errorf("gone: %v", gone)
	}
}

// A daemon that is ended while it adopts has learnt nothing of the pod.
func TestAdoptInterrupted(t *testing.T) {
	m, s := testPods(t)
	f := startOne(t, m, s, specOf(7, 1))
	next := restarted(t, m)
	found, err := next.claim(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if gone, err := next.meet(ctx, found[0]); gone || err != nil {
		t.Fatalf("gone %v, %v", gone, err)
	}
	if _, err := os.Stat(next.podDir(7)); err != nil || !f.alive() {
		t.Errorf("the pod suffered: %v", err)
	}
}

// A supervisor that hangs is found by its socket, ended, and only then gone.
func TestAdoptEndsSupervisorThatHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the deadlines of a supervisor")
	}
	m, _ := testPods(t)
	if err := writePodDir(m.podDir(7), specOf(7, 1)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(testContext(t), os.Args[0])
	cmd.Env = append(os.Environ(), deafSocket+"="+filepath.Join(m.podDir(7), podapi.Socket))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = cmd.Wait() }()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "listening\n" {
		t.Fatalf("%q, %v", line, err)
	}
	it, ok := processOf(cmd.Process.Pid)
	if !ok {
		t.Fatal("no process")
	}
	if gone := adoptAll(t, m); len(gone) != 1 || it.alive() {
		t.Fatalf("gone %v, alive %v", gone, it.alive())
	}
}
