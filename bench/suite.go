package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// ErrTooFewCores refuses a measurement in which ranks would share cores.
var ErrTooFewCores = errors.New("more ranks than cores: MPI polls busily, and the figures would mean nothing")

// Suite measures lampause on this machine. Fields are read by Run only.
type Suite struct {
	Lam     string // the lam program; lamd stands next to it
	Ranks   int    // a power of two, not more than the cores; 0: as many as possible, at most 4
	Rounds  int    // pairs per comparison and repetitions of a recovery; 0: 5
	MB      int    // memory of all ranks together for stall and recovery, in MB; 0: 500
	Kernels []string
	Parts   []string // of AllParts; empty: all
	Log     zerolog.Logger

	dir     string
	cluster *Cluster
	result  Result
}

// AllParts names the parts of a Suite, in the order in which they run.
const AllParts = "launch ratio overhead stall recovery restart"

// Result is what a Suite measured. Absent parts were not asked for.
type Result struct {
	Machine  Machine       `json:"machine"`
	Ranks    int           `json:"ranks"`
	Launch   *Launch       `json:"launch,omitempty"`
	Ratio    []RatioResult `json:"ratio,omitempty"`
	Overhead *Overhead     `json:"overhead,omitempty"`
	Stall    *Stall        `json:"stall,omitempty"`
	Recovery *Recovery     `json:"recovery,omitempty"`
	Restart  *Restart      `json:"restart,omitempty"`
}

// Machine says where the figures come from.
type Machine struct {
	Cores  int    `json:"cores"`
	CPU    string `json:"cpu"`
	Kernel string `json:"kernel"`
	Root   bool   `json:"root"`
	Date   string `json:"date"`
}

// Launch compares starting a program that does nothing, in milliseconds.
type Launch struct {
	LamMS   Sample `json:"lam_ms"`
	HydraMS Sample `json:"hydra_ms"`
}

// RatioResult compares one kernel without checkpoints under lam and under
// mpiexec.hydra with the same transport, in seconds as the kernel measures
// itself.
type RatioResult struct {
	Kernel  string `json:"kernel"`
	LamS    Sample `json:"lam_s"`
	HydraS  Sample `json:"hydra_s"`
	RatioOf Sample `json:"ratio"` // of the pairs
}

// Overhead compares runs with and without checkpoints, in seconds.
type Overhead struct {
	IntervalS float64 `json:"interval_s"`
	DirtyMB   int     `json:"dirty_mb"` // per rank and interval, about
	WithS     Sample  `json:"with_s"`
	WithoutS  Sample  `json:"without_s"`
	RatioOf   Sample  `json:"ratio"`
	Epochs    int     `json:"epochs"` // committed in all runs together
}

// Stall is what checkpoints of MB megabytes cost, per part in milliseconds.
type Stall struct {
	MB    int               `json:"mb"`
	Parts map[string]Sample `json:"parts_ms"` // stall_ms, freeze_ms, ..., write_ms
}

// Recovery is what node losses cost, per part in milliseconds.
type Recovery struct {
	MB      int               `json:"mb"`
	Parts   map[string]Sample `json:"parts_ms"` // detect, agree, ..., total
	PauseMS Sample            `json:"pause_ms"` // without detection and fence
	Equal   bool              `json:"equal"`    // the digests agree with an undisturbed run
}

// Restart is the whole-job restart from the same images, in milliseconds.
type Restart struct {
	RestartMS      Sample  `json:"restart_ms"`
	RebootMS       Sample  `json:"reboot_ms"`
	PauseToRestart float64 `json:"pause_to_restart"` // medians; 0 when recovery was not measured
	PauseToReboot  float64 `json:"pause_to_reboot"`
}

// Run measures and returns what it has, also with an error.
//
// Expected errors: ErrTooFewCores; ErrNoCompiler; those of the commands.
func (s *Suite) Run(ctx context.Context) (Result, error) {
	if err := s.complete(); err != nil {
		return Result{}, err
	}
	dir, err := os.MkdirTemp("", "lambench")
	if err != nil {
		return Result{}, fmt.Errorf("bench: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s.dir = dir
	s.result = Result{Machine: thisMachine(), Ranks: s.Ranks}
	if err := Build(ctx, dir, append([]string{Ballast}, s.Kernels...)...); err != nil {
		return s.result, err
	}
	// One node per rank, at least three to agree, and a spare.
	s.cluster, err = Boot(ctx, BootOptions{Lam: s.Lam, Dir: dir, Nodes: max(2, s.Ranks), Spares: 1, Slots: 1})
	if err != nil {
		return s.result, err
	}
	defer func() {
		if err := s.cluster.Halt(ctx); err != nil {
			s.Log.Error().Err(err).Msg("cluster not ended")
		}
	}()
	for name := range strings.FieldsSeq(AllParts) {
		if len(s.Parts) > 0 && !slices.Contains(s.Parts, name) {
			continue
		}
		s.Log.Info().Str("part", name).Msg("measuring")
		if err := s.part(name)(ctx); err != nil {
			return s.result, fmt.Errorf("bench: %s: %w", name, err)
		}
	}
	return s.result, nil
}

func (s *Suite) part(name string) func(context.Context) error {
	switch name {
	case "launch":
		return s.launch
	case "ratio":
		return s.ratio
	case "overhead":
		return s.overhead
	case "stall":
		return s.stall
	case "recovery":
		return s.recovery
	default:
		return s.restart
	}
}

func (s *Suite) complete() error {
	cores := runtime.NumCPU()
	if s.Ranks == 0 {
		for s.Ranks = 1; s.Ranks*2 <= min(cores, 4); s.Ranks *= 2 {
		}
	}
	if s.Ranks > cores {
		return fmt.Errorf("%w (%d ranks, %d cores)", ErrTooFewCores, s.Ranks, cores)
	}
	if s.Rounds == 0 {
		s.Rounds = 5
	}
	if s.MB == 0 {
		s.MB = 500
	}
	if len(s.Kernels) == 0 {
		s.Kernels = []string{"cg.B", "mg.B", "ep.A"}
	}
	for _, p := range s.Parts {
		if !hasWord(AllParts, p) {
			return fmt.Errorf("bench: part %q: not one of %s", p, AllParts)
		}
	}
	return nil
}

// lamArgs and hydraArgs start the same thing in the same way: TCP for all
// traffic, one rank after another, the same environment otherwise.
func (s *Suite) lamArgs(interval string, words ...string) []string {
	return append([]string{"-n", strconv.Itoa(s.Ranks), "-ppn", "1", "-q", "--ckpt-interval", interval, "--on-failure", "pause"}, words...)
}

func (s *Suite) hydraArgs(words ...string) []string {
	args := []string{"-n", strconv.Itoa(s.Ranks)}
	for _, kv := range [][2]string{{"UCX_TLS", "tcp,self"}, {"UCX_NET_DEVICES", "lo"}, {"HWLOC_COMPONENTS", "-gl"}, {"MPIR_CVAR_NOLOCAL", "1"}} {
		args = append(args, "-genv", kv[0], kv[1])
	}
	return append(args, words...)
}

// runLam runs a program to its end under lam.
func (s *Suite) runLam(ctx context.Context, interval string, words ...string) (Outcome, error) {
	r, err := s.cluster.Start(ctx, nil, s.lamArgs(interval, words...)...)
	if err != nil {
		return Outcome{}, err
	}
	return good(r.Wait())
}

// runHydra runs a program to its end under MPICH's own launcher.
func (s *Suite) runHydra(ctx context.Context, words ...string) (Outcome, error) {
	hydra, err := exec.LookPath("mpiexec.hydra")
	if err != nil {
		return Outcome{}, fmt.Errorf("%w: mpiexec.hydra is not in PATH", ErrNoCompiler)
	}
	// MPI_Finalize of MPICH over UCX's TCP may hang under its own launcher: a
	// rank waits for one that does not listen any more. What the program had to
	// tell has been told by then, so the run is ended.
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	var told atomic.Bool
	finished := func(line string) {
		if strings.HasPrefix(line, "# time") && !told.Swap(true) {
			time.AfterFunc(finalizeLimit, cancel)
		}
	}
	r, err := start(run, s.cluster.Env(), finished, hydra, s.hydraArgs(words...)...)
	if err != nil {
		return Outcome{}, err
	}
	o, err := r.Wait()
	if told.Load() && run.Err() != nil && ctx.Err() == nil {
		s.Log.Warn().Str("program", filepath.Base(words[0])).Msg("hangs in MPI_Finalize under mpiexec.hydra; ended")
		o.Code, err = 0, nil
	}
	return good(o, err)
}

// finalizeLimit is how long a program may take to end after its last line.
const finalizeLimit = 2 * time.Second

// good makes an error of a failed program.
func good(o Outcome, err error) (Outcome, error) {
	if err == nil && (o.Code != 0 || strings.Contains(o.Stdout, "VERIFICATION FAILED")) {
		err = fmt.Errorf("exit code %d: %s%s", o.Code, o.Stdout, o.Stderr)
	}
	return o, err
}

func (s *Suite) path(program string) string { return filepath.Join(s.dir, program) }

// thisMachine describes where this runs. What cannot be read stays empty.
func thisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Root: os.Geteuid() == 0, Date: time.Now().UTC().Format(time.DateOnly)}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(text))
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	return m
}

// ballastArgs are the words of the ballast program with mb megabytes in all.
func (s *Suite) ballastArgs(dirtyKB, steps int) []string {
	return []string{s.path(Ballast), strconv.Itoa(max(1, s.MB/s.Ranks)), strconv.Itoa(dirtyKB), strconv.Itoa(steps), "50"}
}

// endless is a number of steps that no measurement reaches.
const endless = 1 << 30

// background starts a ballast job that lasts until kill is called.
func (s *Suite) background(ctx context.Context, interval string) (id job.ID, r *Run, kill func(), err error) {
	r, err = s.cluster.Start(ctx, nil, s.lamArgs(interval, s.ballastArgs(64, endless)...)...)
	if err != nil {
		return 0, nil, nil, err
	}
	if id, err = r.Job(ctx); err != nil {
		return 0, nil, nil, err
	}
	var once sync.Once
	kill = func() { once.Do(func() { s.kill(ctx, id, r) }) }
	if _, err = s.cluster.AwaitState(ctx, id, job.Running); err != nil {
		kill()
	}
	return id, r, kill, err
}

// kill ends a job and waits for its launcher.
func (s *Suite) kill(ctx context.Context, id job.ID, r *Run) {
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	if err := s.cluster.client.Do(stop, id, control.Kill); err != nil {
		s.Log.Warn().Err(err).Stringer("job", id).Msg("job not ended")
		return
	}
	_, _ = r.Wait() // it was killed
}
