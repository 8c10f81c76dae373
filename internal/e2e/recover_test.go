package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lampause/lampause/job"
)

// program is the byte-sequence checker of every pair of ranks: its output
// depends on nothing but its arguments.
func program(steps int) []string {
	return []string{"pairs", "-n", strconv.Itoa(steps), "-k", "10", "-m", "300000", "-u", "20000"}
}

func mpirunArgs(flags []string, prog []string) []string {
	return append(append([]string{}, flags...), prog...)
}

// The main job: a node loses its power, the job goes on and ends with the
// output of an undisturbed run; then the repaired node is the spare of the
// next loss.
func TestJobPause(t *testing.T) {
	asUsers(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 1)
		want := c.mpirun(2*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1"}, program(300))...)
		r := c.start(3*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1", "--ckpt-interval", "500ms"}, program(300))...)
		const id = job.ID(2)
		epoch := job.Epoch(0)
		for loss := range 2 {
			epoch = c.awaitEpoch(id, epoch)
			node := c.nodeOf(id, loss%2)
			c.must("lam", "fail", string(node))
			c.await(time.Minute, fmt.Sprintf("recovery %d", loss+1), func() bool { return c.job(id).Recoveries == loss+1 })
			c.must("lam", "revive", string(node))
		}
		code, got := r.wait()
		if code != 0 || got != want {
			t.Errorf("exit code %d, output\n%s\nwant\n%s\nstderr\n%s", code, got, want, r.err.String())
		}
		if !strings.Contains(r.err.String(), "2 recoveries") {
			t.Errorf("stderr %q has no summary of 2 recoveries", r.err.String())
		}
	})
}

// Two ranks a node, both lost at once.
func TestJobPauseTwoRanksPerNode(t *testing.T) {
	asUsers(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 1)
		prog := []string{"pairs", "-n", "40", "-k", "10", "-m", "30000", "-u", "50000"}
		want := c.mpirun(3*time.Minute, mpirunArgs([]string{"-n", "4", "-ppn", "2"}, prog)...)
		r := c.start(4*time.Minute, mpirunArgs([]string{"-n", "4", "-ppn", "2", "--ckpt-interval", "500ms"}, prog)...)
		c.awaitEpoch(2, 0)
		c.must("lam", "fail", string(c.nodeOf(2, 1)))
		if code, got := r.wait(); code != 0 || got != want {
			t.Errorf("exit code %d, output\n%s\nwant\n%s\nstderr\n%s", code, got, want, r.err.String())
		}
	})
}

// A rank that is killed alone comes back; the daemon of a node may die without
// anybody noticing.
func TestKills(t *testing.T) {
	asUsers(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 1)
		want := c.mpirun(2*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1"}, program(200))...)
		r := c.start(3*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1", "--ckpt-interval", "500ms"}, program(200))...)
		c.awaitEpoch(2, 0)
		killOne(t, c.dir, "run", "lamd") // some node's daemon
		c.awaitEpoch(2, c.job(2).Epoch)
		if c.job(2).Recoveries != 0 {
			t.Error("the death of a daemon was taken for the loss of its node")
		}
		killOne(t, c.dir, "-n", "pairs")
		c.await(time.Minute, "a recovery", func() bool { return c.job(2).Recoveries == 1 })
		if code, got := r.wait(); code != 0 || got != want {
			t.Errorf("exit code %d, output\n%s\nwant\n%s\nstderr\n%s", code, got, want, r.err.String())
		}
	})
}

// killOne kills one process of the cluster in dir, whose command line has arg
// as its second word and whose program is called name.
func killOne(t *testing.T, dir, arg, name string) {
	t.Helper()
	for _, p := range leftovers(dir) {
		f := strings.Fields(p)
		if len(f) > 2 && strings.HasSuffix(f[1], name) && f[2] == arg {
			pid, err := strconv.Atoi(f[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no process %s %s", name, arg)
}

// Images outlive the cluster: a job is vacated, the cluster powered off, and a
// fresh one restarts it.
func TestVacateAndRestart(t *testing.T) {
	asUsers(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 0)
		want := c.mpirun(2*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1"}, program(200))...)
		r := c.start(2*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1", "--ckpt-interval", "500ms"}, program(200))...)
		c.awaitEpoch(2, 0)
		c.must("lam", "vacate", "2")
		code, first := r.wait()
		if code != 75 {
			t.Fatalf("vacated job: exit code %d, want 75\n%s", code, r.err.String())
		}
		c.must("lam", "halt")
		c.bootAgain(2, 0)
		c.mpirun(time.Minute, "-n", "2", "hello") // gets a number of its own
		c.must("lam", "restart", "2")
		attach := c.command(2*time.Minute, "lam", "attach", "2")
		out, err := attach.Output()
		if err != nil {
			t.Fatalf("attach: %v", err)
		}
		got := withoutComments(string(out))
		if !strings.HasSuffix(want, lastLine(got)+"\n") || lastLine(got) == "" {
			t.Errorf("restarted job printed\n%s\nafter\n%s\nwant the end of\n%s", got, first, want)
		}
	})
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// The spare dies while it restores: the next one takes over, from the same
// epoch.
func TestSpareLostDuringRecovery(t *testing.T) {
	asOneUser(t, func(t *testing.T, u user) {
		c := boot(t, u, 3, 2)
		want := c.mpirun(2*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1"}, program(150))...)
		r := c.start(3*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1", "--replicas", "3", "--ckpt-interval", "500ms"}, program(150))...)
		c.awaitEpoch(2, 0)
		c.must("lam", "fail", string(c.nodeOf(2, 1)))
		var spare job.NodeID
		c.await(time.Minute, "a recovery", func() bool {
			d := c.job(2)
			if d.State == job.Recovering || d.Recoveries > 0 {
				spare = d.Placement[1].Node
			}
			return spare != ""
		})
		c.must("lam", "fail", string(spare))
		code, got := r.wait()
		if code != 0 || got != want {
			t.Errorf("exit code %d, output\n%s\nwant\n%s\nstderr\n%s", code, got, want, r.err.String())
		}
	})
}

// Two nodes at once, within the promise of three replicas; then, with too few
// nodes left, a stop that can be restarted.
func TestTwoLossesAtOnce(t *testing.T) {
	asOneUser(t, func(t *testing.T, u user) {
		c := boot(t, u, 3, 2)
		want := c.mpirun(2*time.Minute, mpirunArgs([]string{"-n", "3", "-ppn", "1"}, program(100))...)
		flags := []string{"-n", "3", "-ppn", "1", "--replicas", "3", "--no-spare", "abort", "--ckpt-interval", "500ms"}
		r := c.start(3*time.Minute, mpirunArgs(flags, program(100))...)
		c.awaitEpoch(2, 0)
		first, second := string(c.nodeOf(2, 1)), string(c.nodeOf(2, 2))
		both := c.command(time.Minute, "lam", "fail", first)
		if err := both.Start(); err != nil {
			t.Fatal(err)
		}
		c.must("lam", "fail", second)
		if err := both.Wait(); err != nil {
			t.Fatal(err)
		}
		if code, got := r.wait(); code != 0 || got != want {
			t.Errorf("exit code %d, output\n%s\nwant\n%s\nstderr\n%s", code, got, want, r.err.String())
		}
		r = c.start(3*time.Minute, mpirunArgs(flags, program(400))...)
		c.awaitEpoch(3, 0)
		c.must("lam", "fail", string(c.nodeOf(3, 0)))
		if code, _ := r.wait(); code != 75 || !strings.Contains(r.err.String(), "lam restart 3") {
			t.Errorf("no spare left: exit code %d, stderr %q; want 75 and how to restart", code, r.err.String())
		}
	})
}
