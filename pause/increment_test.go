package pause

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// TestIncrements writes image after image of a running program, also after
// abandoned rounds and rollbacks. Each must hold exactly what the copy in RAM
// holds, and what is written must be proportional to what changed.
func TestIncrements(t *testing.T) {
	for _, c := range []struct {
		name    string
		args    []string
		backing Backing
		part    int64 // an image adds at most 1/part of its bytes, from the second on
	}{
		{"big", []string{"32", "1"}, BackingCopy, 4},
		{"big", []string{"32", "1"}, BackingFork, 4},
		{"mix", []string{filepath.Join(t.TempDir(), "out"), "100000000"}, BackingAuto, 1},
	} {
		t.Run(c.name+" "+string(c.backing), func(t *testing.T) {
			pod, dir := newPodBacked(t, nil, c.backing, start(t, build(t, c.name), c.args...))
			for e := job.Epoch(1); e <= 7; e++ {
				w := writeRound(t, pod, dir, e)
				if e%4 == 3 {
					if err := pod.Abandon(testCtx(t), e); err != nil {
						t.Fatal(err)
					}
					if err := dir.Remove(e); err != nil {
						t.Fatal(err)
					}
					continue
				}
				compareImage(t, pod.draft, dir, e)
				if pod.group.list()[0].tracker.fd < 0 {
					t.Skip("this kernel does not track writes: everything is written")
				}
				if all := sizeOf(w); e > 1 && w.NewBytes > all/c.part {
					t.Errorf("epoch %d: wrote %d of %d bytes", e, w.NewBytes, all)
				}
				if err := pod.Commit(testCtx(t), e); err != nil {
					t.Fatal(err)
				}
				if err := dir.Remove(e - 1); err != nil { // what e shares with it stays
					t.Fatal(err)
				}
				if e%3 == 0 {
					rollbackCompared(t, pod, e)
				}
				compareImage(t, pod.committed, dir, e)
			}
		})
	}
}

// writeRound takes a checkpoint up to its written image.
func writeRound(t *testing.T, pod *Pod, dir *image.JobDir, e job.Epoch) *podapi.Written {
	t.Helper()
	ctx := testCtx(t)
	for _, s := range []func() (*Report, error){
		func() (*Report, error) { return pod.Freeze(ctx, e) },
		func() (*Report, error) { return pod.CaptureSend(ctx, e) },
		func() (*Report, error) { return pod.CaptureRecv(ctx, e) },
		func() (*Report, error) { return pod.Resume(ctx, e, []podapi.Mark{}) },
	} {
		if _, err := s(); err != nil {
			t.Fatal(err)
		}
	}
	w, err := pod.Write(ctx, e, dir, image.Options{}, Extra{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond) // the program writes something
	return w
}

func sizeOf(w *podapi.Written) (n int64) {
	for _, f := range w.Files {
		n += f.Size
	}
	return n
}

// compareImage compares the memory in an image with the copy it was made of.
func compareImage(t *testing.T, snap *snapshot, dir *image.JobDir, e job.Epoch) {
	t.Helper()
	r, err := dir.Open(e, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if err := r.Verify(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	for _, c := range snap.procs {
		pr, err := r.Process(c.image.PID)
		if err != nil {
			t.Fatal(err)
		}
		var pages int64
		err = c.pages.each(t.Context(), 2, nil, func(addr uint64, data []byte) error {
			got := make([]byte, len(data))
			if err := pr.ReadAt(addr, got); err != nil {
				return err
			}
			if !bytes.Equal(got, data) {
				t.Errorf("epoch %d: memory at %x differs", e, addr)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		data, zero := pr.Pages()
		if pages = int64(data+zero) * image.PageSize; pages != c.pages.bytes() { //nolint:gosec // counts of pages
			t.Errorf("epoch %d: %d bytes in the image, %d in the copy", e, pages, c.pages.bytes())
		}
	}
}
