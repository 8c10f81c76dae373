package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// emit prints a listing: v as JSON, or the rows under the header.
func (a *App) emit(v any, header []string, rows [][]string) error {
	if a.Format == formatJSON {
		return a.emitJSON(v)
	}
	return a.emitTable(header, rows)
}

// emitJSON prints v as one indented JSON document.
func (a *App) emitJSON(v any) error {
	e := json.NewEncoder(a.Stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// emitTable prints rows in columns. An empty cell becomes "-", so that every
// column can be cut out by number.
func (a *App) emitTable(header []string, rows [][]string) error {
	w := tabwriter.NewWriter(a.Stdout, 0, 8, 2, ' ', 0)
	line(w, header)
	for _, r := range rows {
		line(w, r)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func line(w io.Writer, cells []string) {
	shown := make([]string, len(cells))
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		shown[i] = c
	}
	_, _ = fmt.Fprintln(w, strings.Join(shown, "\t")) // the writer keeps its error for Flush
}

// note prints a line for people, on stderr, where it disturbs no listing.
func (a *App) note(format string, args ...any) {
	_, _ = fmt.Fprintf(a.Stderr, "lam: "+format+"\n", args...)
}
