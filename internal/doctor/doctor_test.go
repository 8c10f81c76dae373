package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain lets the test binary be its own stages.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "stage" {
		if err := config().RunStage(context.Background(), os.Args[2], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(m.Run())
}

func config() Config {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Config{
		Stage:   func(name string) []string { return []string{exe, "stage", name} },
		Runtime: "/tmp/lam", State: os.TempDir(), Look: exec.LookPath,
	}
}

// On a machine on which the other tests can run at all, everything they need
// is found, by name.
func TestRun(t *testing.T) {
	all := Run(t.Context(), config())
	seen := map[string]Result{}
	for _, r := range all {
		t.Logf("%-40s %-8s %s %s", r.Check, r.Status, r.Detail, r.Cure)
		if _, twice := seen[r.Check]; twice || r.Detail == "" {
			t.Errorf("%+v", r)
		}
		if r.Status != OK && r.Cure == "" {
			t.Errorf("%s: no cure is named", r.Check)
		}
		seen[r.Check] = r
	}
	if r := seen[checkUserns]; r.Status != OK {
		t.Skipf("no user namespaces here: %s", r.Detail)
	}
	for _, want := range []string{checkMounts, checkSwitch, checkNested, checkLink, checkRepair, checkPIDs} {
		if seen[want].Status == "" {
			t.Errorf("%s was not checked", want)
		}
	}
}

func TestNoNamespaces(t *testing.T) {
	c := config()
	c.Stage = func(string) []string { return []string{"/bin/false"} }
	all := c.stages(t.Context())
	if len(all) != 1 || all[0].Status != Missing || all[0].Check != checkUserns || Healthy(all) {
		t.Errorf("%+v", all)
	}
}

func TestProgramsMissing(t *testing.T) {
	c := config()
	c.Look = func(string) (string, error) { return "", exec.ErrNotFound }
	for _, r := range c.programs(t.Context()) {
		if r.Check != "MPICH" && (r.Status != Warn || !strings.Contains(r.Cure, "apt-get install")) {
			t.Errorf("%+v", r)
		}
	}
}

func TestRoom(t *testing.T) {
	c := Config{Runtime: "/" + strings.Repeat("x", 100), State: filepath.Join(t.TempDir(), "not", "yet")}
	byName := map[string]Result{}
	for _, r := range c.room() {
		byName[r.Check] = r
	}
	if r := byName["runtime directory"]; r.Status != Missing || !strings.Contains(r.Cure, "LAM_RUNTIME_DIR") {
		t.Errorf("%+v", r)
	}
	if r := byName["disk"]; r.Status == Missing || strings.Contains(r.Detail, "not/yet") {
		t.Errorf("%+v", r)
	}
}

func TestVersion(t *testing.T) {
	for release, want := range map[string][2]int{"6.18.44-fc": {6, 18}, "5.9": {5, 9}, "6": {6, 0}, "": {0, 0}, "x.y": {0, 0}} {
		if a, b := version(release); [2]int{a, b} != want {
			t.Errorf("%q: %d.%d", release, a, b)
		}
	}
}

func TestResult(t *testing.T) {
	if r := result("c", nil, "fine", Missing, "cure"); r.Status != OK || r.Cure != "" || r.Detail != "fine" {
		t.Errorf("%+v", r)
	}
	if r := result("c", errors.New("no"), "fine", Warn, "cure"); r.Status != Warn || r.Cure != "cure" || r.Detail != "no" {
		t.Errorf("%+v", r)
	}
}
