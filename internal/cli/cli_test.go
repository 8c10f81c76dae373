package cli

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/doctor"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

// testApp returns an App that writes to the two buffers.
func testApp(env map[string]string) (a *App, stdout, stderr *bytes.Buffer) {
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	return &App{
		Stdin: strings.NewReader(""), Stdout: stdout, Stderr: stderr, Format: formatTable,
		Env: paths.Env{Get: func(k string) string { return env[k] }, UID: 1500, Temp: "/nonexistent"},
	}, stdout, stderr
}

func TestErrorsAreOneLine(t *testing.T) {
	for _, tc := range []struct {
		args string
		exit int
		want string
	}{
		{"nods", job.ExitUsage, `did you mean "nodes"?`},
		{"zzzzzzzz", job.ExitUsage, `lam --help lists all`},
		{"boot --loacl 3", job.ExitUsage, "did you mean --local?"},
		{"boot --xyzzy", job.ExitUsage, "unknown flag: --xyzzy"},
		{"boot --local 99999999999999999999", job.ExitUsage, "not a whole number of this size"},
		{"boot -z", job.ExitUsage, "unknown shorthand flag"},
		{"nodes", job.ExitNoNodes, "/nonexistent/lam-1500"},
		{"halt", job.ExitNoNodes, "no local cluster"},
		{"nodes extra", job.ExitUsage, "unexpected argument"},
		{"doctor --stage nowhere", job.ExitInternal, `unknown stage "nowhere"`},
	} {
		t.Run(tc.args, func(t *testing.T) {
			a, stdout, stderr := testApp(nil)
			if got := a.Run(t.Context(), strings.Fields(tc.args)); got != tc.exit {
				t.Errorf("exit code %d, want %d", got, tc.exit)
			}
			line := stderr.String()
			if !strings.HasPrefix(line, "lam: ") || strings.Count(line, "\n") != 1 || !strings.Contains(line, tc.want) {
				t.Errorf("stderr %q, want one line with %q", line, tc.want)
			}
			if stdout.Len() > 0 {
				t.Errorf("stdout %q", stdout)
			}
		})
	}
}

func TestEveryCommandHasHelp(t *testing.T) {
	a, _, _ := testApp(nil)
	for _, c := range newRoot(a).Commands() {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short help %q", c.Name(), c.Short)
		}
		a, stdout, _ := testApp(nil)
		if code := a.Run(t.Context(), []string{c.Name(), "--help"}); code != 0 || stdout.Len() == 0 {
			t.Errorf("%s --help: exit code %d, %d bytes", c.Name(), code, stdout.Len())
		}
	}
}

func TestExitCode(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{WithExit(3, errors.New("x")), 3},
		{fmt.Errorf("outer: %w", WithExit(3, nil)), 3},
		{&control.Error{Exit: job.ExitCheckpoint}, job.ExitCheckpoint},
		{errors.New("anything"), job.ExitInternal},
	} {
		if got := exitCode(tc.err); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.err, got, tc.want)
		}
	}
}

func TestShowHealth(t *testing.T) {
	all := []doctor.Result{
		{Check: "one", Status: doctor.OK, Detail: "fine"},
		{Check: "two", Status: doctor.Warn, Detail: "so so", Cure: "rest"},
	}
	a, stdout, _ := testApp(nil)
	if err := a.showHealth(all); err != nil {
		t.Errorf("a warning is no failure: %v", err)
	}
	if got := stdout.String(); !strings.Contains(got, "one    OK      fine\n") || !strings.Contains(got, "\ntwo: rest\n") || strings.Contains(got, "\x1b") {
		t.Errorf("%q", got)
	}
	all[0].Status = doctor.Missing
	if err := a.showHealth(all); exitCode(err) != exitUnhealthy {
		t.Errorf("error %v", err)
	}
	a.Color = true
	stdout.Reset()
	_ = a.showHealth(all)
	if !strings.Contains(stdout.String(), "\x1b[31mmissing\x1b[0m") {
		t.Errorf("no colour: %q", stdout)
	}
	a.Format = formatJSON
	stdout.Reset()
	_ = a.showHealth(all)
	if strings.Contains(stdout.String(), "\x1b") || !strings.Contains(stdout.String(), `"cure": "rest"`) {
		t.Errorf("%q", stdout)
	}
}

func TestVersionString(t *testing.T) {
	v := Version{Version: "v1", Revision: "abc", Go: "go1.26"}
	if got := v.String(); got != "lampause v1 (abc) go1.26" {
		t.Error(got)
	}
	if BuildVersion().Go == "" {
		t.Error("the build says nothing of its Go version")
	}
}
