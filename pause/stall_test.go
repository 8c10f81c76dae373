package pause

import (
	"context"
	"testing"
	"time"

	"github.com/lampause/lampause/job"
)

// BenchmarkStallRanks measures the stall of four ranks with 125 MB each, all of
// it changed all the time, with either backing in turns. "of-memcpy" is the rate
// of the stall in parts of that of the machine's memcpy of as much, right before
// and while the ranks are suspended; a fork, which copies later, may exceed 1.
func BenchmarkStallRanks(b *testing.B) {
	exe := build(b, "big")
	var ranks []*program
	for range 4 {
		ranks = append(ranks, start(b, exe, "125", "125"))
	}
	backings := []Backing{BackingCopy, BackingFork}
	pods := map[Backing]*Pod{}
	for _, k := range backings {
		pods[k], _ = newPodBacked(b, nil, k, ranks...)
	}
	mem := newCopier(4 * 125 << 20)
	s := samples{}
	e := job.Epoch(0)
	for b.Loop() {
		for _, k := range backings {
			for range 5 {
				e++
				memcpy := suspendedCopy(b, pods[k], mem)
				parts := map[string]float64{}
				bytes := stallOnce(b, pods[k], e, func(name string, v float64) { parts[name] = v })
				for name, v := range parts {
					s.add("ms-"+string(k)+"-"+name, v)
				}
				s.add("memcpy-GB/s", memcpy/1e9)
				s.add(string(k)+"-ms/GB", parts["stall"]*1e9/float64(bytes))
				s.add(string(k)+"-of-memcpy", float64(bytes)*1e3/parts["stall"]/memcpy)
			}
			for _, q := range pods[k].group.procs { // the other pod tracks writes too
				q.closeTracker()
			}
		}
	}
	s.report(b)
}

// suspendedCopy returns the rate of a copy while the ranks are suspended, in
// bytes a second.
func suspendedCopy(b *testing.B, pod *Pod, mem *copier) float64 {
	b.Helper()
	if err := pod.Suspend(testCtx(b)); err != nil {
		b.Fatal(err)
	}
	took := mem.time()
	if err := pod.Continue(testCtx(b)); err != nil {
		b.Fatal(err)
	}
	return float64(len(mem.from)) / took.Seconds()
}

// stallOnce takes one round, waits for the copy, and gives it up. It returns how
// much memory it kept.
func stallOnce(b *testing.B, pod *Pod, e job.Epoch, keep func(string, float64)) (bytes int64) {
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
		bytes = max(bytes, r.Bytes)
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
	return bytes
}
