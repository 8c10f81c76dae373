package lamd

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// A pod that was rebuilt wants earlier bytes first; the sender is told which,
// and what it may forget.
func TestStdinGoesBack(t *testing.T) {
	w := newWorld()
	building := true // asked for the first time: its place is not known yet
	rebuilt := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, podapi.PathStatus):
			if building {
				building = false
				writeJSON(rw, podapi.Status{State: "building"})
				return
			}
			writeJSON(rw, podapi.Status{StdinOffset: 3})
		case r.URL.Query().Get("offset") == "3":
			writeJSON(rw, podapi.StdinTaken{Offset: 6, Safe: 2, SafeEOF: true})
		default:
			writeError(rw, &control.Error{Message: "offset 3 is next", Exit: job.ExitInternal, Status: http.StatusConflict})
		}
	})
	a := w.api(t, nodes{"n1": rebuilt})
	a.lead = func() *lead { return &lead{} }
	for _, c := range []struct{ offset, want string }{
		{"5", `{"offset":3,"safe":0}`},
		{"3", `{"offset":6,"safe":2,"safe_eof":true}`},
	} {
		r := httptest.NewRequest(http.MethodPost, "/v1/jobs/7/stdin?eof=1&offset="+c.offset, strings.NewReader("abc"))
		if got := ask(t, as(1000, a.routes()), r); got.Code != http.StatusOK || strings.TrimSpace(got.Body.String()) != c.want {
			t.Errorf("at %s: %d %s, want %s", c.offset, got.Code, got.Body, c.want)
		}
	}
}
