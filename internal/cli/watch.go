package cli

import (
	"bytes"
	"context"
	"fmt"
	"time"
)

const (
	// watchEvery is how often a watched listing is made anew.
	watchEvery = time.Second
	// watchPatience is how long the cluster may fail to answer a watch, as it
	// does between two leaders.
	watchPatience = 15 * time.Second
)

// watchHelp describes --watch.
const watchHelp = "go on: print the list again whenever it changes (Ctrl-C ends it)"

// list shows a listing once, or with watch again whenever it has changed: on a
// terminal in place of the one before, elsewhere after it. It ends with ctx,
// which is no error, or when show has failed for too long.
func (a *App) list(ctx context.Context, watch bool, show func(*App) error) error {
	if !watch {
		return show(a)
	}
	return a.watch(ctx, watchEvery, watchPatience, show)
}

func (a *App) watch(ctx context.Context, every, patience time.Duration, show func(*App) error) error {
	var last string
	var good time.Time // when show succeeded last
	for {
		var b bytes.Buffer
		frame := *a
		frame.Stdout = &b
		err := show(&frame)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // Ctrl-C is how one ends it
		case err == nil:
			good = time.Now()
		case good.IsZero() || time.Since(good) > patience:
			return err
		default:
			b.Reset()
			fmt.Fprintf(&b, "%v\n", err)
		}
		if b.String() != last {
			last = b.String()
			wipe := ""
			if a.Terminal {
				wipe = "\x1b[H\x1b[2J"
			}
			if _, err := fmt.Fprint(a.Stdout, wipe, last); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}
