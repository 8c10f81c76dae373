package lamd

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// ownerOnly are the requests that only a job's owner may make.
var ownerOnly = []string{
	"POST /v1/jobs/7/checkpoint", "POST /v1/jobs/7/suspend", "POST /v1/jobs/7/resume", "POST /v1/jobs/7/vacate",
	"POST /v1/jobs/7/kill", "POST /v1/jobs/7/preflight", "POST /v1/jobs/7/signal?n=9", "POST /v1/jobs/7/stdin?offset=0",
	"POST /v1/jobs/7/restart", "GET /v1/jobs/7/output",
}

// permissionAPI fails the test when anything is done to job 7.
func permissionAPI(t *testing.T) *jobsAPI {
	t.Helper()
	w := newWorld()
	untouched := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("reached the pod: %s", r.URL.Path) })
	a := w.api(t, nodes{"n1": untouched})
	a.apply = func(context.Context, scheduler.Command) error {
		t.Error("reached the log")
		return nil
	}
	return a
}

func request(line string) *http.Request {
	method, target, _ := strings.Cut(line, " ")
	return httptest.NewRequest(method, target, nil)
}

func TestOtherUsersAreRefused(t *testing.T) {
	other := uint32(1001)
	if os.Getuid() == int(other) {
		other++
	}
	a := permissionAPI(t)
	for _, line := range ownerOnly {
		if w := ask(t, as(other, a.routes()), request(line)); w.Code != http.StatusForbidden {
			t.Errorf("%s: %d %s", line, w.Code, w.Body)
		}
		if w := ask(t, a.routes(), request(line)); w.Code != http.StatusForbidden {
			t.Errorf("%s without a caller: %d %s", line, w.Code, w.Body)
		}
	}
	if w := ask(t, a.routes(), request("POST /v1/jobs")); w.Code != http.StatusForbidden {
		t.Errorf("submission without a caller: %d", w.Code)
	}
}

// Everything that names a job says so when there is none, before it asks who
// wants to know; numbers that are none are usage errors.
func TestUnknownJobs(t *testing.T) {
	a := permissionAPI(t)
	for _, line := range append([]string{"GET /v1/jobs/7", "GET /v1/jobs/7/wait"}, ownerOnly...) {
		if strings.Contains(line, "restart") {
			continue // asks the stores
		}
		if w := ask(t, as(1000, a.routes()), request(strings.Replace(line, "/7", "/8", 1))); w.Code != http.StatusNotFound {
			t.Errorf("%s of no job: %d", line, w.Code)
		}
		if w := ask(t, as(1000, a.routes()), request(strings.Replace(line, "/7", "/x", 1))); w.Code != http.StatusBadRequest {
			t.Errorf("%s of x: %d", line, w.Code)
		}
	}
}

func TestOwnerAndOperatorMay(t *testing.T) {
	me := uint32(os.Getuid())
	for _, c := range []struct {
		c   caller
		uid uint32
		may bool
	}{
		{caller{uid: 1000}, 1000, true},
		{caller{uid: me}, me + 1, true},
		{caller{uid: me + 1}, me + 1, true},
		{caller{uid: me + 1}, me + 2, false},
		{caller{uid: me + 1, gid: me}, me, false},
	} {
		if got := c.c.may(c.uid); got != c.may {
			t.Errorf("%+v of %d: %v", c.c, c.uid, got)
		}
	}
}

// The owner of a job is who the kernel says, not who the job says.
func TestSubmissionBelongsToItsCaller(t *testing.T) {
	w := newWorld()
	a := w.api(t, nodes{})
	a.apply = func(_ context.Context, c scheduler.Command) error {
		if s := c.Submit.Spec; s.UID != 1000 || s.GID != 1000 {
			t.Errorf("owner %d:%d", s.UID, s.GID)
		}
		w.change(func(st *scheduler.State, _ *scheduler.Job) { st.Keys = map[string]job.ID{c.Submit.Key: 9} })
		return nil
	}
	spec := job.Spec{
		Argv: []string{"/bin/true"}, Dir: "/", Ranks: 1, Replicas: 2, MapBy: job.MapByBlock, OnFailure: job.OnFailurePause,
		NoSpare: job.NoSpareWait, Output: job.OutputLive, Files: "truncate", UID: 0, GID: 0,
	}
	r := httptest.NewRequest(http.MethodPost, "/v1/jobs", strings.NewReader(string(mustJSON(t, spec))))
	r.Header.Set(headerUID, "0")
	r.Header.Set(headerKey, "k")
	if got := ask(t, as(1000, a.routes()), r); got.Code != http.StatusOK || strings.TrimSpace(got.Body.String()) != `{"job":9}` {
		t.Errorf("%d %s", got.Code, got.Body)
	}
}

// A lost supervisor is no end of stdin: the bytes wait for its replacement.
func TestStdinWaitsForALostPod(t *testing.T) {
	w := newWorld()
	lost := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		w.change(func(_ *scheduler.State, j *scheduler.Job) { j.Pods[0].Node = "n2" })
		writeError(rw, podDown(7, os.ErrNotExist))
	})
	taken := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("offset") != "5" || r.URL.Path != "/v1/pods/7/v1/stdin" {
			t.Errorf("asked %s", r.URL)
		}
		writeJSON(rw, struct{}{})
	})
	a := w.api(t, nodes{"n1": lost, "n2": taken})
	a.lead = func() *lead { return &lead{} }
	send := func() *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, "/v1/jobs/7/stdin?offset=5", strings.NewReader("abc"))
		return ask(t, as(1000, a.routes()), r)
	}
	if got := send(); got.Code != http.StatusOK || strings.TrimSpace(got.Body.String()) != `{"offset":8,"safe":8}` {
		t.Errorf("%d %s", got.Code, got.Body)
	}
	w.end()
	if got := send(); got.Code != http.StatusGone {
		t.Errorf("an ended job: %d %s", got.Code, got.Body)
	}
}
