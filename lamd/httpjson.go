package lamd

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// writeJSON answers with v. A client that went away is its own affair.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the status line is gone: nobody to tell
}

// writeError answers with err as a control.Error; anything else is an internal
// error with status 500.
func writeError(w http.ResponseWriter, err error) {
	var e *control.Error
	if !errors.As(err, &e) {
		e = &control.Error{Message: err.Error(), Exit: job.ExitInternal, Status: http.StatusInternalServerError}
	}
	if e.Status == 0 {
		e.Status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_ = json.NewEncoder(w).Encode(e)
}

// readJSON decodes the request's body into v.
//
// Expected errors: *control.Error with status 400.
func readJSON(r *http.Request, v any) error {
	if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(v); err != nil {
		return badRequest("malformed request body: " + err.Error())
	}
	return nil
}

func badRequest(msg string) error {
	return &control.Error{Message: msg, Exit: job.ExitUsage, Status: http.StatusBadRequest}
}

func notFound(msg string) error {
	return &control.Error{Message: msg, Exit: job.ExitUsage, Status: http.StatusNotFound}
}

func unavailable(msg string) error {
	return &control.Error{Message: msg, Exit: job.ExitNoNodes, Status: http.StatusServiceUnavailable}
}

func conflict(msg string) error {
	return &control.Error{Message: msg, Exit: job.ExitUsage, Status: http.StatusConflict}
}

func forbidden(msg string) error {
	return &control.Error{Message: msg, Exit: job.ExitPermission, Status: http.StatusForbidden}
}
