package pause

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/job"
)

// samples are measurements by name.
type samples map[string][]float64

func (s samples) add(name string, v float64) { s[name] = append(s[name], v) }

func (s samples) median(name string) float64 {
	list := slices.Sorted(slices.Values(s[name]))
	if len(list) == 0 {
		return 0
	}
	return (list[(len(list)-1)/2] + list[len(list)/2]) / 2
}

// report reports the medians of all names, which are units of testing.B, in
// place of the time of an iteration.
func (s samples) report(b *testing.B) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	for name := range s {
		b.ReportMetric(s.median(name), name)
	}
}

// copier measures the memcpy of the machine: all cores together copy between
// memory that was touched before.
type copier struct{ from, to []byte }

func newCopier(size int) *copier {
	c := &copier{make([]byte, size), make([]byte, size)}
	for i := 0; i < size; i += pageSize {
		c.from[i], c.to[i] = 1, 1
	}
	return c
}

func (c *copier) time() time.Duration {
	n := runtime.GOMAXPROCS(0)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		from, to := len(c.from)/n*i, len(c.from)/n*(i+1)
		wg.Go(func() { copy(c.to[from:to], c.from[from:to]) })
	}
	wg.Wait()
	return time.Since(begin)
}

// pass has a running testdata/c/passes.c change its memory once, and returns how
// many milliseconds that took. It sleeps before and after.
func (p *program) pass() float64 {
	p.t.Helper()
	if err := unix.Kill(p.pid(), unix.SIGUSR1); err != nil {
		p.t.Fatal(err)
	}
	line := make(chan string, 1)
	go func() {
		s, _ := p.out.ReadString('\n')
		line <- s
	}()
	select {
	case s := <-line:
		ns, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
		if err != nil {
			p.t.Fatal(err)
		}
		return ms(time.Duration(ns))
	case <-time.After(30 * time.Second):
		p.t.Fatal("the program does not answer")
	}
	return 0
}

// BenchmarkRollback puts a process with 512 MB back that changed all of them,
// from its stop to its release. "of-memcpy" is the rate in parts of that of the
// machine's memcpy of as much, right before.
func BenchmarkRollback(b *testing.B) {
	const mb = 512
	p := start(b, build(b, "passes"), strconv.Itoa(mb), strconv.Itoa(mb))
	pod, dir := newPod(b, nil, p)
	checkpoint(b, pod, dir, 1)
	mem := newCopier(mb << 20)
	s := samples{}
	generation := uint64(0)
	for b.Loop() {
		for range 7 {
			p.pass()
			memcpy := float64(mb<<20) / mem.time().Seconds()
			generation++
			begin := time.Now()
			r := rollback(b, pod, 1, generation)
			rate := float64(r.Bytes) / time.Since(begin).Seconds()
			s.add("GB/s", rate/1e9)
			s.add("memcpy-GB/s", memcpy/1e9)
			s.add("of-memcpy", rate/memcpy)
			s.add("MB", float64(r.Bytes)/1e6)
			s.add("ms-rollback", r.TimesMS["rollback"])
			s.add("ms-pages", r.TimesMS["pages"])
		}
	}
	s.report(b)
}

// BenchmarkChanged takes a first checkpoint of 512 MB, and others after a part
// of them changed. "of-first" is what a later one costs in parts of the first:
// its stall, with memory copied in it, and its writing; "copied" and "written"
// are its bytes in parts of the whole.
func BenchmarkChanged(b *testing.B) {
	const mb = 512
	exe := build(b, "passes")
	for _, percent := range []float64{1, 10, 50} {
		b.Run(fmt.Sprintf("%v%%", percent), func(b *testing.B) {
			p := start(b, exe, strconv.Itoa(mb), fmt.Sprint(mb*percent/100))
			s := samples{}
			pod, dir := firstCosts(b, p, s)
			for e := job.Epoch(1); b.Loop(); {
				for range 4 {
					e++
					p.pass()
					c := costOf(b, pod, dir, e)
					s.add("stall-ms", c.stall)
					s.add("write-ms", c.write)
					s.add("copied", c.copied)
					s.add("written", c.written)
				}
			}
			s.add("stall-of-first", s.median("stall-ms")/s.median("first-stall-ms"))
			s.add("write-of-first", s.median("write-ms")/s.median("first-write-ms"))
			s.report(b)
		})
	}
}

// firstCosts takes the first checkpoint of several pods, and returns the last.
func firstCosts(b *testing.B, p *program, s samples) (pod *Pod, dir *image.JobDir) {
	b.Helper()
	for k := range 3 {
		if k > 0 {
			if err := errors.Join(pod.Close(), dir.Remove(1)); err != nil {
				b.Fatal(err)
			}
		}
		pod, dir = newPodBacked(b, nil, BackingCopy, p)
		c := costOf(b, pod, dir, 1)
		s.add("first-stall-ms", c.stall)
		s.add("first-write-ms", c.write)
	}
	return pod, dir
}

// cost is what a checkpoint costs: milliseconds, and parts of the whole.
type cost struct{ stall, write, copied, written float64 }

// costOf takes and commits epoch e, and removes the one before.
func costOf(b *testing.B, pod *Pod, dir *image.JobDir, e job.Epoch) cost {
	b.Helper()
	ctx := testCtx(b)
	if err := pod.Prepare(ctx); err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	r, err := capture(ctx, pod, e)
	if err != nil {
		b.Fatal(err)
	}
	c := cost{stall: ms(time.Since(begin)), copied: float64(r.Copied) / float64(r.Bytes)}
	begin = time.Now()
	w, err := pod.Write(ctx, e, dir, image.Options{}, Extra{})
	if err != nil {
		b.Fatal(err)
	}
	c.write, c.written = ms(time.Since(begin)), float64(w.NewBytes)/float64(r.Bytes)
	if err := pod.Commit(ctx, e); err != nil {
		b.Fatal(err)
	}
	if e > 1 {
		if err := dir.Remove(e - 1); err != nil {
			b.Fatal(err)
		}
	}
	return c
}

// BenchmarkBetween compares a program that is tracked between its checkpoints
// with another that is not, in turns: both change half of 512 MB in a pass.
// "slowdown" is the ratio of passes from the second after a checkpoint on,
// "first-slowdown" that of the first, in which the kernel notes every page once;
// "first-ms/GB" is what that costs, and "slowdown-30s" the run time of 30 s
// between two checkpoints with it, in parts of that without.
func BenchmarkBetween(b *testing.B) {
	const mb, part = 512, 256
	exe := build(b, "passes")
	names := []string{"tracked", "untracked"}
	programs, pods := map[string]*program{}, map[string]*Pod{}
	for _, name := range names {
		programs[name] = start(b, exe, strconv.Itoa(mb), strconv.Itoa(part))
		pods[name], _ = newPodBacked(b, nil, BackingCopy, programs[name])
		pods[name].group.cfg.NoTracking = name == "untracked"
	}
	s := samples{}
	e := job.Epoch(0)
	for b.Loop() {
		for range 5 {
			e++
			for _, name := range names {
				stallOnce(b, pods[name], e, func(string, float64) {})
				s.add("first-"+name+"-ms", programs[name].pass())
				for range 5 {
					s.add(name+"-ms", programs[name].pass())
				}
			}
			if !pods["tracked"].group.list()[0].tracker.armed {
				b.Skip("this kernel does not track writes")
			}
			if pods["untracked"].group.list()[0].tracker.fd >= 0 {
				b.Fatal("both programs are tracked")
			}
		}
	}
	extra := s.median("first-tracked-ms") - s.median("first-untracked-ms")
	s.add("slowdown", s.median("tracked-ms")/s.median("untracked-ms"))
	s.add("first-slowdown", s.median("first-tracked-ms")/s.median("first-untracked-ms"))
	s.add("first-ms/GB", extra*1e9/(part<<20))
	s.add("slowdown-30s", s.median("slowdown")+extra/30e3)
	s.report(b)
}
