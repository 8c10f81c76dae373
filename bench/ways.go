package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// way is one way to run an MPI program on n ranks, one per node. Which one it
// is decides over nothing but launcher and network: all traffic goes over TCP
// and the environment is the same.
type way struct {
	name string
	// run runs a program to its end. last, unless nil, knows the last line of
	// what it has to tell.
	run func(ctx context.Context, n int, last func(line string) bool, words ...string) (Outcome, error)
}

// Ways to run a program, in the order of Suite.ways.
const (
	byLam   = iota // pods on nodes of a local cluster
	byPlain        // mpiexec.hydra, network namespaces joined by a bridge
	byLoop         // mpiexec.hydra, the loopback link
	allWays
)

func (s *Suite) ways() [allWays]way {
	return [allWays]way{
		byLam:   {"lam", s.runLamOn},
		byPlain: {"plain nodes", s.runPlain},
		byLoop:  {"loopback", s.runLoop},
	}
}

// inTurns runs a program rounds times in every way; who goes first changes from
// round to round. take is told every outcome.
func (s *Suite) inTurns(ctx context.Context, rounds, n int, last func(string) bool, take func(way int, o Outcome) error, words ...string) error {
	ways := s.ways()
	for round := range rounds {
		for i := range ways {
			w := (i + round) % len(ways)
			o, err := ways[w].run(ctx, n, last, words...)
			if err == nil {
				err = take(w, o)
			}
			if err != nil {
				return fmt.Errorf("%s, %s: %w", filepath.Base(words[0]), ways[w].name, err)
			}
		}
	}
	return nil
}

// lamArgs are the words of `lam run`.
func lamArgs(n int, interval string, words ...string) []string {
	return append([]string{"-n", strconv.Itoa(n), "-ppn", "1", "-q", "--ckpt-interval", interval, "--on-failure", "pause"}, words...)
}

// hydraArgs make mpiexec.hydra start a program as lam does, over link.
func hydraArgs(n int, link string, words ...string) []string {
	args := []string{"-n", strconv.Itoa(n), "-ppn", "1"}
	for _, kv := range [][2]string{{"UCX_TLS", "tcp,self"}, {"UCX_NET_DEVICES", link}, {"HWLOC_COMPONENTS", "-gl"}, {"MPIR_CVAR_NOLOCAL", "1"}} {
		args = append(args, "-genv", kv[0], kv[1])
	}
	return append(args, words...)
}

// runLam runs a program to its end under lam, with checkpoints.
func (s *Suite) runLam(ctx context.Context, interval string, words ...string) (Outcome, error) {
	r, err := s.cluster.Start(ctx, nil, lamArgs(s.Ranks, interval, words...)...)
	if err != nil {
		return Outcome{}, err
	}
	return good(r.Wait())
}

func (s *Suite) runLamOn(ctx context.Context, n int, _ func(string) bool, words ...string) (Outcome, error) {
	r, err := s.cluster.Start(ctx, nil, lamArgs(n, "off", words...)...)
	if err != nil {
		return Outcome{}, err
	}
	return good(r.Wait())
}

// runLoop runs a program under MPICH's own launcher over the loopback link.
func (s *Suite) runLoop(ctx context.Context, n int, last func(string) bool, words ...string) (Outcome, error) {
	hydra, err := lookPath("mpiexec.hydra")
	if err != nil {
		return Outcome{}, err
	}
	return s.untilTold(ctx, last, words[0], func(ctx context.Context) *exec.Cmd {
		return command(ctx, s.cluster.Env(), hydra, hydraArgs(n, "lo", words...)...)
	})
}

// runPlain runs a program under MPICH's own launcher on plain nodes: what a pod
// could at best be as fast as, if its network were made of the same parts.
func (s *Suite) runPlain(ctx context.Context, n int, last func(string) bool, words ...string) (Outcome, error) {
	for _, tool := range []string{"mpiexec.hydra", "ip"} {
		if _, err := lookPath(tool); err != nil {
			return Outcome{}, err
		}
	}
	args := append([]string{filepath.Join(s.dir, "plain.sh"), strconv.Itoa(n), strconv.Itoa(plainMTU), filepath.Join(s.dir, "enter.sh")},
		hydraArgs(n, "eth0", words...)...)
	return s.untilTold(ctx, last, words[0], func(ctx context.Context) *exec.Cmd {
		cmd := command(ctx, s.cluster.Env(), "/bin/sh", args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		cmd.Cancel = func() error { return cmd.Process.Kill() } // pid 1 hears of nothing else, and takes the rest with it
		return cmd
	})
}

// plainMTU is the MTU of a local cluster's links.
const plainMTU = 65520

// lookPath finds a program of MPICH or of the system.
//
// Expected errors: ErrNoCompiler.
func lookPath(tool string) (string, error) {
	found, err := exec.LookPath(tool)
	if err != nil {
		return "", fmt.Errorf("%w: %s is not in PATH", ErrNoCompiler, tool)
	}
	return found, nil
}

// finalizeLimit is how long a program may take to end after its last line.
const finalizeLimit = 2 * time.Second

// untilTold runs a command that starts a program under mpiexec.hydra.
//
// MPI_Finalize of MPICH over UCX's TCP may hang under its own launcher: a rank
// waits for one that does not listen any more. What the program had to tell has
// been told by then, so the run is ended.
func (s *Suite) untilTold(ctx context.Context, last func(string) bool, program string, make func(context.Context) *exec.Cmd) (Outcome, error) {
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	var told atomic.Bool
	each := func(line string) {
		if last != nil && last(line) && !told.Swap(true) {
			time.AfterFunc(finalizeLimit, cancel)
		}
	}
	r, err := start(make(run), each)
	if err != nil {
		return Outcome{}, err
	}
	o, err := r.Wait()
	if told.Load() && run.Err() != nil && ctx.Err() == nil {
		s.Log.Warn().Str("program", filepath.Base(program)).Msg("hangs in MPI_Finalize under mpiexec.hydra; ended")
		o.Code, err = 0, nil
	}
	return good(o, err)
}

// timed knows the last line of the programs of this package.
func timed(line string) bool { return strings.HasPrefix(line, "# time") }

// good makes an error of a failed program.
func good(o Outcome, err error) (Outcome, error) {
	if err == nil && (o.Code != 0 || strings.Contains(o.Stdout, "VERIFICATION FAILED")) {
		err = fmt.Errorf("exit code %d: %s%s", o.Code, o.Stdout, o.Stderr)
	}
	return o, err
}

// samples sums up what inTurns collected, and its ratios to the first way.
func samples(values [allWays][]float64) (each, ratio [allWays]Sample) {
	for w, v := range values {
		each[w] = Summarize(slices.Clone(v))
		ratio[w] = Summarize(Ratios(values[byLam], v))
	}
	return each, ratio
}
