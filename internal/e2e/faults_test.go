package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// Where each fault of a node, a daemon or a rank in the middle of a checkpoint
// or a recovery is tested:
//
//   - at every single step, all kinds, also two at a time: scheduler/conduct,
//     in virtual time
//   - with real ranks, ops that fail and pods that vanish: lamd/pod
//   - on real clusters: this package; random moments: TestSoak

// events returns what happened to a job.
func (c *cluster) events(id job.ID) []control.Event {
	c.t.Helper()
	var out []control.Event
	dec := json.NewDecoder(strings.NewReader(c.must("lam", "events", "--job", id.String(), "-o", "json")))
	for dec.More() {
		var e control.Event
		if err := dec.Decode(&e); err != nil {
			c.t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// find returns the events of that name.
func find(all []control.Event, name string) []control.Event {
	var out []control.Event
	for _, e := range all {
		if e.Event == name {
			out = append(out, e)
		}
	}
	return out
}

// spoil changes a byte in the manifest of an image wherever it is stored, and
// returns at how many nodes.
func (c *cluster) spoil(id job.ID, epoch job.Epoch, pod int) int {
	c.t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("%s/s/*/jobs/%d/%d/pod%d/manifest", c.dir, id, epoch, pod))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			c.t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		// Epochs may share files: this one gets a file of its own.
		if err := os.Remove(f); err != nil {
			c.t.Fatal(err)
		}
		if err := os.WriteFile(f, b, 0o600); err != nil {
			c.t.Fatal(err)
		}
		if err := os.Chown(f, c.u.uid, c.u.uid); err != nil && os.Getuid() == 0 {
			c.t.Fatal(err)
		}
	}
	return len(files)
}

// Every copy of an image of the newest epoch is damaged when its node is lost:
// the job goes on from the epoch before, all of it, and the user is told. With
// that one damaged as well it stops and names the rank.
func TestDamagedImages(t *testing.T) {
	asOneUser(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 2)
		flags := []string{"-n", "2", "-ppn", "1", "--ckpt-interval", "1h"}
		want := c.mpirun(2*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1"}, program(400))...)
		r := c.start(3*time.Minute, mpirunArgs(flags, program(400))...)
		c.await(30*time.Second, "the job", func() bool { return c.job(2).State == job.Running })
		two := func() []control.EpochInfo {
			c.must("lam", "checkpoint", "2")
			c.must("lam", "checkpoint", "2")
			var epochs []control.EpochInfo
			c.await(30*time.Second, "two epochs", func() bool {
				epochs = c.job(2).Epochs
				return len(epochs) == 2
			})
			return epochs
		}
		epochs := two()
		if n := c.spoil(2, epochs[1].Epoch, 1); n < 2 {
			t.Fatalf("image of pod 1 at epoch %d on %d nodes", epochs[1].Epoch, n)
		}
		c.must("lam", "fail", string(c.nodeOf(2, 1)))
		c.await(time.Minute, "a recovery", func() bool { return c.job(2).Recoveries == 1 })
		back := find(c.events(2), "recovery.fallback")
		if len(back) != 1 || back[0].Epoch != epochs[0].Epoch {
			t.Errorf("events of falling back: %+v; want epoch %d", back, epochs[0].Epoch)
		}
		if code, got := r.wait(); code != 0 || got != want {
			t.Errorf("exit code %d, output\n%s\nwant\n%s\nstderr\n%s", code, got, want, r.err.String())
		}
		if says := r.err.String(); !strings.Contains(says, fmt.Sprintf("no intact image of epoch %d", epochs[1].Epoch)) {
			t.Errorf("stderr %q does not tell that epoch %d was given up", says, epochs[1].Epoch)
		}
	})
}

// leader returns the node that leads the scheduler.
func (c *cluster) leader() string {
	c.t.Helper()
	var nodes []control.Node
	if err := json.Unmarshal([]byte(c.must("lam", "nodes", "-o", "json")), &nodes); err != nil {
		c.t.Fatal(err)
	}
	for _, n := range nodes {
		if n.Raft == "leader" {
			return string(n.Node)
		}
	}
	c.t.Fatal("nobody leads")
	return ""
}

// The leader of the scheduler loses its power, and so does the one after it;
// mpirun talked to one of them.
func TestLossOfLeaders(t *testing.T) {
	asOneUser(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 3) // five voters
		want := c.mpirun(2*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1"}, program(300))...)
		r := c.start(3*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1", "--replicas", "3", "--ckpt-interval", "500ms"}, program(300))...)
		epoch := c.awaitEpoch(2, 0)
		c.must("lam", "fail", c.leader())
		c.awaitEpoch(2, epoch)
		c.must("lam", "fail", c.leader())
		if code, got := r.wait(); code != 0 || got != want {
			t.Errorf("exit code %d, output\n%s\nwant\n%s\nstderr\n%s", code, got, want, r.err.String())
		}
	})
}

// A false alarm: a daemon hangs, its node is taken for dead and its ranks are
// rebuilt elsewhere, while the old ones are still there. They stand still when
// their lease has run out, before the new ones go on, and die when the daemon
// is back, as a new boot.
func TestFalseAlarm(t *testing.T) {
	asOneUser(t, func(t *testing.T, u user) {
		c := boot(t, u, 2, 1)
		want := c.mpirun(2*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1"}, program(400))...)
		r := c.start(3*time.Minute, mpirunArgs([]string{"-n", "2", "-ppn", "1", "--ckpt-interval", "500ms"}, program(400))...)
		c.awaitEpoch(2, 0)
		node := string(c.nodeOf(2, 1))
		if node == c.leader() {
			node = string(c.nodeOf(2, 0))
		}
		pid := c.daemon(node)
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		c.await(time.Minute, "a recovery", func() bool { return c.job(2).Recoveries == 1 })
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		c.await(time.Minute, node+" back as a new boot", func() bool {
			var nodes []control.Node
			if err := json.Unmarshal([]byte(c.must("lam", "nodes", "-o", "json")), &nodes); err != nil {
				t.Fatal(err)
			}
			for _, n := range nodes {
				if string(n.Node) == node {
					return n.State == "alive" && n.Boot > 1
				}
			}
			return false
		})
		if code, got := r.wait(); code != 0 || got != want {
			t.Errorf("exit code %d, output\n%s\nwant\n%s\nstderr\n%s", code, got, want, r.err.String())
		}
	})
}

// daemon returns the process of a node's lamd.
func (c *cluster) daemon(node string) int {
	c.t.Helper()
	for _, p := range leftovers(c.dir) {
		f := strings.Fields(p)
		if len(f) > 4 && f[2] == "run" && strings.Contains(p, "--node "+node+" ") {
			pid, err := strconv.Atoi(f[0])
			if err != nil {
				c.t.Fatal(err)
			}
			return pid
		}
	}
	c.t.Fatalf("no daemon of %s", node)
	return 0
}
