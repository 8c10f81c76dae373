package proc

import (
	"testing"

	"golang.org/x/sys/unix"
)

func BenchmarkBatch(b *testing.B) {
	p := start(b, build(b, "count"))
	tr := newTracer(b, nil)
	ctx := testCtx(b)
	f, err := tr.Freeze(ctx, p.pid())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		batch := f.Batch(f.Leader())
		batch.Call(unix.SYS_GETPID)
		if err := batch.Run(ctx); err != nil {
			b.Fatal(err)
		}
	}
	_ = f.Thaw(ctx)
}

func BenchmarkFreezeThaw(b *testing.B) {
	p := start(b, build(b, "count"))
	tr := newTracer(b, nil)
	for b.Loop() {
		ctx := testCtx(b)
		f, err := tr.Freeze(ctx, p.pid())
		if err != nil {
			b.Fatal(err)
		}
		if err := f.Thaw(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
