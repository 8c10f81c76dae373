package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sortedLines makes outputs comparable in which the lines of several ranks mix.
func sortedLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Programs over one, two and four nodes, one and two ranks each, give what they
// give under the MPI's own launcher. Ranks poll, so that more of them than cores
// take turns of milliseconds: such programs do a handful of steps.
func TestSameResultsAsHydra(t *testing.T) {
	kernels := [][]string{{"cg.S"}, {"is.S"}, {"mg.S"}, {"pairs", "-n", "20", "-m", "100000"}}
	alone := kernels[:2] // pairs and ring want a peer
	few := [][]string{{"pairs", "-n", "3", "-m", "3000", "-k", "1"}, {"ring", "10", "1"}}
	fewest := [][]string{{"pairs", "-n", "1", "-m", "500", "-k", "1"}, {"ring", "3", "1"}}
	asUsers(t, func(t *testing.T, u user) {
		c := boot(t, u, 4, 0)
		for _, shape := range []struct {
			nodes, ppn int
			programs   [][]string
		}{
			{1, 1, alone}, {1, 2, kernels}, {2, 1, kernels}, {2, 2, few}, {4, 1, few}, {4, 2, fewest},
		} {
			ranks := shape.nodes * shape.ppn
			for _, p := range shape.programs {
				args := append([]string{c.bins + "/" + p[0]}, p[1:]...)
				want := c.undisturbed(ranks, args...)
				got := c.mpirun(2*time.Minute, append([]string{"-n", fmt.Sprint(ranks), "-ppn", fmt.Sprint(shape.ppn)}, args...)...)
				if got != want {
					t.Errorf("%v on %d nodes with %d ranks each:\n%s\nwant\n%s", p, shape.nodes, shape.ppn, got, want)
				}
			}
		}
	})
}

func TestExitCodes(t *testing.T) {
	asUsers(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 0)
		for _, p := range []struct {
			args []string
			code int
			says string
		}{
			{[]string{"-n", "2", "-ppn", "1", "exitcode", "7"}, 7, "rank"},
			{[]string{"-n", "2", "-ppn", "1", "abort", "9"}, 9, "MPI_Abort"},
			{[]string{"-n", "2", "segv"}, 128 + int(syscall.SIGSEGV), "signal 11"},
			{[]string{"-n", "2", "nosuchprogram"}, 64, "not found"},
			{[]string{"-n", "2", "/etc/passwd"}, 77, "not executable"},
			{[]string{"-n", "2", "--ckpt-intervall", "1s", "hello"}, 64, "did you mean --ckpt-interval"},
			{[]string{"-n", "1000", "hello"}, 69, "slots"},
		} {
			r := c.start(time.Minute, p.args...)
			code, _ := r.wait()
			if code != p.code || !strings.Contains(r.err.String(), p.says) {
				t.Errorf("mpirun %v: exit code %d, want %d; stderr %q, want %q in it", p.args, code, p.code, r.err.String(), p.says)
			}
		}
	})
}

// Every line of every rank arrives once and whole, also a long stdin's.
func TestStdio(t *testing.T) {
	asUsers(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 0)
		var want []string
		for r := range 2 {
			for i := range 500 {
				want = append(want, fmt.Sprintf("rank %d line %d", r, i))
			}
			want = append(want, fmt.Sprintf("rank %d done after 500", r))
		}
		got := c.mpirun(time.Minute, "-n", "2", "-ppn", "1", "lines", "500", "0", "100")
		if sortedLines(got) != sortedLines(strings.Join(want, "\n")) {
			t.Errorf("lines lost, doubled or mixed: %d bytes", len(got))
		}
		var in strings.Builder
		for i := range 20000 {
			fmt.Fprintf(&in, "input line %d\n", i)
		}
		r := &run{c: c, done: make(chan struct{})}
		r.cmd = c.command(time.Minute, "mpirun", "-n", "2", "-ppn", "1", "echo")
		r.cmd.Stdin = strings.NewReader(in.String())
		r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.err
		r.waited = r.cmd.Run()
		close(r.done)
		if code, out := r.wait(); code != 0 || !strings.Contains(out, "input line 19999") {
			t.Errorf("echo: exit code %d, %d bytes\n%s", code, len(out), r.err.String())
		}
	})
}

// Without a checkpoint a lost node ends the job, with a message that names
// node and ranks.
func TestNodeLossWithoutCheckpoint(t *testing.T) {
	asUsers(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 1)
		r := c.start(time.Minute, "-n", "2", "-ppn", "1", "lines", "100000", "1000")
		c.await(20*time.Second, "job 1 runs", func() bool { return c.job(1).State == "RUNNING" })
		node := string(c.nodeOf(1, 1))
		c.must("lam", "fail", node)
		code, _ := r.wait()
		if says := r.err.String(); code != 69 || !strings.Contains(says, node) || !strings.Contains(says, "rank 1") {
			t.Errorf("exit code %d, stderr %q; want 69, naming %s and rank 1", code, says, node)
		}
	})
}
