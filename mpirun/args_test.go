package mpirun

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/config"
	"github.com/lampause/lampause/job"
)

// presets are settings that stand nowhere but in kv.
func presets(t testing.TB, kv map[string]string) *config.Settings {
	t.Helper()
	s, err := config.LoadFiles(func(key string) string { return kv[key] })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParse(t *testing.T) {
	tests := []struct {
		args string
		want func(*options)
	}{
		{"prog", func(*options) {}},
		{"-n 4 prog -n 5", func(o *options) { o.ranks, o.words = 4, []string{"prog", "-n", "5"} }},
		{"-np=4 prog", func(o *options) { o.ranks = 4 }},
		{"--n 4 -ppn 2 prog", func(o *options) { o.ranks, o.ppn = 4, 2 }},
		{"-c 3 -N 1 -- prog", func(o *options) { o.ranks, o.ppn = 3, 1 }},
		{"--map-by node prog", func(o *options) { o.mapBy = job.MapByNode }},
		{"-map-by=slot prog", func(*options) {}},
		{"-H n1:2,n2 prog", func(o *options) { o.hostList = "n1:2,n2" }},
		{"--machinefile f prog", func(o *options) { o.hostFile = "f" }},
		{"-x A -x B=c=d -genv C 5 prog", func(o *options) { o.exports = []string{"A", "B=c=d", "C=5"} }},
		{"-genvnone prog", func(o *options) { o.envNone = true }},
		{"-genvlist A,B prog", func(o *options) { o.envList = []string{"A", "B"} }},
		{"-genvnone -envall prog", func(*options) {}},
		{"-wdir /tmp -l prog", func(o *options) { o.dir, o.label = "/tmp", true }},
		{"--tag-output --output-filename out prog", func(o *options) { o.label, o.outputFile = true, "out" }},
		{"--stdin none -q --oversubscribe --allow-run-as-root prog", func(o *options) { o.noStdin, o.quiet, o.oversubscr = true, true, true }},
		{"--stdin none --stdin 3 prog", func(o *options) { o.stdinRank = 3 }},
		{"--spares 2 --ckpt-interval 5s --on-failure restart --no-spare abort --replicas 3 prog", func(o *options) {
			o.spares, o.ckpt, o.ckptSet, o.onFailure, o.onFailureSet = 2, 5*time.Second, true, "restart", true
			o.noSpare, o.replicas = "abort", 3
		}},
		{"--ckpt-interval off --files seek --output committed --preflight --crash-retries 1 --name x prog", func(o *options) {
			o.ckpt, o.ckptSet, o.files, o.output, o.preflight, o.crashRetries, o.name = 0, true, "seek", "committed", true, 1, "x"
		}},
		{"--ckpt-interval 2.5 prog", func(o *options) { o.ckpt, o.ckptSet = 2500*time.Millisecond, true }},
		{"-n 2 -x A -env B 1 -wdir /tmp --spares 1 prog x : -n 3 other : -env C 2 -wd /usr prog", func(o *options) {
			o.ranks, o.exports, o.own, o.dir, o.spares, o.words = 2, []string{"A"}, []string{"B=1"}, "/tmp", 1, []string{"prog", "x"}
			o.more = []program{
				{ranks: 3, exports: []string{"A"}, dir: "/tmp", words: []string{"other"}},
				{ranks: 1, exports: []string{"A"}, own: []string{"C=2"}, dir: "/usr", words: []string{"prog"}},
			}
		}},
		{"--help", func(o *options) { o.help, o.words = true, []string{} }},
	}
	for _, tt := range tests {
		want := defaults()
		want.words = []string{"prog"}
		tt.want(&want)
		got, err := parse(strings.Fields(tt.args), nil)
		if err != nil {
			t.Errorf("%s: %v", tt.args, err)
		}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(options{}, program{})); d != "" {
			t.Errorf("%s: %s", tt.args, d)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ args, want string }{
		{"", "no program given: mpirun [OPTIONS] PROGRAM [ARGUMENTS]; mpirun --help lists the options"},
		{"-n 4", "no program given: mpirun [OPTIONS] PROGRAM [ARGUMENTS]; mpirun --help lists the options"},
		{"-n", "-n: missing N"},
		{"-genv A", "-genv: missing VALUE"},
		{"-n x prog", `-n: "x" is not a number of ranks (1..65536)`},
		{"-n 0 prog", `-n: "0" is not a number of ranks (1..65536)`},
		{"--on-failure panic prog", `--on-failure: "panic" is not one of pause, restart, abort`},
		{"--ckpt-interval 30x prog", `--ckpt-interval: "30x" is not a time like 30s or 5m (at least 100ms), nor "off"`},
		{"--ckpt-interval 1ms prog", `--ckpt-interval: "1ms" is not a time like 30s or 5m (at least 100ms), nor "off"`},
		{"--ckpt-intervall 5s prog", "unknown option --ckpt-intervall: did you mean --ckpt-interval? mpirun --help lists the options"},
		{"--ckpt 5s prog", "unknown option --ckpt: did you mean --ckpt-interval? mpirun --help lists the options"},
		{"-nn 4 prog", "unknown option -nn: did you mean -n? mpirun --help lists the options"},
		{"--hostflie f prog", "unknown option --hostflie: did you mean --hostfile? mpirun --help lists the options"},
		{"--zzzzzzzz prog", "unknown option --zzzzzzzz; mpirun --help lists the options"},
		{"-l=3 prog", "-l=3: takes 0 values, without \"=\""},
		{"-H a -f b prog", "both -host and -hostfile: give one of them"},
		{"-x =3 prog", `-x: "=3": no name of a variable`},
		{"--stdin all prog", `--stdin: "all": one rank or none can read the standard input; name a file to the program where all shall read the same`},
		{"--stdin x prog", `--stdin: "x" is not a number of a rank (0..65535)`},
		{"-n 1 a : -n 2", `no program after ":": mpirun [OPTIONS] PROGRAM [ARGUMENTS] : [OPTIONS] PROGRAM [ARGUMENTS]`},
		{": b", "no program given: mpirun [OPTIONS] PROGRAM [ARGUMENTS]; mpirun --help lists the options"},
		{"a : --spares 1 b", "--spares: holds for the whole job: write it in front of the first program"},
		{"a : -nn 1 b", "unknown option -nn: did you mean -n? mpirun --help lists the options"},
	}
	for _, tt := range tests {
		_, err := parse(strings.Fields(tt.args), nil)
		var e *Error
		if !errors.As(err, &e) || e.Exit != job.ExitUsage || err.Error() != tt.want {
			t.Errorf("%s:\n got %v\nwant %s", tt.args, err, tt.want)
		}
	}
}

func TestParsePresetsFromEnvironment(t *testing.T) {
	env := presets(t, map[string]string{"LAM_REPLICAS": "3", "LAM_CKPT_INTERVAL": "1m", "LAM_ON_FAILURE": "abort"})
	o, err := parse([]string{"--replicas", "1", "prog"}, env)
	if err != nil || o.replicas != 1 || o.ckpt != time.Minute || o.onFailure != "abort" || !o.onFailureSet {
		t.Errorf("%+v, %v", o, err)
	}
	_, err = parse([]string{"prog"}, presets(t, map[string]string{"LAM_REPLICAS": "many"}))
	if ExitCode(err) != job.ExitConfig || !strings.Contains(err.Error(), "LAM_REPLICAS") {
		t.Errorf("bad variable: %v", err)
	}
}

// What has a variable has a key in the configuration files, and a line in the
// page.
func TestVariablesHaveKeys(t *testing.T) {
	page, err := os.ReadFile("../docs/commands/mpirun.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range table() {
		if f.env == "" {
			continue
		}
		if key := strings.ToLower(strings.TrimPrefix(f.env, "LAM_")); !slices.Contains(config.Keys(), key) {
			t.Errorf("%s has no key in configuration files", f.env)
		}
		if !strings.Contains(string(page), "`"+f.env+"`") {
			t.Errorf("docs/commands/mpirun.md does not mention %s", f.env)
		}
	}
}

// FuzzParse: any words end in a *Error or in options that check accepts.
func FuzzParse(f *testing.F) {
	f.Add("-n\x004\x00prog")
	f.Add("--ckpt-interval=5s\x00-x\x00A=b\x00--\x00-n")
	f.Add("-\x00--\x00=")
	f.Fuzz(func(t *testing.T, joined string) {
		o, err := parse(strings.Split(joined, "\x00"), nil)
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("%q: %v", joined, err)
		}
		if err == nil && check(&o) != nil {
			t.Fatalf("%q: accepted %+v", joined, o)
		}
	})
}

func TestUsageListsEveryOption(t *testing.T) {
	text := Usage("mpirun")
	for _, f := range table() {
		if f.help != "" && !strings.Contains(text, dashed(f.names[0])) {
			t.Errorf("no %s in the help text", f.names[0])
		}
	}
	seen := map[string]bool{}
	for _, f := range table() {
		for _, n := range f.names {
			if seen[n] {
				t.Errorf("-%s is there twice", n)
			}
			seen[n] = true
		}
	}
}

func TestLookUp(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/tool", 0o755)
	write("bin/plain", 0o644)
	write("late/plain2", 0o644)
	write("here", 0o755)
	write("data", 0o644)
	path := filepath.Join(dir, "bin") + ":" + filepath.Join(dir, "late")
	tests := []struct {
		program, want string
		exit          int
		text          string
	}{
		{"tool", filepath.Join(dir, "bin/tool"), 0, ""},
		{"./here", filepath.Join(dir, "here"), 0, ""},
		{"bin/../here", filepath.Join(dir, "here"), 0, ""},
		{filepath.Join(dir, "here"), filepath.Join(dir, "here"), 0, ""},
		{"nothing", "", job.ExitUsage, "program nothing: not found in PATH"},
		{"here", "", job.ExitUsage, "program here: not found in PATH; the one in this directory is ./here"},
		{"./nothing", "", job.ExitUsage, "program " + dir + "/nothing: not found"},
		{"plain", "", job.ExitPermission, "program " + dir + "/bin/plain: not executable"},
		{"./data", "", job.ExitPermission, "program " + dir + "/data: not executable"},
		{"./bin", "", job.ExitPermission, "program " + dir + "/bin: is a directory"},
		{"", "", job.ExitUsage, "the name of the program is empty"},
	}
	for _, tt := range tests {
		got, err := lookUp(tt.program, dir, path)
		if got != tt.want || (err == nil) != (tt.exit == 0) {
			t.Errorf("%q: %q, %v", tt.program, got, err)
		}
		if err != nil && (ExitCode(err) != tt.exit || err.Error() != tt.text) {
			t.Errorf("%q: exit %d, %v", tt.program, ExitCode(err), err)
		}
	}
}

func TestBuildSpec(t *testing.T) {
	dir := t.TempDir()
	hosts := filepath.Join(dir, "hosts")
	if err := os.WriteFile(hosts, []byte("n[1-2]:2\nn5 spare\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := []string{"PATH=/bin:/usr/bin", "A=1", "B=2", "PMI_FD=9"}
	o, err := parse([]string{"-n", "2", "-f", hosts, "-genvlist", "A,PATH", "-x", "B", "-genv", "C", "3", "sh", "-c", "true"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := buildSpec(o, environ, dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"PATH=/bin:/usr/bin", "A=1", "B=2", "C=3", "PWD=" + dir}; !slices.Equal(spec.Env, want) {
		t.Errorf("environment %q, want %q", spec.Env, want)
	}
	if want := []job.HostSlots{{Node: "n1", Slots: 2}, {Node: "n2", Slots: 2}, {Node: "n5", Spare: true}}; !slices.Equal(spec.Hosts, want) {
		t.Errorf("hosts %+v", spec.Hosts)
	}
	if spec.Name != "sh" || spec.Dir != dir || spec.Ranks != 2 || !slices.Equal(spec.Argv[1:], []string{"-c", "true"}) || spec.CkptInterval != 30*time.Second {
		t.Errorf("%+v", spec)
	}
	o, err = parse(strings.Fields("-n 2 -genvlist PATH -env A 9 sh : -n 3 -wdir / -x A sh -c true"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if spec, err = buildSpec(o, environ, dir); err != nil {
		t.Fatal(err)
	}
	want := []job.Program{{Ranks: 3, Argv: []string{spec.Argv[0], "-c", "true"}, Env: []string{"PATH=/bin:/usr/bin", "A=1", "PWD=/"}, Dir: "/"}}
	if d := cmp.Diff(want, spec.More); d != "" || spec.Ranks != 5 || !slices.Contains(spec.Env, "A=9") {
		t.Errorf("%+v: %s", spec, d)
	}
	for args, want := range map[string]int{
		"sh : nosuchprogramm": job.ExitUsage,
		"-wdir /nowhere sh":   job.ExitUsage,
		"-f /nowhere sh":      job.ExitConfig,
		"-H a[ sh":            job.ExitUsage,
		"-n 2 nosuchprogramm": job.ExitUsage,
	} {
		o, err := parse(strings.Fields(args), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := buildSpec(o, environ, dir); ExitCode(err) != want {
			t.Errorf("%s: exit %d (%v), want %d", args, ExitCode(err), err, want)
		}
	}
}
