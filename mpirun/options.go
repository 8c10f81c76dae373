package mpirun

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lampause/lampause/job"
)

// program is one of the programs of a command line; most have but one.
type program struct {
	ranks   int
	exports []string // KEY or KEY=value, in order
	own     []string // the same, and not for the programs that follow
	envNone bool
	envList []string // nil: all
	dir     string
	words   []string // the program and its arguments
}

// options is a parsed command line.
type options struct {
	program                // the first
	more         []program // those after ":"
	ppn          int
	oversubscr   bool
	mapBy        string
	hostList     string
	hostFile     string
	label        bool
	outputFile   string
	quiet        bool
	verbose      bool
	noStdin      bool
	stdinRank    int
	help         bool
	version      bool
	name         string
	spares       int
	ckpt         time.Duration
	ckptSet      bool
	onFailure    string
	onFailureSet bool
	noSpare      string
	replicas     int
	files        string
	backing      string
	output       string
	crashRetries int
	preflight    bool
}

func defaults() options {
	return options{
		program: program{ranks: 1}, mapBy: job.MapByBlock, ckpt: 30 * time.Second, onFailure: job.OnFailurePause,
		noSpare: job.NoSpareWait, replicas: 2, files: "truncate", output: job.OutputLive,
	}
}

// option is one flag. Single and double dashes mean the same, as MPI users
// write both; every name is accepted with "NAME VALUE" and, if it has one
// value, with "NAME=VALUE".
type option struct {
	names  []string // the first is shown in help
	values []string // placeholders of the values
	help   string   // "" hides it
	env    string   // LAM_ variable that presets it
	each   bool     // may be given for every program of a command line
	set    func(o *options, v []string) error
}

func one(f func(o *options, v string) error) func(*options, []string) error {
	return func(o *options, v []string) error { return f(o, v[0]) }
}

func flag(f func(o *options)) func(*options, []string) error {
	return func(o *options, _ []string) error { f(o); return nil }
}

// table lists the flags, in the order of the help text.
func table() []option {
	return append(launchOptions(), lamOptions()...)
}

func launchOptions() []option {
	return []option{
		{names: []string{"n", "np", "c"}, each: true, values: []string{"N"}, help: "number of ranks (default 1)", set: one(func(o *options, v string) (err error) {
			o.ranks, err = number(v, "ranks", 1, job.MaxRanks)
			return err
		})},
		{names: []string{"ppn", "N", "npernode"}, values: []string{"N"}, help: "ranks per node, whatever its slots", set: one(func(o *options, v string) (err error) {
			o.ppn, err = number(v, "ranks per node", 1, job.MaxRanks)
			return err
		})},
		{names: []string{"map-by"}, values: []string{"block|node"}, help: "fill a node before the next, or deal the ranks round the nodes", set: one(func(o *options, v string) (err error) {
			o.mapBy, err = mapping(v)
			return err
		})},
		{names: []string{"H", "host", "hosts"}, values: []string{"LIST"}, help: "nodes to use: n1,n2:4,n[3-5]", set: one(func(o *options, v string) error {
			o.hostList = v
			return nil
		})},
		{names: []string{"f", "hostfile", "machinefile"}, values: []string{"FILE"}, help: "nodes to use, one per line: n1:4, \"n1 slots=4\", n[1-3,5], \"n5 spare\"", set: one(func(o *options, v string) error {
			o.hostFile = v
			return nil
		})},
		{names: []string{"oversubscribe"}, help: "put more ranks on nodes than they have slots", set: flag(func(o *options) { o.oversubscr = true })},
		{names: []string{"x"}, each: true, values: []string{"VAR[=VALUE]"}, help: "set a variable of the ranks, or pass one on", set: one(export)},
		{names: []string{"genv"}, each: true, values: []string{"VAR", "VALUE"}, help: "set a variable of the ranks", set: func(o *options, v []string) error {
			return export(o, v[0]+"="+v[1])
		}},
		{names: []string{"env"}, each: true, values: []string{"VAR", "VALUE"}, help: "the same, but not for the programs after this one", set: func(o *options, v []string) error {
			return ownExport(o, v[0]+"="+v[1])
		}},
		{names: []string{"genvall", "envall"}, each: true, help: "pass the whole environment on (the default)", set: flag(func(o *options) { o.envNone, o.envList = false, nil })},
		{names: []string{"genvnone", "envnone"}, each: true, help: "pass nothing of the environment on but -x and -genv", set: flag(func(o *options) { o.envNone = true })},
		{names: []string{"genvlist", "envlist"}, each: true, values: []string{"VAR,..."}, help: "pass only these on", set: one(func(o *options, v string) error {
			o.envList = strings.Split(v, ",")
			return nil
		})},
		{names: []string{"wdir", "wd"}, each: true, values: []string{"DIR"}, help: "working directory of the ranks (default: this one)", set: one(func(o *options, v string) error {
			o.dir = v
			return nil
		})},
		{names: []string{"l", "label", "tag-output"}, help: "begin every line with \"[RANK] \"", set: flag(func(o *options) { o.label = true })},
		{names: []string{"output-filename"}, values: []string{"NAME"}, help: "write the output to NAME.RANK.out and NAME.RANK.err", set: one(func(o *options, v string) error {
			o.outputFile = v
			return nil
		})},
		{names: []string{"stdin"}, values: []string{"RANK|none"}, help: "which rank reads the standard input (default 0)", set: one(stdinOption)},
		{names: []string{"q", "quiet"}, help: "no summary line", set: flag(func(o *options) { o.quiet = true })},
		{names: []string{"v", "verbose"}, help: "tell the number of the job", set: flag(func(o *options) { o.verbose = true })},
		{names: []string{"h", "help"}, help: "print this", set: flag(func(o *options) { o.help = true })},
		{names: []string{"V", "version"}, help: "print the version", set: flag(func(o *options) { o.version = true })},
		{names: []string{"allow-run-as-root"}, set: flag(func(*options) {})}, // Open MPI's habit; there is nothing to allow
	}
}

func lamOptions() []option {
	return []option{
		{names: []string{"spares"}, values: []string{"N"}, env: "LAM_SPARES", help: "spare nodes that must be there at the start (default 0: take what there is)", set: one(func(o *options, v string) (err error) {
			o.spares, err = number(v, "spares", 0, job.MaxRanks)
			return err
		})},
		{names: []string{"ckpt-interval"}, values: []string{"TIME|off"}, env: "LAM_CKPT_INTERVAL", help: "time between checkpoints (default 30s)", set: one(interval)},
		{names: []string{"on-failure"}, values: []string{"pause|restart|abort"}, env: "LAM_ON_FAILURE", help: "when a node dies: pause the job and replace it, restart from images, or end (default pause)", set: one(func(o *options, v string) error {
			o.onFailureSet = true
			return word(&o.onFailure, v, job.OnFailurePause, job.OnFailureRestart, job.OnFailureAbort)
		})},
		{names: []string{"no-spare"}, values: []string{"wait|abort"}, env: "LAM_NO_SPARE", help: "when there is no spare left: wait for one, or end with a usable checkpoint (default wait)", set: one(func(o *options, v string) error {
			return word(&o.noSpare, v, job.NoSpareWait, job.NoSpareShare, job.NoSpareAbort)
		})},
		{names: []string{"replicas"}, values: []string{"K"}, env: "LAM_REPLICAS", help: "nodes that hold each image (default 2)", set: one(func(o *options, v string) (err error) {
			o.replicas, err = number(v, "replicas", 1, 8)
			return err
		})},
		{names: []string{"files"}, values: []string{"truncate|seek|verify|save"}, env: "LAM_FILES", help: "what a rollback does to the program's files (default truncate)", set: one(func(o *options, v string) error {
			return word(&o.files, v, "truncate", "seek", "verify", "save")
		})},
		{names: []string{"backing"}, values: []string{"auto|copy|fork"}, env: "LAM_BACKING", help: "copy memory while the ranks are stopped, or from a fork while they run (default auto)", set: one(func(o *options, v string) error {
			return word(&o.backing, v, "auto", "copy", "fork")
		})},
		{names: []string{"output"}, values: []string{"live|committed"}, env: "LAM_OUTPUT", help: "print output at once, or exactly once: with the checkpoint that covers it (default live)", set: one(func(o *options, v string) error {
			return word(&o.output, v, job.OutputLive, job.OutputCommitted)
		})},
		{names: []string{"crash-retries"}, values: []string{"N"}, env: "LAM_CRASH_RETRIES", help: "how often a crash of the program itself is recovered (default 0)", set: one(func(o *options, v string) (err error) {
			o.crashRetries, err = number(v, "retries", 0, 1000)
			return err
		})},
		{names: []string{"preflight"}, help: "refuse to run what could not be checkpointed", set: flag(func(o *options) { o.preflight = true })},
		{names: []string{"name"}, values: []string{"NAME"}, help: "name of the job in listings (default: the program's)", set: one(func(o *options, v string) error {
			if v == "" || len(v) > job.MaxNameLen {
				return fmt.Errorf("%q: 1 to %d bytes", v, job.MaxNameLen)
			}
			o.name = v
			return nil
		})},
	}
}

func number(v, what string, low, high int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%q is not a number of %s (%d..%d)", v, what, low, high)
	}
	return n, nil
}

func word(to *string, v string, words ...string) error {
	for _, w := range words {
		if v == w {
			*to = v
			return nil
		}
	}
	return fmt.Errorf("%q is not one of %s", v, strings.Join(words, ", "))
}

func mapping(v string) (string, error) {
	switch v {
	case "block", "slot", "core":
		return job.MapByBlock, nil
	case "node":
		return job.MapByNode, nil
	}
	return "", fmt.Errorf("%q is not one of block, node", v)
}

func export(o *options, v string) error {
	if key, _, _ := strings.Cut(v, "="); key == "" {
		return fmt.Errorf("%q: no name of a variable", v)
	}
	o.exports = append(o.exports, v)
	return nil
}

func ownExport(o *options, v string) error {
	if key, _, _ := strings.Cut(v, "="); key == "" {
		return fmt.Errorf("%q: no name of a variable", v)
	}
	o.own = append(o.own, v)
	return nil
}

func stdinOption(o *options, v string) (err error) {
	switch v {
	case "none":
		o.noStdin = true
		return nil
	case "all":
		return fmt.Errorf("%q: one rank or none can read the standard input; name a file to the program where all shall read the same", v)
	}
	o.noStdin = false
	o.stdinRank, err = number(v, "a rank", 0, job.MaxRanks-1)
	return err
}

// minInterval keeps a mistyped unit from taking checkpoints all the time.
const minInterval = 100 * time.Millisecond

func interval(o *options, v string) error {
	o.ckptSet = true
	if v == "off" || v == "0" {
		o.ckpt = 0
		return nil
	}
	d, err := time.ParseDuration(v)
	if s, serr := strconv.ParseFloat(v, 64); err != nil && serr == nil {
		d, err = time.Duration(s*float64(time.Second)), nil
	}
	if err != nil || d < minInterval || d > 24*365*time.Hour {
		return fmt.Errorf("%q is not a time like 30s or 5m (at least %v), nor \"off\"", v, minInterval)
	}
	o.ckpt = d
	return nil
}
