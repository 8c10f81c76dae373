package pause

import (
	"bufio"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/internal/progtest"
	"github.com/lampause/lampause/job"
)

// TestMain keeps descriptors that the shell left open away from the programs
// under test.
//
// It makes the tests the reaper of orphans, which not every pid 1 of a container
// is: the copies that forks make are orphans.
func TestMain(m *testing.M) {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)    // else they are looked for in vain, no more
	_ = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) // older kernels: nothing was inherited, hopefully
	os.Exit(m.Run())
}

// build compiles testdata/c/NAME.c and returns the program's path.
func build(t testing.TB, name string) string {
	t.Helper()
	return progtest.Build(t, filepath.Join("testdata", "c", name+".c"), "-lrt")
}

// program is a running C program that said "ready".
type program struct {
	t   testing.TB
	cmd *exec.Cmd
	out *bufio.Reader
	ext []External
}

func start(t testing.TB, path string, args ...string) *program {
	t.Helper()
	cmd := exec.Command(path, args...) //nolint:forbidigo // ended by the test itself
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	errlog, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, errlog
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, cmd: cmd, out: bufio.NewReader(r)}
	for i, f := range []*os.File{w, errlog} {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		p.ext = append(p.ext, External{Name: []string{"stdout", "stderr"}[i], Dev: st.Dev, Ino: st.Ino})
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_, _, _ = r.Close(), w.Close(), errlog.Close()
	})
	line, err := p.out.ReadString('\n')
	if err != nil || line != "ready\n" {
		b, _ := os.ReadFile(errlog.Name())
		t.Fatalf("program said %q, %v: %s", line, err, b)
	}
	return p
}

func (p *program) pid() int { return p.cmd.Process.Pid }

// wait wants exit status 0.
func (p *program) wait() {
	p.t.Helper()
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			b, _ := os.ReadFile(p.cmd.Stderr.(*os.File).Name())
			p.t.Fatalf("program: %v: %s", err, b)
		}
	case <-time.After(60 * time.Second):
		st, _ := proc.ReadStatus(p.pid())
		p.t.Fatalf("program did not end: %+v", st)
	}
}

func testCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newPod(t testing.TB, sys *kernel.Sys, p *program) (*Pod, *image.JobDir) {
	t.Helper()
	return newPodBacked(t, sys, BackingAuto, p)
}

// newPodBacked is newPod for several ranks and a certain backing.
func newPodBacked(t testing.TB, sys *kernel.Sys, b Backing, ranks ...*program) (*Pod, *image.JobDir) {
	t.Helper()
	pod := New(Config{Job: 1, Node: "n1", Incarnation: 1, Sys: sys, Backing: b, Log: zerolog.New(zerolog.NewTestWriter(t))})
	var list []Rank
	var ext []External
	for i, p := range ranks {
		list = append(list, Rank{Rank: job.Rank(i), PID: p.pid()})
		for _, x := range p.ext {
			x.Rank = job.Rank(i)
			ext = append(ext, x)
		}
	}
	pod.SetRanks(list, ext)
	dir, err := image.OpenJob(t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = pod.Close()
		_ = dir.Close()
	})
	return pod, dir
}

// capture takes the stall of epoch e.
func capture(ctx context.Context, pod *Pod, e job.Epoch) (*Report, error) {
	if _, err := pod.Freeze(ctx, e); err != nil {
		return nil, err
	}
	steps := []func(context.Context, job.Epoch) (*Report, error){
		pod.CaptureSend, pod.CaptureRecv,
		func(ctx context.Context, e job.Epoch) (*Report, error) { return pod.Resume(ctx, e, []podapi.Mark{}) },
	}
	var r *Report
	for _, s := range steps {
		x, err := s(ctx, e)
		if err != nil {
			return nil, err
		}
		if x.Bytes > 0 {
			r = x
		}
	}
	return r, nil
}

// checkpoint takes and commits epoch e.
func checkpoint(t testing.TB, pod *Pod, dir *image.JobDir, e job.Epoch) {
	t.Helper()
	ctx := testCtx(t)
	if _, err := capture(ctx, pod, e); err != nil {
		t.Fatalf("epoch %d: %v", e, err)
	}
	if _, err := pod.Write(ctx, e, dir, image.Options{}, Extra{}); err != nil {
		t.Fatalf("epoch %d: %v", e, err)
	}
	if err := pod.Commit(ctx, e); err != nil {
		t.Fatalf("epoch %d: %v", e, err)
	}
}

// rollback goes back to epoch e and on.
func rollback(t testing.TB, pod *Pod, e job.Epoch, gen uint64) *Report {
	t.Helper()
	ctx := testCtx(t)
	if _, err := pod.Stop(ctx); err != nil {
		t.Fatalf("stop: %v", err)
	}
	r, err := pod.Rollback(ctx, e, gen)
	if err != nil {
		t.Fatalf("rollback: %v", err)
	}
	if _, err := pod.Release(ctx); err != nil {
		t.Fatalf("release: %v", err)
	}
	return r
}

// TestRollbackRandom compares runs that are put back several times, at random
// moments, with an undisturbed one.
func TestRollbackRandom(t *testing.T) {
	for _, c := range []struct{ name, steps string }{{"mix", "1200"}, {"shm", "60000"}, {"pairs", "30000"}} {
		t.Run(c.name, func(t *testing.T) {
			exe := build(t, c.name)
			want := reference(t, exe, c.steps)
			for seed := range uint64(3) {
				out := filepath.Join(t.TempDir(), "out")
				p := start(t, exe, out, c.steps)
				disturb(t, p, rand.New(rand.NewPCG(seed, 7)))
				p.wait()
				got, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err)
				}
				if string(got) != want {
					t.Fatalf("seed %d: output differs from an undisturbed run", seed)
				}
			}
		})
	}
}

// disturb takes three checkpoints and goes back to each of them some times.
func disturb(t *testing.T, p *program, rnd *rand.Rand) {
	t.Helper()
	pause := func(ms int) { time.Sleep(time.Duration(rnd.IntN(ms*1000)) * time.Microsecond) }
	pod, dir := newPod(t, nil, p)
	gen := uint64(1)
	for e := job.Epoch(1); e <= 3; e++ {
		pause(50)
		checkpoint(t, pod, dir, e)
		for range 1 + rnd.IntN(3) {
			pause(60)
			r := rollback(t, pod, e, gen)
			t.Logf("rollback: %d bytes, %v", r.Bytes, r.TimesMS)
			gen++
		}
	}
}
