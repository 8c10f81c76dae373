// Package controltest stands in for lamd in tests of the command line: it
// serves handlers on the unix sockets where a client looks for daemons.
package controltest

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// Runtime makes a runtime directory with a path short enough for sockets and
// removes it after the test.
func Runtime(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lamt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Serve answers as the lamd of a node until stop is called or the test ends.
// Stop kills it: connections break, the socket file stays.
func Serve(t testing.TB, runtime string, node job.NodeID, h http.Handler) (stop func()) {
	t.Helper()
	path := filepath.Join(runtime, string(node), control.Socket)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(path) // of an earlier life
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln) // ends with ErrServerClosed
	}()
	stop = func() {
		_ = srv.Close()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// Sockets lists the sockets beneath runtime, as a client wants them.
func Sockets(runtime string) func() []string {
	return func() []string {
		found, err := filepath.Glob(filepath.Join(runtime, "*", control.Socket))
		if err != nil {
			return nil
		}
		return found
	}
}

// JSON answers with v.
func JSON(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

// Refuse answers with an error as lamd does.
func Refuse(w http.ResponseWriter, status, exit int, message string) {
	w.WriteHeader(status)
	JSON(w, control.Error{Message: message, Exit: exit})
}

// Frames streams output frames and flushes after each.
func Frames(w http.ResponseWriter, frames ...podapi.Output) {
	for _, f := range frames {
		JSON(w, f)
		_ = http.NewResponseController(w).Flush()
	}
}
