package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestWatch: what stays the same is printed once, a moment without an answer
// ends nothing, and the end of the context is no error.
func TestWatch(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		a, stdout, _ := testApp(nil)
		a.Terminal = terminal
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		err := a.watch(ctx, time.Millisecond, time.Hour, func(a *App) error {
			n++
			switch n {
			case 1, 2, 3, 5:
				fmt.Fprintln(a.Stdout, "one")
			case 4:
				fmt.Fprintln(a.Stdout, "half")
				return errors.New("no leader")
			case 6:
				fmt.Fprintln(a.Stdout, "two")
			default:
				cancel()
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		want := "one\nno leader\none\ntwo\n"
		if terminal {
			want = strings.ReplaceAll("Xone\nXno leader\nXone\nXtwo\n", "X", "\x1b[H\x1b[2J")
		}
		if got := stdout.String(); got != want {
			t.Errorf("terminal %v: %q, want %q", terminal, got, want)
		}
	}
}

// TestWatchFails: a cluster that is not there, or does not come back.
func TestWatchFails(t *testing.T) {
	a, _, _ := testApp(nil)
	gone := errors.New("gone")
	if err := a.watch(t.Context(), time.Millisecond, time.Hour, func(*App) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("the first time: %v", err)
	}
	n := 0
	err := a.watch(t.Context(), time.Millisecond, 0, func(*App) error {
		if n++; n > 1 {
			return gone
		}
		return nil
	})
	if !errors.Is(err, gone) || n < 2 {
		t.Errorf("after a while: %v", err)
	}
}
