package bench

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Row is one line of a report: what was measured, what is asked for, and
// whether that is met.
type Row struct {
	Name    string `json:"name"`
	Unit    string `json:"unit,omitempty"`
	Sample  Sample `json:"sample"`
	Bar     string `json:"bar,omitempty"`     // what is asked of the median
	Verdict string `json:"verdict,omitempty"` // met, missed, or nothing without a bar
	Note    string `json:"note,omitempty"`
}

// Verdicts of a Row.
const (
	Met    = "met"
	Missed = "missed"
)

// noise is how far a ratio of equals strays on a quiet machine: medians of the
// same program against itself lay within 2 %.
const noise = 0.02

// Bars, in the unit of their rows; stall and recovery at 500 MB on 4 ranks.
const (
	launchBar   = 300.0
	ratioBar    = 1.00 + noise
	overheadBar = 1.02
	stallBar    = 30.0
	pauseBar    = 150.0
	rebootBar   = 0.2
)

// rows collects the lines of a report.
type rows struct{ list []Row }

func (l *rows) add(name, unit string, s Sample, note string) {
	l.list = append(l.list, Row{Name: name, Unit: unit, Sample: s, Note: note})
}

// judge adds a row whose median shall be at most bar.
func (l *rows) judge(name, unit string, s Sample, bar float64, text, note string) {
	verdict := Met
	if s.Median > bar {
		verdict = Missed
	}
	l.list = append(l.list, Row{Name: name, Unit: unit, Sample: s, Bar: text, Verdict: verdict, Note: note})
}

// Rows are the lines of a report on r, parts below what they are parts of.
func (r Result) Rows() []Row {
	var l rows
	if x := r.Launch; x != nil {
		l.judge(fmt.Sprintf("launch of true on %d nodes", r.Ranks), "ms", x.LamMS, launchBar, "< 300", "")
		l.add("  mpiexec.hydra", "ms", x.LoopMS, "on one node")
	}
	for _, k := range r.Ratio {
		l.ratios(k.Kernel+" without checkpoints", "s", [allWays]Sample{k.LamS, k.PlainS, k.LoopS}, k.ToPlain, k.ToLoop)
	}
	for _, n := range r.NetPIPE {
		l.ratios(fmt.Sprintf("NetPIPE, %d bytes one way", n.Bytes), "us", [allWays]Sample{n.LamUS, n.PlainUS, n.LoopUS}, n.ToPlain, n.ToLoop)
		if n.Bytes >= 1<<20 && n.LamUS.Min > 0 {
			gbit := func(us float64) float64 { return float64(n.Bytes) * 8 / us / 1000 }
			l.list[len(l.list)-5].Note = fmt.Sprintf("%.0f Gb/s; plain %.0f, loopback %.0f", gbit(n.LamUS.Median), gbit(n.PlainUS.Median), gbit(n.LoopUS.Median))
		}
	}
	if o := r.Overhead; o != nil {
		l.add("run without checkpoints", "s", o.WithoutS, "")
		l.add(fmt.Sprintf("  every %.0f s", o.IntervalS), "s", o.WithS, fmt.Sprintf("%d epochs; %d MB dirty per rank and interval", o.Epochs, o.DirtyMB))
		l.judge("  ratio", "", o.RatioOf, overheadBar, "<= 1.02", "")
	}
	r.recoveryRows(&l)
	return l.list
}

// ratios adds what was measured in all ways.
func (l *rows) ratios(name, unit string, each [allWays]Sample, toPlain, toLoop Sample) {
	l.add(name, unit, each[byLam], "")
	l.add("  mpiexec.hydra on plain nodes", unit, each[byPlain], "network namespaces, veth, bridge")
	l.add("  mpiexec.hydra over loopback", unit, each[byLoop], "")
	l.judge("  ratio to plain nodes", "", toPlain, ratioBar, "<= 1.00 + 0.02 noise", "")
	l.add("  ratio to loopback", "", toLoop, "no network at all")
}

// recoveryRows adds what checkpoints and losses cost.
func (r Result) recoveryRows(l *rows) {
	if s := r.Stall; s != nil {
		l.judge(fmt.Sprintf("stall of a checkpoint of %d MB", s.MB), "ms", s.Parts["stall_ms"], stallBar, "<= 30 at 500 MB", "")
		l.parts(s.Parts, "stall_ms")
	}
	if c := r.Recovery; c != nil {
		note := "digests equal"
		if !c.Equal {
			note = "DIGESTS DIFFER"
		}
		l.judge(fmt.Sprintf("recovery at %d MB without detection and fence", c.MB), "ms", c.PauseMS, pauseBar, "<= 150 at 500 MB", note)
		if !c.Equal {
			l.list[len(l.list)-1].Verdict = Missed
		}
		l.parts(c.Parts, "")
	}
	if s := r.Restart; s != nil {
		l.add("whole-job restart from images", "ms", s.RestartMS, "")
		l.add("  halt and boot before it", "ms", s.RebootMS, "")
		if s.PauseToReboot > 0 {
			l.add("  pause / restart", "", Summarize([]float64{s.PauseToRestart}), "")
			l.judge("  pause / restart with reboot", "", Summarize([]float64{s.PauseToReboot}), rebootBar, "<= 0.2", "")
		}
	}
}

// leastPart is the shortest part that is worth a line, in ms; the JSON has all.
const leastPart = 1.0

// parts adds the samples of a map but the one called except, by size.
func (l *rows) parts(m map[string]Sample, except string) {
	names := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(m[b].Median, m[a].Median), cmp.Compare(a, b))
	})
	for _, name := range names {
		if name != except && m[name].Median >= leastPart {
			l.add("  "+strings.TrimSuffix(name, "_ms"), "ms", m[name], "")
		}
	}
}
