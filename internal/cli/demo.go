package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/lampause/lampause/bench"
	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// demoLimit bounds the whole demonstration.
const demoLimit = 10 * time.Minute

// maxDemoRanks is how many ranks the demonstration uses at most.
const maxDemoRanks = 4

func newDemo(a *App) *cobra.Command {
	d := &demo{app: a}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show a job that survives the loss of a node",
		Long: `Build a NAS kernel, boot a cluster with a spare node on this machine, and run
the kernel three times: undisturbed; with a node powered off in the middle, where
the job pauses, is repaired and goes on; and restarted as a whole from its
images, for comparison. Ends with exit code 0 only if the digits of the kernel
are the same in all bits. Takes about 90 seconds on two cores. Nothing is left
behind.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), demoLimit)
			defer cancel()
			return d.run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.kernel, "kernel", "cg.B", "NAS kernel and class: ep, cg, is or mg, with S W A B C")
	f.IntVar(&d.ranks, "ranks", 0, "number of ranks, a power of two (default: the cores, at most 4)")
	f.DurationVar(&d.interval, "ckpt-interval", 0, "time between checkpoints (default: a fifth of the undisturbed run)")
	return cmd
}

// demo is one demonstration. Its steps fill in the result.
type demo struct {
	app      *App
	kernel   string
	ranks    int
	interval time.Duration

	start   time.Time
	dir     string // private
	program string
	cluster *bench.Cluster
	result  demoResult
	tellMu  sync.Mutex // lines of the program and of the cluster come at any time
}

// demoResult is what `lam demo -o json` prints at the end. Times are in
// seconds but for those that end in _ms.
type demoResult struct {
	Kernel          string             `json:"kernel"`
	Ranks           int                `json:"ranks"`
	Undisturbed     float64            `json:"undisturbed_s"`
	Disturbed       float64            `json:"disturbed_s"`
	Lost            job.NodeID         `json:"lost"`
	Epochs          int                `json:"epochs"`
	Recoveries      int                `json:"recoveries"`
	Bill            map[string]float64 `json:"bill_ms"`
	PauseMS         float64            `json:"pause_ms"`          // of the recovery, without detection and fence
	RestartMS       float64            `json:"restart_ms"`        // whole-job restart from images
	RestartRebootMS float64            `json:"restart_reboot_ms"` // the same with halt and boot
	Digits          string             `json:"digits"`
	Equal           bool               `json:"equal"`
}

func (d *demo) run(ctx context.Context) error {
	d.start = time.Now()
	if err := d.prepare(ctx); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(d.dir) }()
	err := d.boot(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if herr := d.cluster.Halt(ctx); herr != nil {
			d.app.note("the cluster of the demonstration could not be ended: %v", herr)
		}
	}()
	for _, step := range []func(context.Context) error{d.undisturbed, d.disturbed, d.restarted} {
		if err := step(ctx); err != nil {
			return interrupted(ctx, err)
		}
	}
	if err := d.report(); err != nil {
		return err
	}
	if !d.result.Equal {
		return WithExit(job.ExitInternal, errors.New("the digits of the runs differ"))
	}
	return nil
}

// interrupted says why a step failed when it was not by itself.
func interrupted(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return WithExit(job.ExitInternal, fmt.Errorf("the demonstration took more than %v and was ended: %w", demoLimit, err))
	case ctx.Err() != nil:
		return WithExit(exitInterrupted, errors.New("interrupted; the cluster of the demonstration is ended"))
	}
	return err
}

// exitInterrupted is the code of a command that was ended by Ctrl-C, as of one
// that the signal killed.
const exitInterrupted = 130

// tell prints one line of the story, with the time since the start. With -o
// json the story goes to stderr.
func (d *demo) tell(format string, args ...any) {
	w := d.app.Stdout
	if d.app.Format == formatJSON {
		w = d.app.Stderr
	}
	d.tellMu.Lock()
	defer d.tellMu.Unlock()
	_, _ = fmt.Fprintf(w, "%6.1fs  %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...)) // only a story
}

// head prints the title of a step.
func (d *demo) head(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if d.app.Color && d.app.Format != formatJSON {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	d.tell("%s", text)
}

// prepare checks the options, installs what is missing and builds the kernel.
func (d *demo) prepare(ctx context.Context) error {
	cores := runtime.NumCPU()
	if d.ranks == 0 {
		for d.ranks = 1; d.ranks*2 <= min(cores, maxDemoRanks); d.ranks *= 2 {
		}
	}
	if d.ranks < 1 || d.ranks&(d.ranks-1) != 0 || d.ranks > 64 {
		return usage("--ranks %d: a power of two up to 64", d.ranks)
	}
	if d.ranks > cores {
		d.app.note("%d ranks on %d cores: MPI polls busily, so this takes long", d.ranks, cores)
	}
	if err := d.install(ctx); err != nil {
		return err
	}
	var err error
	if d.dir, err = os.MkdirTemp("", "lamdemo"); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	d.head("build %s for %d ranks", d.kernel, d.ranks)
	if err := bench.Build(ctx, d.dir, d.kernel); err != nil {
		_ = os.RemoveAll(d.dir)
		return WithExit(job.ExitUsage, err)
	}
	d.program = filepath.Join(d.dir, d.kernel)
	d.result.Kernel, d.result.Ranks = d.kernel, d.ranks
	return nil
}

// install gets an MPI and a compiler if they are missing: with apt when this is
// root, else it says how.
func (d *demo) install(ctx context.Context) error {
	if haveMPI() {
		return nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil || d.app.Env.UID != 0 {
		return WithExit(job.ExitNoNodes, fmt.Errorf("MPICH and a C compiler are needed; please run: sudo %s", bench.InstallCommand))
	}
	d.head("install MPICH: %s", bench.InstallCommand)
	for _, args := range [][]string{{"update", "-qq"}, strings.Fields(bench.InstallCommand)[1:]} {
		cmd := exec.CommandContext(ctx, apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if said, err := cmd.CombinedOutput(); err != nil {
			return WithExit(job.ExitNoNodes, fmt.Errorf("apt-get %s: %w: %s", args[0], err, lastLine(string(said))))
		}
	}
	if !haveMPI() {
		return WithExit(job.ExitNoNodes, errors.New("mpicc or gcc is still missing after the installation"))
	}
	return nil
}

func haveMPI() bool {
	for _, tool := range []string{"mpicc", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			return false
		}
	}
	_, err := os.Stat("/usr/include/stdio.h")
	return err == nil
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// boot starts a node for every rank, at least two, and a spare.
func (d *demo) boot(ctx context.Context) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	nodes := max(2, d.ranks)
	d.head("boot %d nodes and a spare on this machine", nodes)
	d.cluster, err = bench.Boot(ctx, bench.BootOptions{Lam: exe, Dir: d.dir, Nodes: nodes, Spares: 1, Slots: 1})
	if err != nil {
		return err
	}
	list, err := d.cluster.Client().Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range list {
		d.tell("  %-4s %-12s %s, %s", n.Node, n.Addr, n.State, n.Role)
	}
	return nil
}

// awaitEpochs returns once the job has committed n epochs, or has ended.
func (d *demo) awaitEpochs(ctx context.Context, id job.ID, n int) error {
	seen := 0
	_, err := d.cluster.AwaitEvent(ctx, 0, func(e control.Event) bool {
		if e.Job == id && e.Event == "checkpoint.committed" {
			seen++
		}
		return seen >= n || e.Job == id && e.Event == "job.ended"
	})
	return err
}
