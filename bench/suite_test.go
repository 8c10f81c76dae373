package bench

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

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
	r, err := start(t.Context(), os.Environ(), nil, "sh", "-c", "echo no cluster >&2; exit 69")
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
		Launch: &Launch{LamMS: s, HydraMS: s}, Ratio: []RatioResult{{Kernel: "cg.B", LamS: s, HydraS: s, RatioOf: s}},
		Overhead: &Overhead{IntervalS: 30, DirtyMB: 64, WithS: s, WithoutS: s, RatioOf: s, Epochs: 4},
		Stall:    &Stall{MB: 500, Parts: map[string]Sample{"stall_ms": s, "write_ms": Summarize([]float64{500}), "copy_ms": Summarize([]float64{10})}},
		Recovery: &Recovery{MB: 500, Parts: map[string]Sample{"total": s}, PauseMS: s, Equal: true},
		Restart:  &Restart{RestartMS: s, RebootMS: s, PauseToRestart: 0.3, PauseToReboot: 0.1},
	}
	var out bytes.Buffer
	if err := WriteTable(&out, r); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"4 ranks, 4 cores, cpu, Linux 6.18, as root", "checkpoint of 500 MB: stall", "digests equal", "cg.B without checkpoints", "0.100"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if i, j := strings.Index(out.String(), "  write"), strings.Index(out.String(), "  copy"); i < 0 || j < i {
		t.Errorf("parts are not sorted by size:\n%s", out.String())
	}
}

// lamProgram is the built lam, as `./run test` and `./run bench` provide it.
func lamProgram(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv("LAM_BIN")
	if dir == "" {
		tb.Skip("needs built programs: set LAM_BIN (./run test does)")
	}
	lam, err := filepath.Abs(filepath.Join(dir, "lam"))
	if err != nil {
		tb.Fatal(err)
	}
	for _, tool := range []string{lam, "mpicc", "mpiexec.hydra"} {
		if _, err := exec.LookPath(tool); err != nil {
			tb.Skipf("needs %s: %v", tool, err)
		}
	}
	return lam
}

// BenchmarkSuite measures everything once; it takes about ten minutes.
func BenchmarkSuite(b *testing.B) {
	lam := lamProgram(b)
	for b.Loop() {
		s := Suite{Lam: lam, Rounds: 3, Log: zerolog.New(zerolog.NewTestWriter(b))}
		r, err := s.Run(b.Context())
		var table bytes.Buffer
		if werr := WriteTable(&table, r); werr != nil {
			b.Fatal(werr)
		}
		b.Log("\n" + table.String())
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Round(time.Second))/float64(time.Second), "s/suite")
}
