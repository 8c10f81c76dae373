package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/migrate"
)

// BenchmarkRestore rebuilds a process with much memory, from an image in the
// page cache: checked once, and once more while it is read. LAM_BENCH_MB sets
// the size (default 512). "of-memcpy" is the rate in parts of that at which one
// core copies as much memory to memory that was touched before.
func BenchmarkRestore(b *testing.B) {
	mb := os.Getenv("LAM_BENCH_MB")
	if mb == "" {
		mb = "512"
	}
	out := output(b)
	dir := captured(b, out, "step 0 ", worker(b), "3", "3", mb)
	var bytes int64
	var took time.Duration
	for b.Loop() {
		b.StopTimer()
		n := namespace(b)
		b.StartTimer()
		begin := time.Now()
		r, err := tryRestore(b, n, nil, dir, out)
		if err != nil {
			b.Fatal(err)
		}
		took += time.Since(begin)
		b.StopTimer()
		bytes = r.Bytes
		if err := r.Kill(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.SetBytes(bytes)
	b.ReportMetric(float64(bytes)*float64(b.N)/took.Seconds()/1e9, "GB/s")
	b.ReportMetric(copying(int(bytes)).Seconds()*float64(b.N)/took.Seconds(), "of-memcpy")
}

// copying measures one copy of size bytes.
func copying(size int) time.Duration {
	from, to := make([]byte, size), make([]byte, size)
	for _, mem := range [][]byte{from, to} {
		for i := 0; i < size; i += image.PageSize {
			mem[i] = 1
		}
	}
	begin := time.Now()
	copy(to, from)
	return time.Since(begin)
}

// TestCancelled: a context that ends in the middle leaves nobody.
func TestCancelled(t *testing.T) {
	out := output(t)
	dir := captured(t, out, "step 1 ", worker(t), "2", "12", "32")
	n := namespace(t)
	for i := range 12 {
		img, err := image.OpenAt(dir)
		if err != nil {
			t.Fatal(err)
		}
		s, end := seedWithEnd(t, n)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*2*time.Millisecond)
		r, err := migrate.Restore(ctx, migrate.Config{Seeds: []migrate.Seed{s}, Sources: newStdio(t, out)}, img)
		if err == nil {
			err = r.Kill()
		}
		cancel()
		end()
		if err = errors.Join(img.Close(), ignore(err, context.DeadlineExceeded)); err != nil {
			t.Logf("attempt %d: %v", i, err)
		}
		wantNobody(t, n, fmt.Sprintf("attempt %d in %s", i, filepath.Base(dir)))
	}
}

func ignore(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}
