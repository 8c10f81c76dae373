package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/job"
)

func TestSummarize(t *testing.T) {
	s := Summarize([]float64{4, 1, 3, 2})
	if s.Median != 2.5 || s.Min != 1 || s.Max != 4 || s.N != 4 || s.P90 < 3.6 || s.P90 > 3.8 || s.Values[0] != 4 {
		t.Errorf("%+v", s)
	}
	if s := Summarize([]float64{7}); s.Median != 7 || s.P90 != 7 {
		t.Errorf("%+v", s)
	}
	if s := Summarize(nil); s.N != 0 {
		t.Errorf("%+v", s)
	}
	if d := cmp.Diff([]float64{2, 0.5}, Ratios([]float64{4, 9, 1, 8}, []float64{2, 0, 2})); d != "" {
		t.Error(d)
	}
}

func TestPauseMS(t *testing.T) {
	for _, tt := range []struct {
		bill map[string]float64
		want float64
	}{
		{map[string]float64{"total": 2100, "detect": 900, "fence": 2000}, 100},
		{map[string]float64{"total": 10, "detect": 900, "fence": 11}, 0},
		{map[string]float64{"stop": 1, "rollback": 90, "restore": 80, "rewire": 2, "refill": 3}, 96},
	} {
		if got := PauseMS(tt.bill); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.bill, got, tt.want)
		}
	}
}

func TestSeconds(t *testing.T) {
	if v, ok := (Outcome{Stdout: "x\n# time 1.500 s\n# time 3 Mop/s\n"}).Seconds(); !ok || v != 1.5 {
		t.Errorf("%v %v", v, ok)
	}
	if _, ok := (Outcome{Stdout: "# time 3 Mop/s\n"}).Seconds(); ok {
		t.Error("found a time where there is none")
	}
}

func TestDigestLines(t *testing.T) {
	got := digests("step 1000 digest 00ff\nx\nstep 2000 digest 01\nstep 30")
	if d := cmp.Diff(map[int]string{1000: "00ff", 2000: "01"}, got); d != "" {
		t.Error(d)
	}
}

func TestJobFinderAndLines(t *testing.T) {
	found := make(chan job.ID, 1)
	f := &jobFinder{found: found}
	for _, part := range []string{"lam run: no", "te\nlam run: jo", "b 4", "2\nlam run: job 9\n"} {
		if _, err := f.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	if id := <-found; id != 42 {
		t.Errorf("job %v", id)
	}
	var lines []string
	b := &lineBuffer{each: func(l string) { lines = append(lines, l) }}
	for _, part := range []string{"a", "b\n\nc\nd"} {
		if _, err := b.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff([]string{"ab", "", "c"}, lines); d != "" || b.String() != "ab\n\nc\nd" {
		t.Errorf("%s, %q", d, b.String())
	}
}

func TestSuiteRefuses(t *testing.T) {
	if _, err := (&Suite{Ranks: 1 << 20}).Run(t.Context()); !errors.Is(err, ErrTooFewCores) {
		t.Error(err)
	}
	if _, err := (&Suite{Ranks: 1, Parts: []string{"nothing"}}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), AllParts) {
		t.Error(err)
	}
}

func TestStartReportsALauncherThatFails(t *testing.T) {
	r, err := start(command(t.Context(), os.Environ(), "sh", "-c", "echo no cluster >&2; exit 69"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Job(t.Context()); err == nil || !strings.Contains(err.Error(), "no cluster") {
		t.Error(err)
	}
	if o, err := r.Wait(); err != nil || o.Code != 69 {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestWriteTable(t *testing.T) {
	s := Summarize([]float64{1, 2, 3})
	r := Result{
		Ranks: 4, Machine: Machine{Cores: 4, CPU: "cpu", Kernel: "6.18", Root: true, Date: "2026-01-01"},
		Launch: &Launch{LamMS: s, LoopMS: s}, Ratio: []RatioResult{{Kernel: "cg.B", LamS: s, PlainS: s, LoopS: s, ToPlain: s, ToLoop: s}},
		NetPIPE:  []NetPIPE{{Bytes: 8, LamUS: s, PlainUS: s, LoopUS: s, ToPlain: s, ToLoop: s}},
		Overhead: &Overhead{IntervalS: 30, DirtyMB: 64, WithS: s, WithoutS: s, RatioOf: s, Epochs: 4},
		Stall:    &Stall{MB: 500, Parts: map[string]Sample{"stall_ms": s, "write_ms": Summarize([]float64{500}), "copy_ms": Summarize([]float64{10})}},
		Recovery: &Recovery{MB: 500, Parts: map[string]Sample{"total": s}, PauseMS: s, Equal: true},
		Restart:  &Restart{RestartMS: s, RebootMS: s, PauseToRestart: 0.3, PauseToReboot: 0.1},
	}
	print := func(format string) string {
		t.Helper()
		var out bytes.Buffer
		if err := Write(&out, r, format); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	table := print(Table)
	for _, want := range []string{
		"4 ranks, 4 cores, cpu, Linux 6.18, as root", "stall of a checkpoint of 500 MB", "digests equal",
		"cg.B without checkpoints", "NetPIPE, 8 bytes", "0.100", "missed", "met",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
	if i, j := strings.Index(table, "  write"), strings.Index(table, "  copy"); i < 0 || j < i {
		t.Errorf("parts are not sorted by size:\n%s", table)
	}
	if md := print(Markdown); !strings.Contains(md, "| – ratio to plain nodes | 2.000 (1.000 to 3.000, 3) | <= 1.00 + 0.02 noise | **missed** |") {
		t.Errorf("markdown:\n%s", md)
	}
	var back struct {
		Ranks int
		Rows  []Row
	}
	if err := json.Unmarshal([]byte(print(JSON)), &back); err != nil || back.Ranks != 4 || len(back.Rows) != len(r.Rows()) {
		t.Errorf("JSON: %+v, %v", back, err)
	}
	if err := Write(io.Discard, r, "xml"); err == nil || !strings.Contains(err.Error(), "table, md or json") {
		t.Error(err)
	}
}

func TestVerdicts(t *testing.T) {
	s := Summarize([]float64{20})
	r := Result{Recovery: &Recovery{MB: 500, PauseMS: s}, Stall: &Stall{MB: 500, Parts: map[string]Sample{"stall_ms": s}}}
	var got []string
	for _, x := range r.Rows() {
		got = append(got, x.Verdict)
	}
	// A recovery with other digests is none, however fast.
	if d := cmp.Diff([]string{Met, Missed}, got); d != "" {
		t.Error(d)
	}
}

func TestNetPIPETimes(t *testing.T) {
	got := netpipeTimes("Now starting the main loop\n  0:       8 bytes    300 times -->      8.82 Mbps in       6.92 usec\n 39: 1048576 bytes      7 times -->  31452.96 Mbps in     254.35 usec\n")
	if d := cmp.Diff(map[int]float64{8: 6.92, 1048576: 254.35}, got); d != "" {
		t.Error(d)
	}
}
