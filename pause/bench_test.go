package pause

import (
	"testing"
	"time"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/job"
)

// BenchmarkStall measures Freeze to Resume of a small program with six
// threads.
func BenchmarkStall(b *testing.B) {
	p := start(b, build(b, "mix"), b.TempDir()+"/out", "1000000")
	pod, _ := newPod(b, nil, p)
	sum := map[string]float64{}
	e := job.Epoch(0)
	for b.Loop() {
		e++
		ctx := testCtx(b)
		if err := pod.Prepare(ctx); err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		for _, s := range []func() (*Report, error){
			func() (*Report, error) { return pod.Freeze(ctx, e) },
			func() (*Report, error) { return pod.CaptureSend(ctx, e) },
			func() (*Report, error) { return pod.CaptureRecv(ctx, e) },
			func() (*Report, error) { return pod.Resume(ctx, e, nil) },
		} {
			r, err := s()
			if err != nil {
				b.Fatal(err)
			}
			for k, v := range r.TimesMS {
				sum[k] += v
			}
		}
		sum["stall"] += ms(time.Since(begin))
		if err := pod.Abandon(ctx, e); err != nil {
			b.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	for k, v := range sum {
		b.ReportMetric(v/float64(e), "ms-"+k)
	}
}

// BenchmarkCycle measures a checkpoint and a rollback of 512 MB, of which 32
// are being changed.
func BenchmarkCycle(b *testing.B) {
	p := start(b, build(b, "big"), "512", "32")
	pod, dir := newPod(b, nil, p)
	sum := map[string]float64{}
	e := job.Epoch(0)
	for b.Loop() {
		e++
		if err := pod.Prepare(testCtx(b)); err != nil {
			b.Fatal(err)
		}
		ctx := testCtx(b)
		begin := time.Now()
		for _, s := range []func() (*Report, error){
			func() (*Report, error) { return pod.Freeze(ctx, e) },
			func() (*Report, error) { return pod.CaptureSend(ctx, e) },
			func() (*Report, error) { return pod.CaptureRecv(ctx, e) },
			func() (*Report, error) { return pod.Resume(ctx, e, nil) },
		} {
			r, err := s()
			if err != nil {
				b.Fatal(err)
			}
			for _, k := range []string{"stop", "maps", "scan", "state", "copy", "buffer", "freeze", "capture-send"} {
				sum["stall-"+k] += r.TimesMS[k]
			}
		}
		sum["stall"] += ms(time.Since(begin))
		begin = time.Now()
		if _, err := pod.Write(testCtx(b), e, dir, image.Options{}, Extra{}); err != nil {
			b.Fatal(err)
		}
		sum["write"] += ms(time.Since(begin))
		if err := pod.Commit(testCtx(b), e); err != nil {
			b.Fatal(err)
		}
		if err := dir.Remove(e); err != nil {
			b.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		r := rollback(b, pod, e, uint64(e))
		for _, k := range []string{"rollback", "pages", "layout", "finish", "scan"} {
			sum[k] += r.TimesMS[k]
		}
	}
	for k, v := range sum {
		b.ReportMetric(v/float64(e), "ms-"+k)
	}
}
