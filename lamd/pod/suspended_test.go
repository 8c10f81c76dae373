package pod

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// stands checks that every thread of every rank of a pod is stopped.
func (p *testPod) stands() {
	p.h.t.Helper()
	var st podapi.Status
	if err := p.call(p.h.t.Context(), http.MethodGet, podapi.PathStatus, nil, &st); err != nil {
		p.h.t.Fatal(err)
	}
	for _, r := range st.Ranks {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", r.PID))
		if err != nil || len(stats) == 0 {
			p.h.t.Fatalf("rank %d: no threads of process %d (%v)", r.Rank, r.PID, err)
		}
		for _, path := range stats {
			b, err := os.ReadFile(path)
			if err != nil {
				p.h.t.Fatal(err)
			}
			if f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]); string(f[0]) != "T" {
				p.h.t.Errorf("rank %d: %s is in state %s", r.Rank, path, f[0])
			}
		}
	}
}

// A suspended job stays suspended over a recovery: ranks put back and rebuilt
// alike stand still when the release is done, and had no time to do anything.
func TestSuspendedOverARecovery(t *testing.T) {
	inOneCluster(t, func(t *testing.T) {
		argv := []string{compile(t, "ring"), "300", "20000", "5", "2000"}
		want := undisturbed(t, 2, 1, argv...)
		h := newHarness(t, 2, 1, argv...)
		h.startAll()
		h.pods[0].waitOutput(0, "step 40 ")
		h.checkpoint(1)
		all := func(op podapi.Op) {
			t.Helper()
			h.header.Attempt++
			if _, err := h.each(h.all(), func(*testPod) podapi.PhaseRequest { return podapi.PhaseRequest{Op: op} }); err != nil {
				t.Fatal(err)
			}
		}
		all(podapi.OpSuspend)
		h.suspended = true
		for _, lost := range []job.PodIndex{1, 0} {
			h.lose(lost)
			h.recover(int(1-lost), lost)
			for _, p := range h.all() {
				p.stands()
			}
		}
		all(podapi.OpContinue)
		wantOK(t, h.waitAll(runLimit), 2)
		if _, rest := h.pods[0].outputFrom(0, 1); !bytes.HasSuffix([]byte(want), []byte(rest)) || rest == "" {
			t.Errorf("output differs:\n%s\nwant the end of\n%s", rest, want)
		}
	})
}
