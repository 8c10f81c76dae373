package pause

import (
	"context"
	"testing"
	"time"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/job"
)

// BenchmarkStallRanks measures the stall of four ranks with 125 MB each, all of
// it changed all the time, with either backing in turns, against the machine's
// memcpy.
func BenchmarkStallRanks(b *testing.B) {
	exe := build(b, "big")
	least := map[string]float64{}
	keep := func(name string, v float64) {
		if old, ok := least[name]; !ok || v < old {
			least[name] = v
		}
	}
	var ranks []*program
	for range 4 {
		ranks = append(ranks, start(b, exe, "125", "125"))
	}
	pods := map[Backing]*Pod{}
	dirs := map[Backing]*image.JobDir{}
	for _, k := range []Backing{BackingCopy, BackingFork} {
		pods[k], dirs[k] = newPodBacked(b, nil, k, ranks...)
		pods[k].cfg.NoTracking = false
	}
	e := job.Epoch(0)
	for b.Loop() {
		for _, k := range []Backing{BackingCopy, BackingFork} {
			for range 3 {
				e++
				stallOnce(b, pods[k], e, func(name string, v float64) { keep(string(k)+"-"+name, v) })
			}
			for _, q := range pods[k].group.procs { // the other pod tracks writes too
				q.closeTracker()
			}
		}
	}
	for k, v := range least {
		b.ReportMetric(v, "ms-"+k)
	}
}

// stallOnce takes one round, waits for the copy, and gives it up.
func stallOnce(b *testing.B, pod *Pod, e job.Epoch, keep func(string, float64)) {
	b.Helper()
	ctx := testCtx(b)
	if err := pod.Prepare(ctx); err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	for _, s := range []func(context.Context, job.Epoch) (*Report, error){
		pod.Freeze, pod.CaptureSend, pod.CaptureRecv,
		func(ctx context.Context, e job.Epoch) (*Report, error) { return pod.Resume(ctx, e, nil) },
	} {
		r, err := s(ctx, e)
		if err != nil {
			b.Fatal(err)
		}
		for k, v := range r.TimesMS {
			keep(k, v)
		}
	}
	keep("stall", ms(time.Since(begin)))
	begin = time.Now()
	if err := pod.draft.finish(ctx); err != nil {
		b.Fatal(err)
	}
	keep("later", ms(time.Since(begin)))
	if err := pod.Abandon(ctx, e); err != nil {
		b.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
}
