package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/lampause/lampause/job"
)

// Deadlines of the client. A lamd that does not lead may wait up to 10 s for
// an election before it answers.
const (
	dialTimeout   = 2 * time.Second
	answerTimeout = 20 * time.Second
	retryPause    = 100 * time.Millisecond
	retryFor      = 15 * time.Second
)

// HeaderKey carries the key of a submission.
const HeaderKey = "X-Lam-Key"

// ErrNoDaemon says that no lamd could be reached: none was booted, or all are
// dead.
var ErrNoDaemon = errors.New("no lamd answers")

// Client talks to whichever lamd of the cluster answers. When the one it talks
// to dies, calls that may be repeated go on with another. It is safe for
// concurrent use; it holds no connection that needs to be closed when idle.
type Client struct {
	sockets func() []string
	where   string

	mu   sync.Mutex
	last string // the socket that answered last, tried first
}

// NewClient returns a client of the cluster whose lamds listen on the unix
// sockets that the function lists; it is called anew for every attempt, so
// nodes may come and go. where names the place in error messages: the runtime
// directory.
func NewClient(sockets func() []string, where string) *Client {
	return &Client{sockets: sockets, where: where}
}

// request is one call. again says that it may be sent twice: it only reads, or
// its second arrival changes nothing.
type request struct {
	method, path string
	body         []byte
	key          string // makes a submission one, however often it arrives
	again        bool
	open         bool // the answer may take as long as ctx allows
	patient      bool // a lamd without a leader is waited for as long as ctx allows
}

// call sends r and decodes the answer into out, unless that is nil.
//
// Expected errors: *Error as the server put it; ErrNoDaemon; the context's.
func (c *Client) call(ctx context.Context, r request, out any) error {
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("answer to %s %s: %w", r.method, r.path, err)
	}
	return nil
}

// send tries the lamds in turn until one answers r. The caller closes the
// body of the response, whose status is 2xx.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	var deadline time.Time // counts from the first failure: an answer may take long before
	for {
		resp, err := c.round(ctx, r)
		var stop *stopError
		var refused *Error
		if errors.As(err, &refused) && r.patient || deadline.IsZero() {
			deadline = time.Now().Add(retryFor)
		}
		switch {
		case err == nil:
			return resp, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.As(err, &stop):
			return nil, stop.err
		case refused != nil && time.Now().After(deadline):
			return nil, refused
		case errors.Is(err, errNoSocket), !r.again, time.Now().After(deadline):
			return nil, &Error{
				Message: fmt.Sprintf("%v in %s: %v", ErrNoDaemon, c.where, err),
				Exit:    job.ExitNoNodes,
				cause:   ErrNoDaemon,
			}
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(retryPause):
		}
	}
}

// stopError wraps an error after which no other lamd is asked.
type stopError struct{ err error }

func (e *stopError) Error() string { return e.err.Error() }
func (e *stopError) Unwrap() error { return e.err }

var errNoSocket = errors.New("nothing is booted there (see `lam boot`)")

// round asks every lamd once.
func (c *Client) round(ctx context.Context, r request) (*http.Response, error) {
	sockets := c.order()
	if len(sockets) == 0 {
		return nil, errNoSocket
	}
	var last error
	for _, s := range sockets {
		resp, err := c.ask(ctx, s, r)
		if err == nil {
			c.mu.Lock()
			c.last = s
			c.mu.Unlock()
			return resp, nil
		}
		var stop *stopError
		if errors.As(err, &stop) || ctx.Err() != nil {
			return nil, err
		}
		// A lamd that answered tells more than a dead node's socket, whichever
		// was asked last.
		var refused *Error
		if !errors.As(last, &refused) {
			last = err
		}
	}
	return nil, last
}

// order returns the sockets: the one that answered last, then the others in
// an order that spreads clients over the nodes.
func (c *Client) order() []string {
	all := c.sockets()
	c.mu.Lock()
	last := c.last
	c.mu.Unlock()
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for i, s := range all {
		if s == last {
			all[0], all[i] = all[i], all[0]
		}
	}
	return all
}

// ask sends r to one lamd. An error that forbids asking another is a
// *stopError: the server's own, or one after which it is not known whether a
// request that must not be repeated arrived.
func (c *Client) ask(ctx context.Context, socket string, r request) (*http.Response, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	resp, err := roundTrip(ctx, conn, r)
	if err != nil {
		_ = conn.Close()
		if !r.again {
			return nil, &stopError{&Error{
				Message: fmt.Sprintf("lost the lamd during %s %s: it may have been done: %v", r.method, r.path, err),
				Exit:    job.ExitInternal, cause: err,
			}}
		}
		return nil, err
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	err = readError(resp)
	_ = resp.Body.Close()
	if resp.StatusCode == http.StatusServiceUnavailable && r.again {
		return nil, err
	}
	return nil, &stopError{err}
}

// roundTrip speaks HTTP over conn, which the body of the response owns.
func roundTrip(ctx context.Context, conn net.Conn, r request) (*http.Response, error) {
	used := false
	tr := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if used {
				return nil, net.ErrClosed
			}
			used = true
			return conn, nil
		},
		DisableKeepAlives:  true,
		DisableCompression: true,
	}
	if !r.open {
		tr.ResponseHeaderTimeout = answerTimeout
	}
	req, err := http.NewRequestWithContext(ctx, r.method, "http://lamd"+r.path, bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	if len(r.body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.key != "" {
		req.Header.Set(HeaderKey, r.key)
	}
	return tr.RoundTrip(req)
}

// maxErrorBody bounds what is read of a refusal, in bytes.
const maxErrorBody = 64 << 10

func readError(resp *http.Response) error {
	e := &Error{Status: resp.StatusCode, Exit: job.ExitInternal}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		e.Message = fmt.Sprintf("lamd answered %s, then: %v", resp.Status, err)
		return e
	}
	if json.Unmarshal(text, e) != nil || e.Message == "" {
		e.Message = fmt.Sprintf("lamd answered %s: %.200s", resp.Status, bytes.TrimSpace(text))
	}
	if e.Exit == 0 {
		e.Exit = job.ExitInternal
	}
	return e
}

// ExitCode returns the exit code that a command should end with after err: 0
// for nil, an Error's own, else job.ExitInternal.
func ExitCode(err error) int {
	var e *Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e) && e.Exit != 0:
		return e.Exit
	default:
		return job.ExitInternal
	}
}
