package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
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

// DefaultKernels are what the ratio is measured with: cg sends small messages
// all the time, mg large ones, ep hardly any.
const DefaultKernels = "cg.A cg.B mg.A ep.A"

// AllParts names the parts of a Suite, in the order in which they run.
const AllParts = "launch ratio netpipe overhead stall recovery restart"

// quietLoad is the load average above which others disturb the measurement.
const quietLoad = 0.5

// Result is what a Suite measured. Absent parts were not asked for.
type Result struct {
	Machine  Machine       `json:"machine"`
	Ranks    int           `json:"ranks"`
	Launch   *Launch       `json:"launch,omitempty"`
	Ratio    []RatioResult `json:"ratio,omitempty"`
	NetPIPE  []NetPIPE     `json:"netpipe,omitempty"`
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

	// Load is the load average of the last minute before the start; a quiet
	// machine has nearly none.
	Load float64 `json:"load"`
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
	if s.result.Machine.Load > quietLoad {
		s.Log.Warn().Float64("load", s.result.Machine.Load).Msg("the machine is not quiet; the figures will be worse than they could be")
	}
	if err := Build(ctx, dir, append([]string{Ballast}, s.Kernels...)...); err != nil {
		return s.result, err
	}
	if err := scripts(dir); err != nil {
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
	case "netpipe":
		return s.netpipe
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
		s.Kernels = strings.Fields(DefaultKernels)
	}
	for _, p := range s.Parts {
		if !hasWord(AllParts, p) {
			return fmt.Errorf("bench: part %q: not one of %s", p, AllParts)
		}
	}
	return nil
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
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscanf(string(text), "%f", &m.Load)
	}
	return m
}

// digestEvery is how many steps a digest is printed after: often enough that
// one is on its way at any moment of a recovery, seldom enough that printing is
// not what is measured.
const digestEvery = "500"

// ballastArgs are the words of the ballast program with mb megabytes in all.
func (s *Suite) ballastArgs(dirtyKB, steps int) []string {
	return []string{s.path(Ballast), strconv.Itoa(max(1, s.MB/s.Ranks)), strconv.Itoa(dirtyKB), strconv.Itoa(steps), digestEvery}
}

// endless is a number of steps that no measurement reaches.
const endless = 1 << 30

// background starts a ballast job that lasts until kill is called.
func (s *Suite) background(ctx context.Context, interval string) (id job.ID, r *Run, kill func(), err error) {
	r, err = s.cluster.Start(ctx, nil, lamArgs(s.Ranks, interval, s.ballastArgs(64, endless)...)...)
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
