package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lampause/lampause/internal/control"
)

func newEvents(a *App) *cobra.Command {
	var f control.EventFilter
	var of string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Print what happened in the cluster",
		Long: `Print what happened in the cluster, oldest first: one line per event, with
-o wide all parts of its durations, with -o json one JSON object per line.
docs/events.md describes them.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if of != "" {
				id, err := jobArg(of)
				if err != nil {
					return err
				}
				f.Job = id
			}
			c, err := a.Client()
			if err != nil {
				return err
			}
			err = c.Events(cmd.Context(), f, a.showEvent)
			if f.Follow && errors.Is(err, context.Canceled) {
				return nil // Ctrl-C is how one ends it
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&f.Follow, "follow", "f", false, "go on printing events as they happen")
	cmd.Flags().StringVar(&of, "job", "", "only events of this job")
	cmd.Flags().Uint64Var(&f.After, "after", 0, "only events after this number (seq)")
	return cmd
}

// showEvent prints one line.
func (a *App) showEvent(e control.Event) error {
	text := a.eventText(e)
	if a.Format == formatJSON {
		line, err := eventJSON(e)
		if err != nil {
			return err
		}
		text = string(line)
	}
	if _, err := fmt.Fprintln(a.Stdout, text); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// eventJSON writes an event as one flat object: time, event, job, epoch, node
// and seq, then the event's own fields in the order of their names.
func eventJSON(e control.Event) ([]byte, error) {
	var b bytes.Buffer
	var failed error
	put := func(key string, v any) {
		text, err := json.Marshal(v)
		if err != nil {
			failed = fmt.Errorf("event %d, %s: %w", e.Seq, key, err)
			return
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%s", key, text)
	}
	put("time", e.Time.UTC().Format(time.RFC3339Nano))
	put("event", e.Event)
	if e.Job != 0 {
		put("job", e.Job)
	}
	if e.Epoch != 0 {
		put("epoch", e.Epoch)
	}
	if e.Node != "" {
		put("node", e.Node)
	}
	put("seq", e.Seq)
	for _, key := range slices.Sorted(maps.Keys(e.Data)) {
		if !slices.Contains([]string{"time", "event", "job", "epoch", "node", "seq"}, key) {
			put(key, e.Data[key])
		}
	}
	return []byte("{" + b.String() + "}"), failed
}

// partMS reports whether key is a duration that only explains another one.
func partMS(key string) bool {
	whole := []string{"stall_ms", "write_ms", "detect_ms", "fence_ms", "rollback_ms", "restore_ms", "total_ms", "lost_work_ms"}
	return strings.HasSuffix(key, "_ms") && !slices.Contains(whole, key)
}

// eventText writes an event for people; the parts of durations only if
// everything is wanted.
func (a *App) eventText(e control.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %-21s", e.Time.Local().Format("15:04:05.000"), e.Event)
	if e.Job != 0 {
		fmt.Fprintf(&b, " job=%v", e.Job)
	}
	if e.Epoch != 0 {
		fmt.Fprintf(&b, " epoch=%d", e.Epoch)
	}
	if e.Node != "" {
		fmt.Fprintf(&b, " node=%s", e.Node)
	}
	for _, key := range slices.Sorted(maps.Keys(e.Data)) {
		if partMS(key) && a.Format != formatWide {
			continue
		}
		fmt.Fprintf(&b, " %s=%s", key, valueText(e.Data[key]))
	}
	return b.String()
}

func valueText(v any) string {
	switch v := v.(type) {
	case string:
		if strings.ContainsAny(v, " =\"\n") || v == "" {
			return fmt.Sprintf("%q", v)
		}
		return v
	case float64:
		if v == float64(int64(v)) {
			return fmt.Sprintf("%d", int64(v))
		}
		return fmt.Sprintf("%.1f", v)
	case []any:
		parts := make([]string, len(v))
		for i, x := range v {
			parts[i] = valueText(x)
		}
		return strings.Join(parts, ",")
	default:
		text, err := json.Marshal(v)
		if err != nil {
			return fmt.Sprint(v)
		}
		return string(text)
	}
}
