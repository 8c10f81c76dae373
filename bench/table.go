package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Formats of Write.
const (
	Table    = "table" // for people at a terminal
	Markdown = "md"    // for docs/measurements.md
	JSON     = "json"  // the Result, with its rows
)

// Write prints a Result in one of the formats.
//
// Expected errors: another format; those of w.
func Write(w io.Writer, r Result, format string) error {
	var err error
	switch format {
	case Table:
		err = writeTable(w, r)
	case Markdown:
		err = writeMarkdown(w, r)
	case JSON:
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		err = e.Encode(struct {
			Result
			Rows []Row `json:"rows"`
		}{r, r.Rows()})
	default:
		return fmt.Errorf("bench: format %q: not %s, %s or %s", format, Table, Markdown, JSON)
	}
	if err != nil {
		return fmt.Errorf("bench: print: %w", err)
	}
	return nil
}

// where says where the figures come from.
func (r Result) where() string {
	who := "an ordinary user"
	if r.Machine.Root {
		who = "root"
	}
	return fmt.Sprintf("%d ranks, %d cores, %s, Linux %s, as %s, %s, load %.2f at the start",
		r.Ranks, r.Machine.Cores, r.Machine.CPU, r.Machine.Kernel, who, r.Machine.Date, r.Machine.Load)
}

func writeTable(w io.Writer, r Result) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintf(t, "%s\n\nMEASUREMENT\tUNIT\tMEDIAN\tMIN\tMAX\tN\tBAR\tVERDICT\tNOTE\n", r.where()) // kept for Flush
	for _, x := range r.Rows() {
		s := x.Sample
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n",
			x.Name, x.Unit, figure(s.Median), figure(s.Min), figure(s.Max), s.N, x.Bar, x.Verdict, x.Note)
	}
	return t.Flush()
}

// writeMarkdown prints the table of docs/measurements.md. Parts are indented by
// a dash.
func writeMarkdown(w io.Writer, r Result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. Medians (minimum to maximum, number of runs).\n\n| what | measured | bar | verdict |\n|---|---|---|---|\n", r.where())
	for _, x := range r.Rows() {
		name := x.Name
		if part, ok := strings.CutPrefix(name, "  "); ok {
			name = "– " + part
		}
		s := x.Sample
		value := strings.TrimSuffix(figure(s.Median)+" "+x.Unit, " ")
		if s.N > 1 {
			value += fmt.Sprintf(" (%s to %s, %d)", figure(s.Min), figure(s.Max), s.N)
		}
		if x.Note != "" {
			value += "; " + x.Note
		}
		verdict := x.Verdict
		if verdict == Missed {
			verdict = "**" + verdict + "**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, value, x.Bar, verdict)
	}
	_, err := io.WriteString(w, b.String())
	return err
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
