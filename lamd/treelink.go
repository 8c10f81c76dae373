package lamd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/membership/tree"
)

// ackMax is how long a node may take to say that it has a message of the tree.
// One that says nothing is passed over, and others get what it should have
// passed on, while there is time. How long it then works is the message's own
// affair.
const ackMax = 2 * time.Second

var errNoAck = errors.New("node did not take the message")

// httpTree carries messages of the tree over the node API. It is safe for
// concurrent use.
type httpTree struct {
	peers *peers
	// overdue returns a channel that tells when a node had its time to take a
	// message; nil means after ackMax.
	overdue func(job.NodeID) <-chan time.Time
}

// send implements treeLink. The receiver answers 102 at once, and its reply when
// its subtree is done (RFC 2518, 10.1).
//
// Expected errors: errNoAck, *control.Error, transport errors, the context's.
func (h *httpTree) send(ctx context.Context, to job.NodeID, in treeRequest) (tree.Reply, error) {
	url, err := h.peers.url(to, "/v1/tree")
	if err != nil {
		return tree.Reply{}, err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return tree.Reply{}, fmt.Errorf("encode message: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	taken := make(chan struct{})
	ack := sync.OnceFunc(func() { close(taken) })
	defer h.watch(to, taken, cancel)()
	defer ack()
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(int, textproto.MIMEHeader) error { ack(); return nil },
	})
	req, err := http.NewRequestWithContext(traced, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return tree.Reply{}, fmt.Errorf("make request: %w", err)
	}
	resp, err := h.peers.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return tree.Reply{}, fmt.Errorf("node %s: %w", to, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return tree.Reply{}, decodeError(resp)
	}
	var out tree.Reply
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&out); err != nil {
		return tree.Reply{}, fmt.Errorf("node %s: decode reply: %w", to, err)
	}
	return out, nil
}

// watch gives a request up when the node has not taken it in time. The function
// it returns waits for the watcher's end, which follows that of taken.
func (h *httpTree) watch(to job.NodeID, taken <-chan struct{}, giveUp context.CancelCauseFunc) func() {
	var late <-chan time.Time
	if h.overdue != nil {
		late = h.overdue(to)
	} else {
		late = time.After(ackMax)
	}
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-taken:
		case <-late:
			giveUp(errNoAck)
		}
	})
	return watcher.Wait
}

// serve is POST /v1/tree.
func (f *fanout) serve(w http.ResponseWriter, r *http.Request) {
	var in treeRequest
	if err := readJSON(r, &in); err != nil {
		writeError(w, err)
		return
	}
	w.WriteHeader(http.StatusProcessing)
	reply, err := f.relay(r.Context(), in)
	if err != nil {
		writeError(w, badRequest(err.Error()))
		return
	}
	writeJSON(w, reply)
}

// each calls do(0) ... do(n-1) in parallel and waits for all.
func each(n int, do func(int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { do(i) })
	}
	all.Wait()
}

// phase does an op at the supervisor of a job's pod on this node.
func (m *pods) phase(ctx context.Context, id job.ID, in podapi.PhaseRequest) (*podapi.PhaseReply, int, error) {
	p, ok := m.get(id)
	if !ok {
		return nil, 0, notFound(fmt.Sprintf("no pod of job %d", id))
	}
	reply, status, err := postPhaseTo(ctx, p.client, "http://pod"+podapi.PathPhase, in)
	if err != nil {
		return nil, status, podDown(id, err)
	}
	return reply, status, nil
}
