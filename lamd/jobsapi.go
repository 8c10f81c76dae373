package lamd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
	"github.com/lampause/lampause/scheduler/conduct"
)

// jobsAPI is the control API as the leader serves it. Requests carry their
// caller in the context.
type jobsAPI struct {
	lead    func() *lead
	state   func() *scheduler.State
	changed func(after uint64) <-chan struct{} // closed once the state is newer than index after
	apply   func(context.Context, scheduler.Command) error
	raft    func() map[job.NodeID]string
	peers   *peers
	log     zerolog.Logger
}

func (a *jobsAPI) routes() http.Handler {
	mux := http.NewServeMux()
	get(mux, "GET /v1/nodes", a.nodes)
	get(mux, "GET /v1/jobs", a.jobs)
	get(mux, "GET /v1/jobs/{job}", a.job)
	get(mux, "GET /v1/jobs/{job}/wait", a.wait)
	get(mux, "POST /v1/jobs", a.submit)
	get(mux, "POST /v1/jobs/{job}/checkpoint", a.checkpoint)
	get(mux, "POST /v1/jobs/{job}/restart", a.restart)
	get(mux, "POST /v1/jobs/{job}/suspend", a.verb(conduct.Verb{Kind: conduct.VerbSuspend}))
	get(mux, "POST /v1/jobs/{job}/resume", a.verb(conduct.Verb{Kind: conduct.VerbResume}))
	get(mux, "POST /v1/jobs/{job}/vacate", a.verb(conduct.Verb{Kind: conduct.VerbVacate}))
	get(mux, "POST /v1/jobs/{job}/kill", a.verb(conduct.Verb{Kind: conduct.VerbKill, Code: 128 + 9, Reason: "killed by its user"}))
	get(mux, "POST /v1/jobs/{job}/preflight", a.preflight)
	get(mux, "POST /v1/jobs/{job}/signal", a.signal)
	mux.HandleFunc("POST /v1/jobs/{job}/stdin", a.stdin)
	mux.HandleFunc("GET /v1/jobs/{job}/output", a.output)
	mux.HandleFunc("GET /v1/events", a.events)
	return mux
}

// get registers a request whose answer is JSON.
func get(mux *http.ServeMux, pattern string, do func(*http.Request) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		out, err := do(r)
		if err != nil {
			writeError(w, refusalError(err))
			return
		}
		writeJSON(w, out)
	})
}

// refusalError gives the scheduler's and the conductor's refusals the HTTP
// status and exit code that clients go by.
func refusalError(err error) error {
	if r := scheduler.AsRefusal(err); r != nil {
		status := http.StatusConflict
		if r.Code == scheduler.NoSuch {
			status = http.StatusNotFound
		}
		return &control.Error{Message: r.Text, Exit: r.Exit, Status: status}
	}
	var f *conduct.Failure
	if errors.As(err, &f) {
		exit := f.Exit
		if exit == 0 {
			exit = job.ExitInternal
		}
		return &control.Error{Message: f.Text, Exit: exit, Status: http.StatusConflict}
	}
	return err
}

func (a *jobsAPI) nodes(r *http.Request) (any, error) {
	suspects := map[job.NodeID]bool{}
	if l := a.lead(); l != nil {
		suspects = l.suspects(r.Context())
	}
	return nodesView(a.state(), suspects, a.raft()), nil
}

func (a *jobsAPI) jobs(*http.Request) (any, error) {
	st := a.state()
	out := []control.Job{}
	for _, id := range st.JobIDs() {
		out = append(out, jobView(st, st.Jobs[id]))
	}
	return out, nil
}

// find returns the job that a request names.
//
// Expected errors: *control.Error with status 400 or 404.
func (a *jobsAPI) find(r *http.Request) (*scheduler.State, *scheduler.Job, error) {
	id, err := job.ParseID(r.PathValue("job"))
	if err != nil {
		return nil, nil, badRequest(err.Error())
	}
	st := a.state()
	j, ok := st.Jobs[id]
	if !ok {
		return nil, nil, notFound(fmt.Sprintf("no job %d; `lam jobs` lists them", id))
	}
	return st, j, nil
}

// own is find for requests that only the owner may make.
func (a *jobsAPI) own(r *http.Request) (*scheduler.Job, error) {
	_, j, err := a.find(r)
	if err != nil {
		return nil, err
	}
	c, ok := callerOf(r.Context())
	if !ok || !c.may(j.Spec.UID) {
		return nil, forbidden(fmt.Sprintf("job %d belongs to another user", j.ID))
	}
	return j, nil
}

func (a *jobsAPI) job(r *http.Request) (any, error) {
	st, j, err := a.find(r)
	if err != nil {
		return nil, err
	}
	return detailView(st, j), nil
}

// headerKey carries a client's own key of a submission, so that a repeated one
// starts no second job.
const headerKey = "X-Lam-Key"

func (a *jobsAPI) submit(r *http.Request) (any, error) {
	c, ok := callerOf(r.Context())
	if !ok {
		return nil, forbidden("caller not known")
	}
	var spec job.Spec
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody)).Decode(&spec); err != nil {
		return nil, badRequest("malformed job: " + err.Error())
	}
	spec.UID, spec.GID = c.uid, c.gid
	if err := spec.Validate(); err != nil {
		return nil, badRequest(err.Error())
	}
	key := r.Header.Get(headerKey)
	if key == "" {
		key = rand.Text()
	}
	if err := a.apply(r.Context(), scheduler.Command{Submit: &scheduler.Submit{Key: key, Spec: spec}}); err != nil {
		return nil, err
	}
	id, ok := a.state().Keys[key]
	if !ok {
		return nil, fmt.Errorf("submit: the log took the job but does not know it")
	}
	return control.Submitted{Job: id}, nil
}

// wait answers once the job has ended.
func (a *jobsAPI) wait(r *http.Request) (any, error) {
	for {
		st, j, err := a.find(r)
		if err != nil {
			return nil, err
		}
		if j.State.Final() {
			return endedView(j), nil
		}
		select {
		case <-a.changed(st.Index):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
}

// ask gives a verb to the conductor.
func (a *jobsAPI) ask(r *http.Request, v conduct.Verb) (conduct.Answer, error) {
	j, err := a.own(r)
	if err != nil {
		return conduct.Answer{}, err
	}
	l := a.lead()
	if l == nil {
		return conduct.Answer{}, errNotLeading
	}
	v.Job = j.ID
	return l.verb(r.Context(), v)
}

func (a *jobsAPI) verb(v conduct.Verb) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		v := v
		if code := r.URL.Query().Get("code"); code != "" && v.Kind == conduct.VerbKill {
			n, err := intQuery(r, "code")
			if err != nil {
				return nil, err
			}
			v.Code = n
		}
		_, err := a.ask(r, v)
		return struct{}{}, err
	}
}

func (a *jobsAPI) checkpoint(r *http.Request) (any, error) {
	ans, err := a.ask(r, conduct.Verb{Kind: conduct.VerbCheckpoint})
	if err != nil {
		return nil, err
	}
	return control.Checkpointed{Epoch: ans.Epoch, Bytes: ans.Bytes, StallMS: ans.StallMS}, nil
}

func (a *jobsAPI) preflight(r *http.Request) (any, error) {
	ans, err := a.ask(r, conduct.Verb{Kind: conduct.VerbPreflight})
	if err != nil {
		return nil, err
	}
	return map[string]any{"obstacles": ans.Obstacles}, nil
}

// signal sends a signal to every pod of the job.
func (a *jobsAPI) signal(r *http.Request) (any, error) {
	j, err := a.own(r)
	if err != nil {
		return nil, err
	}
	n, err := intQuery(r, "n")
	if err != nil {
		return nil, err
	}
	l := a.lead()
	if l == nil {
		return nil, errNotLeading
	}
	ctx, cancel := context.WithTimeout(r.Context(), statusTimeout)
	defer cancel()
	s := podapi.Signal{Header: podapi.Header{Term: l.term, Job: j.ID, Incarnation: j.Incarnation}, Signal: n}
	errs := make([]error, len(j.Pods))
	atMost(collectAtOnce, len(j.Pods), func(i int) {
		errs[i] = a.peers.call(ctx, j.Pods[i].Node, http.MethodPost, "/v1/pods/"+j.ID.String()+podapi.PathSignal, s, nil)
	})
	return struct{}{}, errors.Join(errs...)
}

// events streams what happened, oldest first, and goes on with ?follow=1.
func (a *jobsAPI) events(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var id job.ID
	var after uint64
	var err error
	if v := q.Get("job"); v != "" {
		if id, err = job.ParseID(v); err != nil {
			writeError(w, badRequest(err.Error()))
			return
		}
	}
	if v := q.Get("after"); v != "" {
		if after, err = strconv.ParseUint(v, 10, 64); err != nil {
			writeError(w, badRequest(fmt.Sprintf("after=%q: not a number", v)))
			return
		}
	}
	enc, flush := jsonLines(w)
	for {
		st := a.state()
		for _, e := range st.Events {
			if e.Seq <= after || (id != 0 && e.Job != id) {
				continue
			}
			after = e.Seq
			if enc.Encode(eventView(e)) != nil {
				return
			}
		}
		flush()
		if q.Get("follow") != "1" {
			return
		}
		select {
		case <-a.changed(st.Index):
		case <-r.Context().Done():
			return
		}
	}
}

// jsonLines prepares an answer of JSON lines.
func jsonLines(w http.ResponseWriter) (*json.Encoder, func()) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Time{}) // streams live as long as the job
	return json.NewEncoder(w), func() { _ = rc.Flush() }
}
