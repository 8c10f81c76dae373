package pod

import (
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// broker completes fences as the leader does.
type broker struct {
	h    *harness
	path string

	mu      sync.Mutex
	changed chan struct{}
	arrived map[int]map[job.PodIndex]map[string]string
	early   map[int]bool
	inc     job.Incarnation
}

func newBroker(t *testing.T, h *harness, path string) *broker {
	t.Helper()
	b := &broker{h: h, path: path, changed: make(chan struct{}), inc: 1}
	b.reset(1)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: b, ReadHeaderTimeout: time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return b
}

// reset forgets everything: a new leader, or a new incarnation.
func (b *broker) reset(inc job.Incarnation) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inc, b.arrived, b.early = inc, map[int]map[job.PodIndex]map[string]string{}, map[int]bool{}
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var f podapi.Fence
	if json.NewDecoder(r.Body).Decode(&f) != nil {
		http.Error(w, "bad", http.StatusBadRequest)
		return
	}
	for {
		b.mu.Lock()
		if f.Incarnation != b.inc {
			b.mu.Unlock()
			http.Error(w, "stale", http.StatusConflict)
			return
		}
		if b.arrived[f.Seq] == nil {
			b.arrived[f.Seq] = map[job.PodIndex]map[string]string{}
		}
		if _, ok := b.arrived[f.Seq][f.Pod]; !f.Ask && !ok {
			b.arrived[f.Seq][f.Pod] = f.Puts
			close(b.changed)
			b.changed = make(chan struct{})
		}
		if f.Early && !b.early[f.Seq] {
			b.early[f.Seq] = true
			close(b.changed)
			b.changed = make(chan struct{})
		}
		changed := b.changed
		done := len(b.arrived[f.Seq]) == len(b.h.layout) || b.early[f.Seq]
		reply := podapi.FenceReply{Seq: f.Seq, Puts: map[string]string{}}
		for _, puts := range b.arrived[f.Seq] {
			maps.Copy(reply.Puts, puts)
		}
		b.mu.Unlock()
		if done {
			answerJSON(w, reply)
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}
