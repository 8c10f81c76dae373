package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lampause/lampause/job"
)

// The node of rank 0 dies while that rank reads the standard input: what it
// had read since the epoch is given to it again, and each line comes out once.
func TestInputSurvivesANodeLoss(t *testing.T) {
	asOneUser(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 1)
		// More than the pod takes ahead of its rank: some of it comes after the
		// checkpoint that the job goes back to, and mpirun gives it again.
		const lines = 1500
		long := strings.Repeat("x", 2000)
		var in, want strings.Builder
		for i := range lines {
			fmt.Fprintf(&in, "input %d %s\n", i, long)
			fmt.Fprintf(&want, "%d: input %d %s\n", i+1, i, long)
		}
		for i, mode := range []string{"live", "committed"} {
			id := job.ID(i + 1)
			r := &run{c: c, done: make(chan struct{})}
			r.cmd = c.command(2*time.Minute, "mpirun", "-n", "2", "-ppn", "1", "--ckpt-interval", "500ms", "--output", mode, "echo", "3000")
			r.cmd.Stdin = strings.NewReader(in.String())
			r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.err
			go func() {
				defer close(r.done)
				r.waited = r.cmd.Run()
			}()
			c.await(20*time.Second, "the job", func() bool { return c.job(id).State == job.Running })
			c.awaitEpoch(id, 0)
			node := c.nodeOf(id, 0)
			c.must("lam", "fail", string(node))
			code, out := r.wait()
			numbered, summary, _ := strings.Cut(out, "read ")
			if code != 0 || numbered+afterLine(summary) != want.String() || !strings.Contains(summary, "everywhere") {
				t.Errorf("%s: exit code %d, %d bytes of %d\n%s", mode, code, len(out), want.Len(), r.err.String())
			}
			if c.job(id).Recoveries != 1 {
				t.Errorf("%s: %d recoveries", mode, c.job(id).Recoveries)
			}
			c.must("lam", "revive", string(node))
		}
	})
}

// afterLine is what follows the first line of s.
func afterLine(s string) string {
	_, rest, _ := strings.Cut(s, "\n")
	return rest
}

// mpirun is killed; attach goes on with the very next byte, and a third reader
// gets everything from the start, also after the end.
func TestAttachGoesOnWhereOutputStopped(t *testing.T) {
	asUsers(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 1)
		var want []string
		for rank := range 2 {
			for i := range 300 {
				want = append(want, fmt.Sprintf("rank %d line %d", rank, i))
			}
			want = append(want, fmt.Sprintf("rank %d done after 300", rank))
		}
		printed := filepath.Join(t.TempDir(), "out")
		f, err := os.Create(printed)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		cmd := c.command(time.Minute, "mpirun", "-n", "2", "-ppn", "1", "lines", "300", "10000")
		cmd.Stdout = f
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c.await(30*time.Second, "some output", func() bool {
			now, err := os.ReadFile(printed)
			return err == nil && bytes.Count(now, []byte{'\n'}) > 50
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		attach := c.command(time.Minute, "lam", "attach", "1")
		attach.Stdout = f
		if err := attach.Run(); err != nil {
			t.Fatalf("attach: %v", err)
		}
		got, err := os.ReadFile(printed)
		if err != nil {
			t.Fatal(err)
		}
		all := c.must("lam", "attach", "1", "--from-start")
		for name, text := range map[string]string{"mpirun and attach": string(got), "attach --from-start": all} {
			if sortedLines(text) != sortedLines(strings.Join(want, "\n")) {
				t.Errorf("%s: %d lines, want %d", name, strings.Count(text, "\n"), len(want))
			}
			for rank := range 2 {
				if !inOrder(text, rank) {
					t.Errorf("%s: the lines of rank %d are not in order", name, rank)
				}
			}
		}
	})
}

// inOrder reports whether the numbered lines of a rank come in order.
func inOrder(text string, rank int) bool {
	var numbers []int
	for line := range strings.Lines(text) {
		var r, n int
		if k, err := fmt.Sscanf(line, "rank %d line %d", &r, &n); k == 2 && err == nil && r == rank {
			numbers = append(numbers, n)
		}
	}
	return slices.IsSorted(numbers)
}

// Ctrl-Z and fg at mpirun suspend and resume the job; Ctrl-C ends it.
func TestTerminalSignals(t *testing.T) {
	asUsers(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 1)
		r := c.start(time.Minute, "-n", "2", "-ppn", "1", "lines", "100000", "10000")
		c.await(30*time.Second, "the job", func() bool { return c.job(1).State == job.Running })
		send := func(s syscall.Signal) {
			t.Helper()
			if err := r.cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
		}
		send(syscall.SIGTSTP)
		c.await(30*time.Second, "suspension", func() bool { return c.job(1).State == job.Suspended })
		c.await(30*time.Second, "mpirun to stop", func() bool {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.cmd.Process.Pid))
			return err == nil && bytes.Contains(stat, []byte(") T "))
		})
		send(syscall.SIGCONT)
		c.await(30*time.Second, "resumption", func() bool { return c.job(1).State == job.Running })
		send(syscall.SIGINT)
		if code, _ := r.wait(); code != 128+int(syscall.SIGTERM) {
			t.Errorf("exit code %d\n%s", code, r.err.String())
		}
	})
}

// The demonstration, with a kernel small enough for tests.
func TestDemo(t *testing.T) {
	if os.Getenv("LAM_TEST_LONG") == "" {
		t.Skip("takes minutes on a busy machine: set LAM_TEST_LONG=1")
	}
	asUsers(t, func(t *testing.T, u user) {
		tmp, err := os.MkdirTemp("", "lam-e2e-d-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(tmp) })
		if err := os.Chmod(tmp, 0o777); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), filepath.Join(build().dir, "lam"), "demo", "--ranks", "2")
		cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "HOME="+tmp)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u.cred}
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("EQUAL in every digit")) {
			t.Errorf("%v\n%s", err, out)
		}
		if left, err := filepath.Glob(tmp + "/lamdemo*"); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}
