package pause

import (
	"path/filepath"
	"testing"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/stream"
)

// TestStopAfterRefusedResume: a resume whose marks do not fit fails when the
// ranks run already. When a node is lost before the leader abandons the epoch,
// the recovery stops them again, and does not take them for lost.
func TestStopAfterRefusedResume(t *testing.T) {
	p := start(t, build(t, "mix"), filepath.Join(t.TempDir(), "out"), "100000000")
	pod, dir := newPodBacked(t, nil, BackingFork, p)
	checkpoint(t, pod, dir, 1)
	ctx := testCtx(t)
	for _, s := range []func() (*Report, error){
		func() (*Report, error) { return pod.Freeze(ctx, 2) },
		func() (*Report, error) { return pod.CaptureSend(ctx, 2) },
		func() (*Report, error) { return pod.CaptureRecv(ctx, 2) },
	} {
		if _, err := s(); err != nil {
			t.Fatal(err)
		}
	}
	pod.draft.record = &stream.Record{Ends: []stream.End{{TCP: &image.TCPEnd{Local: "10.0.0.1:1", Remote: "10.0.0.2:2"}}}}
	if _, err := pod.Resume(ctx, 2, []podapi.Mark{}); err == nil {
		t.Fatal("resumed")
	}
	runsFree(t, p.pid(), "resume")
	rollback(t, pod, 1, 1)
	runsFree(t, p.pid(), "release")
	if left := copies(t, p); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	checkpoint(t, pod, dir, 3)
}
