package image

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lampause/lampause/job"
)

const benchPages = 1 << 16 // 256 MB

// benchWrite writes the pages as epoch e, and returns how long that took.
func benchWrite(b *testing.B, d *JobDir, e job.Epoch, o Options, base job.Epoch, mem []byte, same int) time.Duration {
	b.Helper()
	start := time.Now()
	w, err := d.Create(Identity{Job: 7, Epoch: e}, o)
	if err != nil {
		b.Fatal(err)
	}
	if base != 0 {
		r, err := d.Open(base, 0)
		if err = errors.Join(err, w.Base(r)); err != nil {
			b.Fatal(err)
		}
		defer func() { _ = r.Close() }()
	}
	p, err := w.Process(5)
	if err != nil {
		b.Fatal(err)
	}
	cut := uint64(same * pageSize)
	if left := p.Keep([]Span{{testBase, testBase + cut}}); base != 0 && len(left) > 0 {
		b.Fatalf("not shared: %x", left)
	} else if base == 0 {
		cut = 0
	}
	if err := errors.Join(p.Write(testBase+cut, mem[cut:]), p.Close()); err != nil {
		b.Fatal(err)
	}
	if _, err := w.Commit(b.Context(), &Manifest{Processes: []Process{{PID: 5, Threads: []Thread{{TID: 5}}}}}); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// BenchmarkWrite writes images of 256 MB. "of-dd" is the rate in parts of what
// dd reaches with as much memory, direct or through the page cache, right before.
func BenchmarkWrite(b *testing.B) {
	mem := pages(1, benchPages, 0)
	for _, o := range []Options{{}, {Direct: true}, {Compression: CompressS2}} {
		b.Run(fmt.Sprintf("%+v", o), func(b *testing.B) {
			d := testDir(b)
			b.SetBytes(int64(len(mem)))
			var ours, dds time.Duration
			for e := job.Epoch(1); b.Loop(); e++ {
				b.StopTimer()
				dds += dd(b, filepath.Join(d.Path(), "dd"), o.Direct)
				b.StartTimer()
				ours += benchWrite(b, d, e, o, 0, mem, 0)
				b.StopTimer()
				if err := d.Remove(e); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(dds.Seconds()/ours.Seconds(), "of-dd")
		})
	}
}

// dd writes 256 MB as an image is written: in pieces of 4 MB, synced at the end.
func dd(b *testing.B, path string, direct bool) time.Duration {
	b.Helper()
	args := []string{"if=/dev/zero", "of=" + path, "bs=4M", fmt.Sprintf("count=%d", benchPages*pageSize>>22), "conv=fsync"}
	if direct {
		args = append(args, "oflag=direct")
	}
	start := time.Now()
	if out, err := exec.CommandContext(b.Context(), "dd", args...).CombinedOutput(); err != nil {
		b.Fatalf("dd: %v: %s", err, out)
	}
	took := time.Since(start)
	if err := exec.CommandContext(b.Context(), "rm", path).Run(); err != nil {
		b.Fatal(err)
	}
	return took
}

// BenchmarkWriteIncrement writes an image of 256 MB of which 64 MB are new.
func BenchmarkWriteIncrement(b *testing.B) {
	mem := pages(1, benchPages, 0)
	d := testDir(b)
	benchWrite(b, d, 1, Options{Direct: true}, 0, mem, 0)
	b.SetBytes(int64(len(mem)))
	for e := job.Epoch(2); b.Loop(); e++ {
		benchWrite(b, d, e, Options{Direct: true}, e-1, mem, benchPages*3/4)
		b.StopTimer()
		if err := d.Remove(e - 1); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkReceive takes a whole image, and one of which three quarters are
// here.
func BenchmarkReceive(b *testing.B) {
	mem := pages(1, benchPages, 0)
	src := testDir(b)
	benchWrite(b, src, 1, Options{}, 0, mem, 0)
	benchWrite(b, src, 2, Options{}, 1, mem, benchPages*3/4)
	for e := job.Epoch(1); e <= 2; e++ {
		b.Run([]string{"whole", "increment"}[e-1], func(b *testing.B) {
			r, err := src.Open(e, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			b.SetBytes(int64(len(mem)))
			for b.Loop() {
				b.StopTimer()
				dst := testDir(b)
				if e == 2 {
					receiveAll(b, src, dst, 1)
				}
				b.StartTimer()
				receiveAll(b, src, dst, e)
			}
		})
	}
}

func receiveAll(b *testing.B, src, dst *JobDir, e job.Epoch) {
	b.Helper()
	r, err := src.Open(e, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	recv, err := dst.Receive(e, 0, r.Written())
	if err != nil {
		b.Fatal(err)
	}
	for left := recv.Missing(); len(left) > 0; left = recv.Missing() {
		f, err := src.OpenFile(e, 0, left[0])
		if err = errors.Join(err, recv.File(b.Context(), left[0], f), f.Close()); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := recv.Commit(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkVerify(b *testing.B) {
	d := testDir(b)
	mem := pages(1, benchPages, 0)
	benchWrite(b, d, 1, Options{}, 0, mem, 0)
	for _, how := range []string{"xxh3", "sha256"} {
		b.Run(how, func(b *testing.B) {
			b.SetBytes(int64(len(mem)))
			for b.Loop() {
				r, err := d.Open(1, 0)
				if err == nil && how == "xxh3" {
					err = r.Verify(b.Context(), 4)
				} else if err == nil {
					err = r.VerifyDigests(b.Context())
				}
				if err = errors.Join(err, r.Close()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
