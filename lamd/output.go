package lamd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// output streams what all ranks of a job write, until the job has ended and
// everything was read. Frames of one stream come in order; after a rollback
// they go back to lower offsets.
func (a *jobsAPI) output(w http.ResponseWriter, r *http.Request) {
	_, j, err := a.find(r)
	if err == nil {
		if c, ok := callerOf(r.Context()); !ok || !c.may(j.Spec.UID) {
			err = forbidden(fmt.Sprintf("job %d belongs to another user", j.ID))
		}
	}
	if err != nil {
		writeError(w, err)
		return
	}
	cur, err := control.ParseCursor(r.URL.Query().Get("from"))
	if err != nil {
		writeError(w, badRequest(err.Error()))
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	frames := make(chan podapi.Output, 64)
	var readers sync.WaitGroup
	for i := range j.Pods {
		rd := &podReader{api: a, job: j.ID, pod: job.PodIndex(i), pos: control.Cursor{}, eof: map[control.Stream]bool{}}
		for _, rank := range j.Pods[i].Ranks {
			for fd := 1; fd <= 2; fd++ {
				s := control.Stream{Rank: rank, FD: fd}
				rd.pos[s] = cur[s]
			}
		}
		readers.Go(func() { rd.run(ctx, frames) })
	}
	go func() {
		readers.Wait()
		close(frames)
	}()
	copyFrames(w, frames, cancel)
	for range frames { // the readers end: nobody listens
	}
}

// copyFrames writes frames until there are no more or the client is gone.
func copyFrames(w http.ResponseWriter, frames <-chan podapi.Output, stop func()) {
	enc, flush := jsonLines(w)
	flush()
	for f := range frames {
		if enc.Encode(f) != nil {
			stop()
			return
		}
		if len(frames) == 0 {
			flush()
		}
	}
}

// podReader follows the output of one pod, wherever it is at the time.
type podReader struct {
	api *jobsAPI
	job job.ID
	pod job.PodIndex
	pos control.Cursor // next byte of each stream of the pod
	eof map[control.Stream]bool
}

// run reads until the job has ended and the pod's output was read to its end.
func (p *podReader) run(ctx context.Context, out chan<- podapi.Output) {
	for ctx.Err() == nil {
		st := p.api.state()
		j := st.Jobs[p.job]
		if j == nil || int(p.pod) >= len(j.Pods) {
			return
		}
		node := j.Pods[p.pod].Node
		var err error = errUnknownNode
		if node != "" && st.Nodes[node].State == scheduler.Alive {
			err = p.readWhileThere(ctx, j.Pods[p.pod], out)
		}
		st = p.api.state()
		j = st.Jobs[p.job]
		if j == nil || int(p.pod) >= len(j.Pods) || j.State.Final() && (err == nil || gone(err)) {
			return
		}
		p.pause(ctx, st.Index, err == nil && node == j.Pods[p.pod].Node)
	}
}

// readWhileThere reads from the pod where it is, and gives up when the log has
// moved it: a connection to a dead node says nothing.
func (p *podReader) readWhileThere(ctx context.Context, at scheduler.Pod, out chan<- podapi.Output) error {
	var watcher sync.WaitGroup
	defer watcher.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watcher.Go(func() {
		for ctx.Err() == nil {
			st := p.api.state()
			j := st.Jobs[p.job]
			if j == nil || int(p.pod) >= len(j.Pods) || j.Pods[p.pod].Node != at.Node || j.Pods[p.pod].Built != at.Built {
				cancel()
				return
			}
			select {
			case <-p.api.changed(st.Index):
			case <-ctx.Done():
			}
		}
	})
	return p.read(ctx, at.Node, out)
}

// gone reports whether err means that there is nothing left to read.
func gone(err error) bool {
	var e *control.Error
	return errors.Is(err, errUnknownNode) || errors.As(err, &e) && (e.Status == http.StatusNotFound || e.Status == http.StatusGone)
}

// pause waits before the stream is opened again: for a change of the job when
// it was read to its end, else a moment.
func (p *podReader) pause(ctx context.Context, index uint64, ended bool) {
	if !ended {
		pause(ctx, retryPause)
		return
	}
	select {
	case <-ctx.Done():
	case <-p.api.changed(index):
	}
}

// errCut says that a stream ended before every rank's output did: the pod was
// ended meanwhile, and the rest is in its node's archive.
var errCut = errors.New("output cut short")

// complete reports whether every stream of the pod was read to its end.
func (p *podReader) complete() bool {
	for s := range p.pos {
		if !p.eof[s] {
			return false
		}
	}
	return true
}

// read passes on one stream of a pod; nil means that it was read to its end.
func (p *podReader) read(ctx context.Context, node job.NodeID, out chan<- podapi.Output) error {
	path := "/v1/pods/" + p.job.String() + podapi.PathOutput + "?at=" + url.QueryEscape(p.pos.String())
	if j := p.api.state().Jobs[p.job]; j != nil && j.Spec.Output == job.OutputCommitted {
		path += "&committed=1"
	}
	body, err := p.api.peers.open(ctx, node, path)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	dec := json.NewDecoder(body)
	for {
		var f podapi.Output
		if err := dec.Decode(&f); errors.Is(err, io.EOF) && p.complete() {
			return nil
		} else if errors.Is(err, io.EOF) {
			return errCut
		} else if err != nil {
			return fmt.Errorf("output of pod %d: %w", p.pod, err)
		}
		s := control.Stream{Rank: f.Rank, FD: f.FD}
		p.pos[s], p.eof[s] = f.Offset+int64(len(f.Data)), f.EOF
		select {
		case out <- f:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
