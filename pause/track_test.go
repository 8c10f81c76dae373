package pause

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// TestTrackedCopies compares every copy byte for byte with the memory of the
// frozen program, and wants a copy to be proportional to what changed.
func TestTrackedCopies(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		part int64 // a copy is at most Bytes/part, from the second on
	}{
		{"big", []string{"96", "4"}, 4},
		{"mix", []string{"", "100000000"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.args[0] == "" {
				c.args[0] = filepath.Join(t.TempDir(), "out")
			}
			p := start(t, build(t, c.name), c.args...)
			pod, dir := newPodBacked(t, nil, BackingCopy, p) // TestForkedCopies does it for forks
			rnd := rand.New(rand.NewPCG(1, 1))
			for e := job.Epoch(1); e <= 12; e++ {
				ctx := testCtx(t)
				if err := pod.Prepare(ctx); err != nil {
					t.Fatal(err)
				}
				var r *Report
				for _, s := range []func() (*Report, error){
					func() (*Report, error) { return pod.Freeze(ctx, e) },
					func() (*Report, error) { return pod.CaptureSend(ctx, e) },
					func() (*Report, error) { return pod.CaptureRecv(ctx, e) },
				} {
					var err error
					if r, err = s(); err != nil {
						t.Fatal(err)
					}
				}
				compareCopy(t, pod)
				if pod.group.list()[0].tracker.fd < 0 {
					t.Skip("this kernel does not track writes: everything is copied")
				}
				if e > 1 && r.Copied > r.Bytes/c.part {
					t.Errorf("epoch %d: copied %d of %d bytes", e, r.Copied, r.Bytes)
				}
				if _, err := pod.Resume(ctx, e, []podapi.Mark{}); err != nil {
					t.Fatal(err)
				}
				if rnd.IntN(3) == 0 {
					if err := pod.Abandon(ctx, e); err != nil {
						t.Fatal(err)
					}
					continue
				}
				if _, err := pod.Write(ctx, e, dir, image.Options{}, Extra{}); err != nil {
					t.Fatal(err)
				}
				if err := pod.Commit(ctx, e); err != nil {
					t.Fatal(err)
				}
				for range rnd.IntN(3) {
					time.Sleep(time.Duration(rnd.IntN(10)) * time.Millisecond)
					back := rollbackCompared(t, pod, e)
					if c.part > 1 && back.Bytes > r.Bytes/c.part {
						t.Errorf("epoch %d: put back %d of %d bytes", e, back.Bytes, r.Bytes)
					}
				}
			}
		})
	}
}

// compareCopy compares the copy of the draft with the frozen processes.
func compareCopy(t *testing.T, pod *Pod) {
	t.Helper()
	compareMemory(t, pod, pod.draft)
}

func compareMemory(t *testing.T, pod *Pod, snap *snapshot) {
	t.Helper()
	for _, c := range snap.procs {
		f := pod.group.procs[c.pid].frozen
		m := c.pages.(*memory)
		for _, r := range m.runs {
			have := make([]byte, r.Len())
			if err := f.ReadForce(r.Start, have); err != nil {
				t.Fatal(err)
			}
			want := bytes.Clone(m.view(r))
			for _, th := range c.image.Threads {
				// The kernel writes the number of the core there, whenever a
				// thread runs, be it for an injected call; and it resets the
				// area of a thread, in its control block, that had not
				// registered it yet.
				area := kernel.Range{Start: th.RseqAddr, End: th.RseqAddr + uint64(th.RseqLen)}
				if th.RseqAddr == 0 {
					regs := kernel.FromWords(&th.Regs)
					area = kernel.Range{Start: regs.Fs_base, End: regs.Fs_base + 0x1000}
				}
				for _, x := range intersect([]kernel.Range{area}, []kernel.Range{r}) {
					clear(have[x.Start-r.Start : x.End-r.Start])
					clear(want[x.Start-r.Start : x.End-r.Start])
				}
			}
			for at := 0; at < len(have); at += pageSize {
				if !bytes.Equal(have[at:at+pageSize], want[at:at+pageSize]) {
					k := at
					for have[k] == want[k] {
						k++
					}
					t.Errorf("epoch %d: byte %x differs, %d of %d bytes were copied", snap.epoch, r.Start+uint64(k), c.copied, m.size)
					for _, th := range c.image.Threads {
						t.Logf("thread %d: rseq %x+%d, tid at %x", th.TID, th.RseqAddr, th.RseqLen, th.ClearTID)
					}
				}
			}
		}
	}
}

// rollbackCompared is rollback with a look at memory before the release.
func rollbackCompared(t *testing.T, pod *Pod, e job.Epoch) *Report {
	t.Helper()
	ctx := testCtx(t)
	if _, err := pod.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	r, err := pod.Rollback(ctx, e, 1)
	if err != nil {
		t.Fatal(err)
	}
	compareMemory(t, pod, pod.committed)
	if _, err := pod.Release(ctx); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestReuse lays random ranges into the buffer of random older ones: every page
// has a place of its own, and what was there before keeps it.
func TestReuse(t *testing.T) {
	const pages = 64
	draw := func(t *rapid.T, name string) []kernel.Range {
		var list []kernel.Range
		for i := uint64(0); i < pages; i++ {
			if rapid.Bool().Draw(t, name) {
				list = append(list, kernel.Range{Start: i * pageSize, End: (i + 1) * pageSize})
			}
		}
		return normalize(list)
	}
	rapid.Check(t, func(t *rapid.T) {
		old := newMemory(draw(t, "old"), &buffer{mem: make([]byte, pages*pageSize)})
		for k := range 3 {
			now := reuse(draw(t, "now"), old)
			if now == nil {
				t.Fatal("no room")
			}
			seen := map[int]bool{}
			for i, r := range now.runs {
				for at := uint64(0); at < r.Len(); at += pageSize {
					off := now.offs[i] + int(at)
					if seen[off] || off+pageSize > len(now.buf.mem) {
						t.Fatalf("round %d: offset %x twice or outside", k, off)
					}
					seen[off] = true
				}
			}
			for _, r := range intersect(now.runs, old.runs) {
				if &now.view(r)[0] != &old.view(r)[0] {
					t.Fatalf("round %d: page %x moved", k, r.Start)
				}
			}
			old = now
		}
	})
}
