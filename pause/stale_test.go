package pause

import (
	"testing"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/progtest"
	"github.com/lampause/lampause/job"
)

// TestForgottenProcess: a process that could not be frozen once (a debugger had
// it) is forgotten and found again. Its scans are counted from the start then;
// copies of the old count must not be taken for recent ones, neither by the next
// checkpoint nor by a rollback.
func TestForgottenProcess(t *testing.T) {
	f := &progtest.Fault{}
	p := start(t, build(t, "big"), "16", "1")
	pod, dir := newPodBacked(t, kernel.New(f.Hook), BackingCopy, p)
	e := job.Epoch(0)
	lose := func() {
		t.Helper()
		e++
		f.Arm(1)
		if _, err := pod.Freeze(testCtx(t), e); err == nil {
			t.Fatal("frozen in spite of a fault")
		}
		f.Arm(0)
		runsFree(t, p.pid(), "freeze")
	}
	round := func(commit bool) {
		t.Helper()
		e++
		ctx := testCtx(t)
		for _, s := range []func() (*Report, error){
			func() (*Report, error) { return pod.Freeze(ctx, e) },
			func() (*Report, error) { return pod.CaptureSend(ctx, e) },
			func() (*Report, error) { return pod.CaptureRecv(ctx, e) },
		} {
			if _, err := s(); err != nil {
				t.Fatal(err)
			}
		}
		compareCopy(t, pod)
		if _, err := pod.Resume(ctx, e, []podapi.Mark{}); err != nil {
			t.Fatal(err)
		}
		if !commit {
			if err := pod.Abandon(ctx, e); err != nil {
				t.Fatal(err)
			}
			return
		}
		if _, err := pod.Write(ctx, e, dir, image.Options{}, Extra{}); err != nil {
			t.Fatal(err)
		}
		if err := pod.Commit(ctx, e); err != nil {
			t.Fatal(err)
		}
		if err := pod.Prepare(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		round(true)
		lose()
		round(true)
		round(true)
		kept := e
		lose()
		for range 3 {
			round(false)
		}
		rollbackCompared(t, pod, kept)
	}
}

// TestChangedOfAnotherLook: a rollback puts everything back when the copy's scan
// is of another count.
func TestChangedOfAnotherLook(t *testing.T) {
	kept := []kernel.Range{{Start: 0, End: 4 * pageSize}}
	q := &process{tracker: tracker{seq: 5, dirty: map[int][]kernel.Range{4: nil, 5: nil}}}
	for _, c := range []struct {
		of   *process
		want int64
	}{{q, 0}, {&process{}, 4 * pageSize}} {
		m := newMemory(kept, nil)
		m.scan, m.of = 3, c.of
		u := &undo{p: q, c: &captured{pages: m}}
		if got := total(u.changed(&scanned{present: kept})); got != c.want {
			t.Errorf("%d bytes are put back, want %d", got, c.want)
		}
	}
}
