package lamd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// archive keeps the output of ended pods of this node, so that a client that
// comes late, or comes back, still gets all of it. One file per job: the
// frames of podapi.Output as JSON lines.
type archive struct {
	dir string
}

// maxArchived bounds how many ended jobs a node keeps the output of.
const maxArchived = 64

func (a *archive) path(id job.ID) string { return filepath.Join(a.dir, id.String()+".jsonl") }

// save ends the ranks of a pod and stores what they wrote. The pod's streams
// end when its ranks have ended and everything was read.
func (a *archive) save(ctx context.Context, p *localPod) error {
	var st podapi.Status // its header is the one that the supervisor takes
	if err := p.call(ctx, http.MethodGet, podapi.PathStatus, nil, &st); err != nil {
		return fmt.Errorf("archive output: %w", err)
	}
	kill := podapi.Signal{Header: st.Header, Signal: int(syscall.SIGKILL)}
	if err := p.call(ctx, http.MethodPost, podapi.PathSignal, kill, nil); err != nil {
		return fmt.Errorf("archive output: end ranks: %w", err)
	}
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return fmt.Errorf("archive output: %w", err)
	}
	tmp, err := os.CreateTemp(a.dir, ".out-*")
	if err != nil {
		return fmt.Errorf("archive output: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // renamed when all went well
	err = errors.Join(p.copyOutput(ctx, tmp), tmp.Close())
	if err != nil {
		return fmt.Errorf("archive output: %w", err)
	}
	if err := os.Rename(tmp.Name(), a.path(p.job)); err != nil {
		return fmt.Errorf("archive output: %w", err)
	}
	return a.trim()
}

// copyOutput writes all output of the pod to w, to its end.
//
// Expected errors: errCut when the pod was ended meanwhile.
func (p *localPod) copyOutput(ctx context.Context, w io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://pod"+podapi.PathOutput, nil)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return decodeError(resp)
	}
	buf := bufio.NewWriter(w)
	ended := map[control.Stream]bool{}
	dec, enc := json.NewDecoder(resp.Body), json.NewEncoder(buf)
	for {
		var o podapi.Output
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if err := enc.Encode(o); err != nil {
			return err
		}
		ended[control.Stream{Rank: o.Rank, FD: o.FD}] = o.EOF // a rollback opens it again
	}
	for _, r := range p.spec.Placement.Ranks {
		if !ended[control.Stream{Rank: r, FD: 1}] || !ended[control.Stream{Rank: r, FD: 2}] {
			return errCut
		}
	}
	return buf.Flush()
}

// trim deletes the oldest files beyond maxArchived.
func (a *archive) trim() error {
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		return fmt.Errorf("archive output: %w", err)
	}
	type aged struct {
		name string
		at   time.Time
	}
	var all []aged
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			all = append(all, aged{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(all, func(x, y aged) int { return y.at.Compare(x.at) })
	var errs []error
	for _, f := range all[min(len(all), maxArchived):] {
		errs = append(errs, os.Remove(filepath.Join(a.dir, f.name)))
	}
	return errors.Join(errs...)
}

// forget deletes what an earlier life of a job wrote: a job that was restarted
// keeps its number.
func (a *archive) forget(id job.ID) error {
	if err := os.Remove(a.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("archived output: %w", err)
	}
	return nil
}

// serve answers GET output for a pod that has ended; false when there is none.
func (a *archive) serve(w http.ResponseWriter, r *http.Request, id job.ID) bool {
	f, err := os.Open(a.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		writeError(w, err)
		return true
	}
	defer func() { _ = f.Close() }()
	cur, err := control.ParseCursor(r.URL.Query().Get("at"))
	if err != nil {
		writeError(w, badRequest(err.Error()))
		return true
	}
	enc, flush := jsonLines(w)
	defer flush()
	dec := json.NewDecoder(f)
	for {
		var o podapi.Output
		if dec.Decode(&o) != nil { // its end
			return true
		}
		if !afterCursor(&o, cur) {
			continue
		}
		if enc.Encode(o) != nil {
			return true
		}
	}
}

// afterCursor cuts from o what the reader has; false when that is all of it.
func afterCursor(o *podapi.Output, cur control.Cursor) bool {
	at := cur[control.Stream{Rank: o.Rank, FD: o.FD}]
	if skip := at - o.Offset; skip > 0 {
		n := min(skip, int64(len(o.Data)))
		o.Offset += n
		o.Data = o.Data[n:]
	}
	return len(o.Data) > 0 || o.EOF
}
