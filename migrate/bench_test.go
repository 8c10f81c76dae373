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

// TestRestoreRate reports at which rate a process with much memory comes back,
// image in the page cache; it asserts nothing about time. LAM_BENCH_MB sets
// the size.
func TestRestoreRate(t *testing.T) {
	mb := os.Getenv("LAM_BENCH_MB")
	if mb == "" {
		t.Skip("LAM_BENCH_MB is not set")
	}
	out := output(t)
	dir := captured(t, out, "step 0 ", worker(t), "3", "3", mb)
	for range 5 {
		n := namespace(t)
		begin := time.Now()
		r, err := tryRestore(t, n, nil, dir, out)
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(begin)
		t.Logf("%d MB in %v: %.2f GB/s; %v", r.Bytes>>20, took, float64(r.Bytes)/took.Seconds()/1e9, r.Times)
		if err := r.Kill(); err != nil {
			t.Fatal(err)
		}
	}
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
