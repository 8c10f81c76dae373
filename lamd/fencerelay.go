package lamd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// relayFence passes a pod's arrival at a PMI fence to the leader and its
// answer back; a lost leader is a retry of the supervisor's. Only the
// supervisor of a pod on this node may say that the pod arrived: with a forged
// arrival anybody could mix up the addresses that another user's ranks
// exchange, or let them run past a fence.
func (a *agent) relayFence(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		writeError(w, badRequest("fence: "+err.Error()))
		return
	}
	var f podapi.Fence
	if err := json.Unmarshal(body, &f); err != nil {
		writeError(w, badRequest("fence: "+err.Error()))
		return
	}
	if err := a.mayFence(r, f); err != nil {
		writeError(w, err)
		return
	}
	var out podapi.FenceReply
	if _, err := a.toLeader(r.Context(), "/v1/fence", json.RawMessage(body), &out); err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, out)
}

// mayFence checks the one who posts a fence: the job's owner or the user who
// runs this daemon, for a pod that is on this node. Supervisors run as one of
// the two.
//
// Expected errors: *control.Error with status 403 or 404.
func (a *agent) mayFence(r *http.Request, f podapi.Fence) error {
	c, ok := callerOf(r.Context())
	if !ok {
		return forbidden("fence: caller not known")
	}
	spec, err := a.pods.specOf(f.Job)
	if errors.Is(err, fs.ErrNotExist) || err == nil && spec.Placement.Pod != f.Pod {
		return notFound(fmt.Sprintf("fence: node %s has no pod %d of job %d", a.node, f.Pod, f.Job))
	}
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	if !c.may(spec.Spec.UID) {
		return forbidden(fmt.Sprintf("fence: job %d belongs to another user", f.Job))
	}
	return nil
}

// specOf returns what the pod of a job on this node was started with, also
// while it is being brought up: its ranks may run before its start is done.
//
// Expected errors: fs.ErrNotExist when there is none.
func (m *pods) specOf(id job.ID) (podapi.PodSpec, error) {
	if p, ok := m.get(id); ok && p.spec.Job == id {
		return p.spec, nil
	}
	return readSpec(m.podDir(id))
}
