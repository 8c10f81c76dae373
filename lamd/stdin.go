package lamd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// stdinTry bounds one request to the pod of rank 0. A pod takes no more while
// its rank does not read, so that this runs out on healthy nodes, too.
const stdinTry = 10 * time.Second

// stdin hands bytes to the rank that reads them, wherever it is at the time. A pod that was
// rebuilt may want earlier bytes than these first: the answer says so.
func (a *jobsAPI) stdin(w http.ResponseWriter, r *http.Request) {
	j, err := a.own(r)
	if err != nil {
		writeError(w, err)
		return
	}
	offset, err := intQuery(r, "offset")
	if err != nil {
		writeError(w, err)
		return
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		writeError(w, badRequest("stdin: "+err.Error()))
		return
	}
	for r.Context().Err() == nil {
		st := a.state()
		now := st.Jobs[j.ID]
		switch {
		case now == nil || now.State.Final():
			writeError(w, &control.Error{Message: fmt.Sprintf("job %d has ended", j.ID), Exit: job.ExitUsage, Status: http.StatusGone})
			return
		case a.lead() == nil:
			writeError(w, errNotLeading)
			return
		}
		taken, err := a.giveStdin(r.Context(), nodeOf(now, now.Spec.StdinRank), j.ID, r.URL.RawQuery, int64(offset), data)
		var refused *control.Error
		switch {
		case err == nil:
			writeJSON(w, taken)
			return
		case errors.Is(err, context.DeadlineExceeded):
		case errors.As(err, &refused) && refused.Status != http.StatusServiceUnavailable && refused.Status != http.StatusNotFound:
			writeError(w, err)
			return
		}
		pause(r.Context(), retryPause)
	}
}

// nodeOf returns the node of the pod that has a rank, "" while it waits for one.
func nodeOf(j *scheduler.Job, r job.Rank) job.NodeID {
	for _, p := range j.Pods {
		if slices.Contains(p.Ranks, r) {
			return p.Node
		}
	}
	return ""
}

// giveStdin is one try. A pod that is not there yet, or that refuses bytes
// because others come before them, answers where to go on.
func (a *jobsAPI) giveStdin(ctx context.Context, node job.NodeID, id job.ID, query string, offset int64, data []byte) (control.StdinTaken, error) {
	ctx, cancel := context.WithTimeout(ctx, stdinTry)
	defer cancel()
	pod := "/v1/pods/" + id.String()
	end := offset + int64(len(data))
	out := podapi.StdinTaken{Offset: end, Safe: end} // of a supervisor that says nothing
	err := a.peers.sendRaw(ctx, node, pod+podapi.PathStdin+"?"+query, data, &out)
	var refused *control.Error
	if errors.As(err, &refused) && refused.Status == http.StatusConflict {
		var st podapi.Status
		if err := a.peers.call(ctx, node, http.MethodGet, pod+podapi.PathStatus, nil, &st); err != nil {
			return control.StdinTaken{}, err
		}
		if st.State == "building" { // another pod than the one that refused: it knows nothing yet
			return control.StdinTaken{}, unavailable("the rank that reads the standard input is not restored yet")
		}
		return control.StdinTaken{Offset: st.StdinOffset}, nil
	}
	return control.StdinTaken(out), err
}
