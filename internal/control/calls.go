package control

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/lampause/lampause/job"
)

func jobPath(id job.ID, rest string) string { return "/v1/jobs/" + id.String() + rest }

// Nodes lists the nodes of the cluster.
//
// Expected errors: *Error.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var nodes []Node
	err := c.call(ctx, request{method: http.MethodGet, path: "/v1/nodes", again: true}, &nodes)
	return nodes, err
}

// Jobs lists the jobs that the scheduler remembers, oldest first.
//
// Expected errors: *Error.
func (c *Client) Jobs(ctx context.Context) ([]Job, error) {
	var jobs []Job
	err := c.call(ctx, request{method: http.MethodGet, path: "/v1/jobs", again: true}, &jobs)
	return jobs, err
}

// Job describes one job.
//
// Expected errors: *Error, with status 404 for an unknown job.
func (c *Client) Job(ctx context.Context, id job.ID) (JobDetail, error) {
	var d JobDetail
	err := c.call(ctx, request{method: http.MethodGet, path: jobPath(id, ""), again: true}, &d)
	return d, err
}

// Submit starts a job and returns once it is in the log. The submission carries
// a random key, so that it starts one job however often it is sent.
//
// Expected errors: *Error.
func (c *Client) Submit(ctx context.Context, spec job.Spec) (job.ID, error) {
	body, err := json.Marshal(spec)
	if err != nil {
		return 0, fmt.Errorf("submit: %w", err)
	}
	var s Submitted
	err = c.call(ctx, request{method: http.MethodPost, path: "/v1/jobs", key: rand.Text(), body: body, again: true, open: true}, &s)
	return s.Job, err
}

// Checkpoint asks for a checkpoint now and returns once its epoch is
// committed, or could not be.
//
// Expected errors: *Error.
func (c *Client) Checkpoint(ctx context.Context, id job.ID) (Checkpointed, error) {
	var done Checkpointed
	err := c.call(ctx, request{method: http.MethodPost, path: jobPath(id, "/checkpoint"), open: true}, &done)
	return done, err
}

// Verb is an order to a job that is harmless when it arrives twice.
type Verb string

// The verbs. Vacate takes a checkpoint, ends the ranks and frees the nodes;
// the job can be restarted. Kill ends the job.
const (
	Suspend Verb = "suspend"
	Resume  Verb = "resume"
	Vacate  Verb = "vacate"
	Kill    Verb = "kill"
)

// Do gives an order and returns when it is carried out.
//
// Expected errors: *Error.
func (c *Client) Do(ctx context.Context, id job.ID, v Verb) error {
	return c.call(ctx, request{method: http.MethodPost, path: jobPath(id, "/"+string(v)), again: true, open: v == Vacate}, nil)
}

// Restart starts a job anew from the images of an epoch; 0 is the newest.
//
// Expected errors: *Error.
func (c *Client) Restart(ctx context.Context, id job.ID, epoch job.Epoch) (job.ID, error) {
	var s Submitted
	path := jobPath(id, "/restart?epoch="+strconv.FormatUint(uint64(epoch), 10))
	err := c.call(ctx, request{method: http.MethodPost, path: path, open: true}, &s)
	return s.Job, err
}

// Signal sends signal number n to every rank, once.
//
// Expected errors: *Error.
func (c *Client) Signal(ctx context.Context, id job.ID, n int) error {
	return c.call(ctx, request{method: http.MethodPost, path: jobPath(id, "/signal?n="+strconv.Itoa(n))}, nil)
}

// Stdin hands data, the bytes at offset of rank 0's standard input, to the
// job and returns once they are taken: it blocks while the program does not
// read. eof says that nothing follows them. Sending the same bytes twice is
// harmless.
//
// Expected errors: *Error, with status 410 when the job has ended or rank 0
// has closed its input.
func (c *Client) Stdin(ctx context.Context, id job.ID, offset int64, data []byte, eof bool) (StdinTaken, error) {
	q := "/stdin?offset=" + strconv.FormatInt(offset, 10)
	if eof {
		q += "&eof=1"
	}
	var taken StdinTaken
	err := c.call(ctx, request{method: http.MethodPost, path: jobPath(id, q), body: data, again: true, open: true}, &taken)
	return taken, err
}

// waitRound is how long one request for the end of a job stays open. Asking
// anew finds another lamd should this one hang.
const waitRound = 30 * time.Second

// Wait returns how the job ended, once it has.
//
// Expected errors: *Error; the context's.
func (c *Client) Wait(ctx context.Context, id job.ID) (Ended, error) {
	for {
		round, cancel := context.WithTimeout(ctx, waitRound)
		var e Ended
		err := c.call(round, request{method: http.MethodGet, path: jobPath(id, "/wait"), again: true, open: true, patient: true}, &e)
		expired := round.Err() != nil
		cancel()
		switch {
		case err == nil:
			return e, nil
		case ctx.Err() != nil:
			return Ended{}, context.Cause(ctx)
		case expired:
		case !transient(err):
			return Ended{}, err
		}
	}
}

// transient reports whether err may go away by asking again: the connection
// broke while the answer was read.
func transient(err error) bool {
	var e *Error
	return !errors.As(err, &e)
}

// EventFilter chooses events. Job 0 is all jobs; After skips events up to that
// Seq; Follow keeps the stream open.
type EventFilter struct {
	Job    job.ID
	After  uint64
	Follow bool
}

func (f EventFilter) query() string {
	q := url.Values{}
	if f.Job != 0 {
		q.Set("job", f.Job.String())
	}
	if f.After != 0 {
		q.Set("after", strconv.FormatUint(f.After, 10))
	}
	if f.Follow {
		q.Set("follow", "1")
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}
