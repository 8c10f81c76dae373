package pause

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestRollbackFromImage lets a second Pod, which knows nothing but the image,
// put the live program back.
func TestRollbackFromImage(t *testing.T) {
	for _, c := range []struct{ name, steps string }{{"mix", "1500"}, {"shm", "60000"}, {"pairs", "20000"}} {
		t.Run(c.name, func(t *testing.T) {
			exe := build(t, c.name)
			want := reference(t, exe, c.steps)
			out := filepath.Join(t.TempDir(), "out")
			p := start(t, exe, out, c.steps)
			first, dir := newPod(t, nil, p)
			time.Sleep(20 * time.Millisecond)
			checkpoint(t, first, dir, 1)
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
			second := New(Config{Job: 1, Log: zerolog.New(zerolog.NewTestWriter(t))})
			defer func() { _ = second.Close() }()
			second.SetRanks([]Rank{{PID: p.pid()}}, p.ext)
			r, err := dir.Open(1, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := second.Adopt(testCtx(t), r, nil); err != nil {
				t.Fatal(err)
			}
			for gen := range uint64(3) {
				r := rollback(t, second, 1, gen+1)
				t.Logf("%d MB: %v", r.Bytes>>20, r.TimesMS)
				time.Sleep(20 * time.Millisecond)
			}
			// The next checkpoint is one of its own.
			checkpoint(t, second, dir, 2)
			rollback(t, second, 2, 9)
			p.wait()
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != want {
				t.Fatal("output differs from an undisturbed run")
			}
		})
	}
}
