package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

func TestStoryLines(t *testing.T) {
	for want, e := range map[string]control.Event{
		"epoch 4 is safe on 2 nodes: 183.1MB, ranks stood still for 12.5 ms": {
			Event: "checkpoint.committed", Epoch: 4, Data: map[string]any{"replicas": 2.0, "bytes": 183_100_000.0, "stall_ms": 12.5},
		},
		"a checkpoint was given up, without harm: two words": {Event: "checkpoint.abandoned", Data: map[string]any{"reason": "two words"}},
		"node n4 is dead: noticed after 602 ms":              {Event: "node.dead", Node: "n4", Data: map[string]any{"detect_ms": 602.0}},
		"recovery to epoch 5: restart of rank 3 (pod 3: n4->n5), rollback in place of all others": {
			Event: "recovery.begun", Epoch: 5, Data: map[string]any{"lost": "rank 3", "to": "pod 3: n4->n5"},
		},
		"": {Event: "node.joined"},
	} {
		if got := storyLine(e); got != want {
			t.Errorf("%s: %q, want %q", e.Event, got, want)
		}
	}
	if got := storyLine(control.Event{Event: "recovery.done"}); !strings.HasPrefix(got, "recovered in 0 ms") {
		t.Errorf("without figures: %q", got)
	}
}

func TestDemoReport(t *testing.T) {
	var out bytes.Buffer
	d := &demo{app: &App{Stdout: &out, Format: formatTable}}
	d.result = demoResult{
		Kernel: "cg.B", Ranks: 4, Undisturbed: 9.1, Disturbed: 12.3, Lost: "n4", Epochs: 5, Equal: true, PauseMS: 170,
		RestartMS: 240, RestartRebootMS: 2000, Digits: "head\nzeta 22.7\ncg.B VERIFICATION SUCCESSFUL\n",
	}
	if err := d.report(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"EQUAL in every digit", "zeta 22.7", "170 ms", "(0.71)", "2000 ms  (0.09)"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	out.Reset()
	d.result.Equal = false
	if err := d.report(); err != nil || !strings.Contains(out.String(), "DIFFERENT") {
		t.Errorf("%v\n%s", err, out.String())
	}
	out.Reset()
	d.app.Format = formatJSON
	var back demoResult
	if err := d.report(); err != nil || json.Unmarshal(out.Bytes(), &back) != nil || back.Lost != "n4" || back.Equal {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestDemoRefuses(t *testing.T) {
	for args, want := range map[string]string{
		"demo --ranks 3":     "a power of two",
		"demo --ranks -1":    "a power of two",
		"demo --kernel lu.A": "lu.A",
		"demo x":             `unexpected argument "x"`,
	} {
		if strings.Contains(args, "kernel") && !haveMPI() {
			continue // it would ask for MPI first
		}
		code, _, stderr := lam(t, t.TempDir(), strings.Fields(args)...)
		if code != job.ExitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, %q", args, code, stderr)
		}
	}
}

func TestDemoTellsHowToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	d := &demo{app: &App{Env: paths.Env{UID: 1500}}}
	if err := d.install(t.Context()); exitCode(err) != job.ExitNoNodes || !strings.Contains(err.Error(), "sudo apt-get install") {
		t.Error(err)
	}
}
