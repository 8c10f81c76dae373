package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// idleLimit is how long a stream may be silent before it is opened anew, in
// case the lamd at the other end hangs.
const idleLimit = time.Minute

// Output calls take with every frame of the job's output until the job has
// ended. at returns the position from which to read; it is asked whenever the
// stream is opened anew, because the lamd at its other end died. Frames may
// repeat what was seen before and go back to lower offsets after a rollback of
// the job. Frames are passed on from one goroutine, the caller's.
//
// Expected errors: *Error; the context's; whatever take returned.
func (c *Client) Output(ctx context.Context, id job.ID, at func() Cursor, take func(podapi.Output) error) error {
	return follow(ctx, func(ctx context.Context, alive func()) (bool, error) {
		path := jobPath(id, "/output")
		if from := at().String(); from != "" {
			path += "?from=" + url.QueryEscape(from)
		}
		return lines(ctx, c, path, func(o podapi.Output) error {
			alive()
			return take(o)
		})
	})
}

// Events calls take with the events that f chooses, in the order of their
// Seq; with f.Follow until ctx ends, and no event twice.
//
// Expected errors: *Error; the context's; whatever take returned.
func (c *Client) Events(ctx context.Context, f EventFilter, take func(Event) error) error {
	return follow(ctx, func(ctx context.Context, alive func()) (bool, error) {
		done, err := lines(ctx, c, "/v1/events"+f.query(), func(e Event) error {
			alive()
			if e.Seq != 0 && e.Seq <= f.After {
				return nil
			}
			f.After = max(f.After, e.Seq)
			return take(e)
		})
		return done && !f.Follow, err
	})
}

// takeError wraps what the consumer of a stream returned.
type takeError struct{ err error }

func (e *takeError) Error() string { return e.err.Error() }
func (e *takeError) Unwrap() error { return e.err }

// follow keeps a stream open: read is called until it says that the stream
// ended, or fails for good. alive postpones the idle limit.
func follow(ctx context.Context, read func(ctx context.Context, alive func()) (bool, error)) error {
	for {
		attempt, cancel := context.WithCancel(ctx)
		idle := time.AfterFunc(idleLimit, cancel)
		done, err := read(attempt, func() { idle.Reset(idleLimit) })
		idle.Stop()
		cancel()
		var taken *takeError
		var refused *Error
		switch {
		case done && err == nil:
			return nil
		case errors.As(err, &taken):
			return taken.err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &refused):
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(retryPause):
		}
	}
}

// lines reads JSON lines of type T. It returns true when the server ended the
// stream as it should, at the end of a chunked body.
func lines[T any](ctx context.Context, c *Client, path string, take func(T) error) (bool, error) {
	resp, err := c.send(ctx, request{method: http.MethodGet, path: path, again: true, open: true, patient: true})
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	dec := json.NewDecoder(resp.Body)
	for {
		var v T
		if err := dec.Decode(&v); err != nil {
			if errors.Is(err, io.EOF) {
				return true, nil
			}
			return false, fmt.Errorf("stream %s: %w", path, err)
		}
		if err := take(v); err != nil {
			return false, &takeError{err}
		}
	}
}
