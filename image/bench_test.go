package image

import (
	"errors"
	"fmt"
	"testing"

	"github.com/lampause/lampause/job"
)

func BenchmarkWrite(b *testing.B) {
	mem := pages(1, 1<<16, 0) // 256 MB
	for _, o := range []Options{{}, {Direct: true}, {Compression: CompressS2}} {
		b.Run(fmt.Sprintf("%+v", o), func(b *testing.B) {
			d := testDir(b)
			b.SetBytes(int64(len(mem)))
			for i := 0; b.Loop(); i++ {
				w, err := d.Create(Identity{Job: 7, Epoch: job.Epoch(i + 1)}, o)
				if err != nil {
					b.Fatal(err)
				}
				p, err := w.Process(5)
				if err = errors.Join(err, p.Write(testBase, mem), p.Close()); err != nil {
					b.Fatal(err)
				}
				_, err = w.Commit(b.Context(), &Manifest{Processes: []Process{{PID: 5, Threads: []Thread{{TID: 5}}}}})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := d.Remove(job.Epoch(i + 1)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	d := testDir(b)
	w, err := d.Create(Identity{Job: 7, Epoch: 1}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	mem := pages(1, 1<<16, 0)
	p, err := w.Process(5)
	if err = errors.Join(err, p.Write(testBase, mem), p.Close()); err != nil {
		b.Fatal(err)
	}
	if _, err := w.Commit(b.Context(), &Manifest{Processes: []Process{{PID: 5, Threads: []Thread{{TID: 5}}}}}); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(mem)))
	for b.Loop() {
		r, err := d.Open(1, 0)
		if err = errors.Join(err, r.Verify(b.Context(), 4), r.Close()); err != nil {
			b.Fatal(err)
		}
	}
}
