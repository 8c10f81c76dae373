package proc

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// TestCloneThreadFaults makes every call of a new thread's birth fail once:
// whatever was born is among the threads of the frozen process. A thread that
// nobody knew of stayed attached and stopped for ever, and the next freeze was
// refused.
func TestCloneThreadFaults(t *testing.T) {
	p := start(t, build(t, "count"))
	n, calls, hit, armed := 0, 0, "", false
	tr := newTracer(t, func(op string, _ int) unix.Errno {
		if !armed {
			return 0
		}
		if calls++; calls == n {
			hit = op
			return unix.EIO
		}
		return 0
	})
	failed, strays := map[string]int{}, 0
	for n = 1; ; n++ {
		ctx := testCtx(t)
		f, err := tr.Freeze(ctx, p.pid())
		if err != nil {
			t.Fatalf("call %d: freeze: %v", n, err)
		}
		before := len(f.Threads)
		calls, hit, armed = 0, "", true
		th, err := f.CloneThread(ctx, CloneArgs{})
		armed = false
		if err != nil && (!errors.Is(err, unix.EIO) || th != nil) {
			t.Fatalf("call %d (%s): %v, %v", n, hit, th, err)
		}
		tids, terr := Tasks(p.pid())
		if terr != nil || len(tids) != len(f.Threads) {
			t.Fatalf("call %d (%s): %d threads are known, there are %v, %v", n, hit, len(f.Threads), tids, terr)
		}
		if err != nil {
			strays += len(f.Threads) - before
		}
		for len(f.Threads) > before {
			if err := f.ExitThread(ctx, f.Threads[before]); err != nil {
				t.Fatalf("call %d (%s): exit: %v", n, hit, err)
			}
		}
		if err := f.Thaw(ctx); err != nil && !errors.Is(err, kernel.ErrGone) {
			t.Fatalf("call %d (%s): thaw: %v", n, hit, err)
		}
		if hit == "" {
			break
		}
		failed[hit]++
	}
	if strays == 0 {
		t.Error("no failure came after the birth: nothing was shown")
	}
	t.Logf("failed %v, %d of them after the birth", failed, strays)
	p.finish()
}
