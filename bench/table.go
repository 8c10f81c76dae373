package bench

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// WriteTable prints a Result for people.
//
// Expected errors: those of w.
func WriteTable(w io.Writer, r Result) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) } // kept for Flush
	who := "an ordinary user"
	if r.Machine.Root {
		who = "root"
	}
	line("%d ranks, %d cores, %s, Linux %s, as %s, %s", r.Ranks, r.Machine.Cores, r.Machine.CPU, r.Machine.Kernel, who, r.Machine.Date)
	line("\nMEASUREMENT\tUNIT\tMEDIAN\tMIN\tMAX\tN\tNOTE")
	row := func(name, unit string, s Sample, note string) {
		line("%s\t%s\t%s\t%s\t%s\t%d\t%s", name, unit, figure(s.Median), figure(s.Min), figure(s.Max), s.N, note)
	}
	if l := r.Launch; l != nil {
		row("launch of true", "ms", l.LamMS, "")
		row("  mpiexec.hydra", "ms", l.HydraMS, "")
	}
	for _, k := range r.Ratio {
		row(k.Kernel+" without checkpoints", "s", k.LamS, "")
		row("  mpiexec.hydra", "s", k.HydraS, "same transport")
		row("  ratio", "", k.RatioOf, "aim <= 1.00")
	}
	if o := r.Overhead; o != nil {
		row("run without checkpoints", "s", o.WithoutS, "")
		row(fmt.Sprintf("  every %.0f s", o.IntervalS), "s", o.WithS, fmt.Sprintf("%d epochs, %d MB dirty per rank and interval", o.Epochs, o.DirtyMB))
		row("  ratio", "", o.RatioOf, "aim <= 1.02")
	}
	if s := r.Stall; s != nil {
		parts(row, fmt.Sprintf("checkpoint of %d MB: ", s.MB), s.Parts, "stall_ms", "aim <= 30 ms at 500 MB")
	}
	if c := r.Recovery; c != nil {
		equal := "digests equal"
		if !c.Equal {
			equal = "DIGESTS DIFFER"
		}
		row(fmt.Sprintf("recovery at %d MB, without detection and fence", c.MB), "ms", c.PauseMS, "aim <= 150; "+equal)
		parts(row, "  ", c.Parts, "total", "")
	}
	if s := r.Restart; s != nil {
		row("whole-job restart from images", "ms", s.RestartMS, ratioNote(s.PauseToRestart))
		row("  halt and boot before it", "ms", s.RebootMS, "")
		line("pause / restart with reboot\t\t%s\t\t\t\taim <= 0.2", figure(s.PauseToReboot))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("bench: print: %w", err)
	}
	return nil
}

func ratioNote(v float64) string {
	if v == 0 {
		return ""
	}
	return "pause / restart = " + figure(v)
}

// parts prints the samples of a map, the one called first before the others,
// which follow by size.
func parts(row func(name, unit string, s Sample, note string), prefix string, m map[string]Sample, first, note string) {
	if s, ok := m[first]; ok {
		row(prefix+strings.TrimSuffix(first, "_ms"), "ms", s, note)
	}
	names := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(m[b].Median, m[a].Median), cmp.Compare(a, b))
	})
	for _, name := range names {
		if name != first {
			row("  "+strings.TrimSuffix(name, "_ms"), "ms", m[name], "")
		}
	}
}

func figure(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v < 10:
		return fmt.Sprintf("%.3f", v)
	default:
		return fmt.Sprintf("%.1f", v)
	}
}
