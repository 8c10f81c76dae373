package pause

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/job"
)

// copies lists the processes that forks of the program made and that still
// live: children of the tests, which are the reaper, with the program's name.
// It takes the status of those that ended.
func copies(t *testing.T, p *program) []int {
	t.Helper()
	kids, err := proc.Children(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	own, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, k := range kids {
		st, err := proc.ReadStat(k)
		if err != nil || k == p.pid() || st.Session == own {
			continue // programs are in our session, copies of them are not
		}
		if got, _ := unix.Wait4(k, nil, unix.WNOHANG|unix.WALL, nil); got != k {
			out = append(out, k)
		}
	}
	return out
}

// TestForkedCopies compares copies that were made behind the program's back,
// while it ran on, with its memory when it was frozen.
func TestForkedCopies(t *testing.T) {
	p := start(t, build(t, "big"), "48", "8")
	pod, dir := newPodBacked(t, nil, BackingFork, p)
	rnd := rand.New(rand.NewPCG(3, 1))
	for e := job.Epoch(1); e <= 10; e++ {
		ctx := testCtx(t)
		if err := pod.Prepare(ctx); err != nil {
			t.Fatal(err)
		}
		frozen := captureFrozen(t, pod, e)
		if _, err := pod.Resume(ctx, e, []podapi.Mark{}); err != nil {
			t.Fatal(err)
		}
		if rnd.IntN(4) == 0 { // given up while the copy is under way
			time.Sleep(time.Duration(rnd.IntN(4)) * time.Millisecond)
			if err := pod.Abandon(ctx, e); err != nil {
				t.Fatal(err)
			}
			if left := copies(t, p); len(left) > 0 {
				t.Fatalf("epoch %d: abandoned, and %v are left", e, left)
			}
			continue
		}
		if _, err := pod.Write(ctx, e, dir, image.Options{}, Extra{}); err != nil {
			t.Fatal(err)
		}
		for r, want := range frozen {
			if have := pod.draft.procs[0].pages.(*memory).view(r); !bytes.Equal(have, want) {
				t.Fatalf("epoch %d: the copy of %x-%x differs", e, r.Start, r.End)
			}
		}
		if left := copies(t, p); len(left) > 0 {
			t.Fatalf("epoch %d: written, and %v are left", e, left)
		}
		if err := pod.Commit(ctx, e); err != nil {
			t.Fatal(err)
		}
		rollbackCompared(t, pod, e)
	}
}

// captureFrozen takes a round up to the resume, and returns the memory that the
// forked copy is to be read from, as it is in the frozen program.
func captureFrozen(t *testing.T, pod *Pod, e job.Epoch) map[kernel.Range][]byte {
	t.Helper()
	ctx := testCtx(t)
	var r *Report
	for _, s := range []func() (*Report, error){
		func() (*Report, error) { return pod.Freeze(ctx, e) },
		func() (*Report, error) { return pod.CaptureSend(ctx, e) },
		func() (*Report, error) { return pod.CaptureRecv(ctx, e) },
	} {
		var err error
		if r, err = s(); err != nil {
			t.Fatal(err)
		}
	}
	if r.Backing != "fork: configured" {
		t.Fatalf("backing is %q", r.Backing)
	}
	c, out := pod.draft.procs[0], map[kernel.Range][]byte{}
	var kernels []kernel.Range // written by the kernel whenever a thread runs
	for _, th := range c.image.Threads {
		if th.RseqAddr != 0 {
			page := th.RseqAddr &^ (pageSize - 1)
			kernels = append(kernels, kernel.Range{Start: page, End: page + pageSize})
		}
	}
	for _, x := range subtract(intersect(c.pages.ranges(), c.later), normalize(kernels)) {
		out[x] = make([]byte, x.Len())
		if err := pod.group.procs[c.pid].frozen.ReadForce(x.Start, out[x]); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestForkApart has memory that a fork does not inherit, or inherits empty.
func TestForkApart(t *testing.T) {
	p := start(t, build(t, "apart"))
	pod, dir := newPodBacked(t, nil, BackingFork, p)
	for e := job.Epoch(1); e <= 3; e++ {
		checkpoint(t, pod, dir, e)
		time.Sleep(5 * time.Millisecond)
		rollback(t, pod, e, uint64(e))
	}
	// Advice that changes between two looks at VmFlags: the copy is refused,
	// and the next one is right.
	if err := unix.Kill(p.pid(), unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if line, err := p.out.ReadString('\n'); err != nil || line != "changed\n" {
		t.Fatalf("program said %q, %v", line, err)
	}
	ctx := testCtx(t)
	if _, err := capture(ctx, pod, 4); err != nil {
		t.Fatal(err)
	}
	if _, err := pod.Write(ctx, 4, dir, image.Options{}, Extra{}); err == nil || !strings.Contains(err.Error(), errAdvice.Error()) {
		t.Fatalf("write: %v", err)
	}
	if err := pod.Abandon(ctx, 4); err != nil {
		t.Fatal(err)
	}
	checkpoint(t, pod, dir, 5)
	rollback(t, pod, 5, 5)
	if err := unix.Kill(p.pid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.wait()
}

// TestForkRandom compares a program that is checkpointed by forks and rolled
// back at random moments, also while a copy is under way, with an undisturbed
// one.
func TestForkRandom(t *testing.T) {
	exe := build(t, "mix")
	const steps = "1500"
	want := reference(t, exe, steps)
	for seed := range uint64(2) {
		out := filepath.Join(t.TempDir(), "out")
		p := start(t, exe, out, steps)
		rnd := rand.New(rand.NewPCG(seed, 11))
		pod, dir := newPodBacked(t, nil, BackingFork, p)
		checkpoint(t, pod, dir, 1)
		gen := uint64(0)
		for e := job.Epoch(2); e <= 9; e++ {
			pause := func() { time.Sleep(time.Duration(rnd.IntN(8000)) * time.Microsecond) }
			ctx := testCtx(t)
			pause()
			if _, err := capture(ctx, pod, e); err != nil {
				t.Fatal(err)
			}
			pause()
			if rnd.IntN(2) == 0 { // the epoch before, while this one is being copied
				gen++
				rollback(t, pod, pod.State().Committed, gen)
				continue
			}
			if _, err := pod.Write(ctx, e, dir, image.Options{}, Extra{}); err != nil {
				t.Fatal(err)
			}
			if rnd.IntN(2) == 0 { // committed, but not told
				gen++
				rollback(t, pod, e, gen)
				continue
			}
			if err := pod.Commit(ctx, e); err != nil {
				t.Fatal(err)
			}
		}
		if left := copies(t, p); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		p.wait()
		got, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Fatalf("seed %d: output differs from an undisturbed run", seed)
		}
	}
}

// TestForkReaper wants a program that reaps orphans to be copied instead.
func TestForkReaper(t *testing.T) {
	p := start(t, build(t, "reaper"))
	pod, dir := newPodBacked(t, nil, BackingFork, p)
	for e := job.Epoch(1); e <= 3; e++ {
		r, err := capture(testCtx(t), pod, e)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(r.Backing, "copy: the program reaps orphans") {
			t.Fatalf("backing is %q", r.Backing)
		}
		if _, err := pod.Write(testCtx(t), e, dir, image.Options{}, Extra{}); err != nil {
			t.Fatal(err)
		}
		if err := pod.Commit(testCtx(t), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Kill(p.pid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.wait()
}

// TestForkLimit wants a program that may have no more processes to be copied
// instead.
func TestForkLimit(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("RLIMIT_NPROC does not hold for root; the test runs as an ordinary user too")
	}
	p := start(t, build(t, "big"), "8", "1")
	lim := unix.Rlimit{Cur: 1, Max: 1}
	if err := unix.Prlimit(p.pid(), unix.RLIMIT_NPROC, &lim, nil); err != nil {
		t.Fatal(err)
	}
	pod, dir := newPodBacked(t, nil, BackingFork, p)
	r, err := capture(testCtx(t), pod, 1)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(r.Backing, "copy: no fork: ") {
		t.Fatalf("backing is %q", r.Backing)
	}
	if _, err := pod.Write(testCtx(t), 1, dir, image.Options{}, Extra{}); err != nil {
		t.Fatal(err)
	}
}

// TestForkVanished wants an epoch refused whose copy was killed, by the kernel
// for want of memory, say; the next one succeeds.
func TestForkVanished(t *testing.T) {
	p := start(t, build(t, "big"), "48", "8")
	pod, dir := newPodBacked(t, nil, BackingFork, p)
	captureFrozen(t, pod, 1)
	ctx := testCtx(t)
	if err := unix.Kill(pod.draft.procs[0].child.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := pod.Resume(ctx, 1, []podapi.Mark{}); err != nil {
		t.Fatal(err)
	}
	if _, err := pod.Write(ctx, 1, dir, image.Options{}, Extra{}); err == nil {
		t.Fatal("an epoch without its memory was written")
	}
	if err := pod.Abandon(ctx, 1); err != nil {
		t.Fatal(err)
	}
	checkpoint(t, pod, dir, 2)
	rollbackCompared(t, pod, 2)
	if left := copies(t, p); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestDecide goes through the rules of the choice.
func TestDecide(t *testing.T) {
	const mb = 1 << 20
	usual := outlook{changed: 125 * mb, present: 125 * mb, room: 1 << 40, copyRate: 4 << 30, forkRate: 30 << 30}
	with := func(f func(*outlook)) outlook { o := usual; f(&o); return o }
	for _, c := range []struct {
		name string
		mode Backing
		o    outlook
		fork bool
		word string
	}{
		{"much", BackingAuto, usual, true, "125 MB changed"},
		{"zero value", "", usual, true, "125 MB changed"},
		{"little", BackingAuto, with(func(o *outlook) { o.changed = 12 * mb }), false, "12 MB changed"},
		{"little, asked for", BackingFork, with(func(o *outlook) { o.changed = 12 * mb }), true, "configured"},
		{"much, not asked for", BackingCopy, usual, false, "configured"},
		{"huge process", BackingAuto, with(func(o *outlook) { o.present = 10 << 30 }), false, "takes as long"},
		{"no room", BackingAuto, with(func(o *outlook) { o.room = 100 * mb }), false, "budget has 100 MB"},
		{"no room, asked for", BackingFork, with(func(o *outlook) { o.room = 100 * mb }), false, "budget"},
		{"reaper", BackingFork, with(func(o *outlook) { o.reaper = true }), false, "orphans"},
		{"dear", BackingAuto, with(func(o *outlook) { o.after, o.since = 130*time.Millisecond, 2*time.Second }), false, "130 of the 2000 ms"},
		{"dear, and rare", BackingAuto, with(func(o *outlook) { o.after, o.since = 900*time.Millisecond, 100*time.Second }), false, "900 of the 100000 ms"},
		{"dear but rare", BackingAuto, with(func(o *outlook) { o.after, o.since = 130*time.Millisecond, 30*time.Second }), true, "125 MB"},
		{"slow machine", BackingAuto, with(func(o *outlook) { o.changed, o.copyRate = 12*mb, 1<<29 }), true, "12 MB"},
	} {
		got := decide(c.mode, c.o)
		if got.fork != c.fork || !strings.Contains(got.reason, c.word) {
			t.Errorf("%s: %+v, want fork %v because %q", c.name, got, c.fork, c.word)
		}
	}
	for _, name := range []string{"", "auto", "copy", "fork"} {
		if b, err := ParseBacking(name); err != nil || name != "" && string(b) != name {
			t.Errorf("ParseBacking(%q): %q, %v", name, b, err)
		}
	}
	if _, err := ParseBacking("fast"); err == nil || !strings.Contains(err.Error(), strconv.Quote("fast")) {
		t.Errorf("ParseBacking: %v", err)
	}
}
