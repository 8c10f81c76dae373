package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lampause/lampause/job"
)

// soakCase is a shape of job and cluster that loses nodes again and again. The
// repaired node is the next spare.
type soakCase struct {
	name          string
	nodes, spares int
	ranks, ppn    int
	spareToo      bool // spares lose their power as well
	kills         bool // single processes are killed instead: daemons, supervisors, pod-inits, ranks
	prog          []string
	lines         bool // the lines of several ranks mix: their order says nothing
}

func soakCases() []soakCase {
	return []soakCase{
		{
			name: "pair", nodes: 2, spares: 1, ranks: 2, ppn: 1,
			prog: []string{"pairs", "-n", "400", "-k", "10", "-m", "500000", "-u", "20000"},
		},
		{
			name: "double", nodes: 2, spares: 1, ranks: 4, ppn: 2,
			prog: []string{"pairs", "-n", "100", "-k", "10", "-m", "100000", "-u", "80000"},
		},
		{
			name: "single", nodes: 1, spares: 2, ranks: 2, ppn: 2,
			prog: []string{"pairs", "-n", "300", "-k", "10", "-m", "300000", "-u", "20000"},
		},
		{
			name: "spares", nodes: 2, spares: 2, ranks: 2, ppn: 1, spareToo: true,
			prog: []string{"pairs", "-n", "400", "-k", "10", "-m", "300000", "-u", "20000"},
		},
		{
			name: "kills", nodes: 2, spares: 1, ranks: 4, ppn: 2, kills: true,
			prog: []string{"pairs", "-n", "100", "-k", "10", "-m", "100000", "-u", "80000"},
		},
		{
			name: "chatty", nodes: 2, spares: 1, ranks: 4, ppn: 2, lines: true,
			prog: []string{"lines", "4000", "2000", "100"},
		},
	}
}

// Losses at random moments, again and again. Every line of output exactly
// once. LAM_SOAK_LOSSES is shared by the cases; `-run TestSoak/root/double`
// takes one.
func TestSoak(t *testing.T) {
	if os.Getenv("LAM_TEST_LONG") == "" {
		t.Skip("soak of many node losses takes an hour: set LAM_TEST_LONG=1")
	}
	losses := 200
	if n, err := strconv.Atoi(os.Getenv("LAM_SOAK_LOSSES")); err == nil {
		losses = n
	}
	cases := soakCases()
	asUsers(t, func(t *testing.T, u user) {
		for _, sc := range cases {
			t.Run(sc.name, func(t *testing.T) { soak(t, u, sc, (losses+len(cases)-1)/len(cases)) })
		}
	})
}

// soak runs jobs of one shape until so many nodes were lost.
func soak(t *testing.T, u user, sc soakCase, losses int) {
	c := boot(t, u, sc.nodes, sc.spares)
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("LAM_SOAK_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	flags := []string{"-n", fmt.Sprint(sc.ranks), "-ppn", fmt.Sprint(sc.ppn)}
	order := func(s string) string { return s }
	if sc.lines {
		order = sortedLines
	}
	want := order(c.mpirun(3*time.Minute, mpirunArgs(flags, sc.prog)...))
	flags = append(flags, "--ckpt-interval", "1s", "--output", "committed")
	for id, done := job.ID(2), 0; done < losses; id++ {
		r := c.start(6*time.Minute, mpirunArgs(flags, sc.prog)...)
		if n := min(3, losses-done); sc.kills {
			done += c.killAtRandom(rng, id, n)
		} else {
			done += c.loseAtRandom(rng, sc, id, n)
		}
		if code, out := r.wait(); code != 0 || order(out) != want {
			t.Fatalf("job %d after %d losses: exit code %d, %s\nstderr\n%s", id, done, code, difference(order(out), want), r.err.String())
		}
		t.Logf("%d losses", done)
	}
}

// difference says where two outputs part.
func difference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("%d lines, want %d; line %d is %q, want %q", len(g), len(w), i+1, g[i], w[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d, alike as far as they go", len(g), len(w))
}

// loseAtRandom takes the power of nodes at random moments, n times or until the
// job has ended, and returns how many.
func (c *cluster) loseAtRandom(rng *rand.Rand, sc soakCase, id job.ID, n int) int {
	c.t.Helper()
	c.awaitEpoch(id, 0)
	recoveries := 0
	for i := range n {
		time.Sleep(time.Duration(rng.IntN(2500)) * time.Millisecond)
		d := c.job(id)
		if d.State.Final() {
			return i
		}
		used := []string{}
		for _, p := range d.Placement {
			used = append(used, string(p.Node))
		}
		hit := used
		if sc.spareToo {
			hit = nil
			for k := range sc.nodes + sc.spares {
				hit = append(hit, fmt.Sprintf("n%d", k+1))
			}
		}
		node := hit[rng.IntN(len(hit))]
		c.must("lam", "fail", node)
		if slices.Contains(used, node) {
			recoveries++
			c.await(time.Minute, "recovery", func() bool { d := c.job(id); return d.Recoveries >= recoveries || d.State.Final() })
		}
		c.must("lam", "revive", node)
		c.await(30*time.Second, node+" is back", func() bool {
			return strings.Count(c.must("lam", "nodes"), "alive") == sc.nodes+sc.spares
		})
	}
	return n
}

// killAtRandom kills single processes of a job and its cluster at random
// moments, n times or until the job has ended, and returns how many. Sometimes a
// daemon dies together with what it looks after.
func (c *cluster) killAtRandom(rng *rand.Rand, id job.ID, n int) int {
	c.t.Helper()
	c.awaitEpoch(id, 0)
	for i := range n {
		time.Sleep(time.Duration(rng.IntN(2500)) * time.Millisecond)
		before := c.job(id)
		if before.State.Final() {
			return i
		}
		kinds := [][]string{{"run"}, {"pod"}, {"podinit"}, {"-n"}, {"run", "pod"}, {"run", "-n"}, {"run", "run"}}
		which := kinds[rng.IntN(len(kinds))]
		costs := false
		for _, kind := range which {
			costs = c.killSome(rng, kind) && kind != "run" || costs
		}
		c.t.Logf("killed %v", which)
		c.await(time.Minute, fmt.Sprintf("the job after the death of %v", which), func() bool {
			d := c.job(id)
			return d.State.Final() || d.State == job.Running && (!costs || d.Recoveries > before.Recoveries)
		})
	}
	return n
}

// killSome kills a random process of the cluster whose first argument is kind;
// false when there is none.
func (c *cluster) killSome(rng *rand.Rand, kind string) bool {
	c.t.Helper()
	var pids []int
	for _, p := range leftovers(c.dir) {
		f := strings.Fields(p)
		// mpirun runs the program, too, but not as its first argument.
		if len(f) > 2 && f[2] == kind && (kind != "-n" || strings.HasSuffix(f[1], "/pairs") || f[1] == "pairs") {
			pid, err := strconv.Atoi(f[0])
			if err != nil {
				c.t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return false
	}
	err := syscall.Kill(pids[rng.IntN(len(pids))], syscall.SIGKILL)
	return err == nil // it may have ended meanwhile
}
