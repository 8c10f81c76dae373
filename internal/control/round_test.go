package control

import (
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// A node died and took its lamd along, the others elect a leader: whichever
// socket is asked last, the answer of the living counts, for only that keeps a
// patient client waiting. (A client that looked at the dead socket gave up a
// running job.)
func TestALivingLamdTellsMoreThanADeadSocket(t *testing.T) {
	dir := t.TempDir()
	dead, living := filepath.Join(dir, "1"), filepath.Join(dir, "2")
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", living)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"error":"no leader","exit":69}`))
	})}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	for _, sockets := range [][]string{{dead, living}, {living, dead}} {
		c := NewClient(func() []string { return append([]string{}, sockets...) }, dir)
		for range 20 { // the order is shuffled
			_, err := c.round(t.Context(), request{method: http.MethodGet, path: "/v1/jobs", again: true})
			var refused *Error
			if !errors.As(err, &refused) || refused.Message != "no leader" {
				t.Fatalf("error %v, want that of the living lamd", err)
			}
		}
	}
}
