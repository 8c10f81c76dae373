package pause

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/job"
)

// footprint is what must not grow with the number of cycles.
type footprint struct {
	fds, threads         int // ours
	progFDs, progThreads int
	progMaps             int
	rss                  int64 // ours, bytes
}

func measure(t *testing.T, pid int) footprint {
	t.Helper()
	var f footprint
	var errs [5]error
	var fds, tasks []int
	fds, errs[0] = proc.FDs(os.Getpid())
	f.fds = len(fds)
	tasks, errs[1] = proc.Tasks(os.Getpid())
	f.threads = len(tasks)
	fds, errs[2] = proc.FDs(pid)
	f.progFDs = len(fds)
	tasks, errs[3] = proc.Tasks(pid)
	f.progThreads = len(tasks)
	var maps []proc.Map
	maps, errs[4] = proc.Maps(pid)
	f.progMaps = len(maps)
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	if st, err := proc.ReadStatus(os.Getpid()); err == nil {
		f.rss = st.RSSAnon
	}
	return f
}

// TestNoLeak repeats checkpoints, of both backings, and rollbacks many times. LEAK_CYCLES sets how
// many; 1,000 take some minutes.
func TestNoLeak(t *testing.T) {
	cycles := 60
	if n, err := strconv.Atoi(os.Getenv("LEAK_CYCLES")); err == nil {
		cycles = n
	}
	p := start(t, build(t, "mix"), t.TempDir()+"/out", "100000000")
	pod, dir := newPod(t, nil, p)
	var before footprint
	for e := job.Epoch(1); e <= job.Epoch(cycles); e++ {
		ctx := testCtx(t)
		pod.cfg.Backing = []Backing{BackingFork, BackingCopy}[e/2%2]
		if _, err := capture(ctx, pod, e); err != nil {
			t.Fatal(err)
		}
		if e%3 == 0 { // an abandoned round
			if err := pod.Abandon(ctx, e); err != nil {
				t.Fatal(err)
			}
		} else {
			if _, err := pod.Write(ctx, e, dir, image.Options{}, Extra{}); err != nil {
				t.Fatal(err)
			}
			if err := pod.Commit(ctx, e); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Millisecond)
		rollback(t, pod, pod.State().Committed, uint64(e))
		if e > 1 {
			if err := dir.Remove(e - 1); err != nil && e%3 != 1 {
				t.Logf("remove: %v", err)
			}
		}
		if int(e) == cycles/4 {
			before = measure(t, p.pid())
		}
	}
	after := measure(t, p.pid())
	t.Logf("before %+v, after %+v", before, after)
	// The runtime makes threads as it likes, and the program has one thread
	// and a few mappings more at some moments than at others.
	if after.fds > before.fds+2 || after.threads > before.threads+8 || after.progFDs > before.progFDs+2 ||
		after.progThreads > before.progThreads+1 || after.progMaps > before.progMaps+24 ||
		after.rss > before.rss+64<<20 {
		t.Errorf("grew from %+v to %+v", before, after)
	}
	if left := copies(t, p); len(left) > 0 {
		t.Errorf("copies are left: %v", left)
	}
	kids, err := proc.Children(p.pid())
	if err != nil || len(kids) != 0 {
		t.Errorf("children %v, %v", kids, err)
	}
}
