package pause

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/internal/progtest"
	"github.com/lampause/lampause/job"
)

// runsFree fails the test unless nobody traces the program and it is not
// stopped.
func runsFree(t *testing.T, pid int, what string) {
	t.Helper()
	st, err := proc.ReadStatus(pid)
	if err != nil || st.TracerPid != 0 || strings.ContainsRune("tTZX", rune(st.State)) {
		t.Fatalf("%s: program in state %+v, %v", what, st, err)
	}
}

// reference is the output of an undisturbed run of mix.
func reference(t *testing.T, exe string, steps string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "want")
	start(t, exe, out, steps).wait()
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestCheckpointFaults makes every call of a checkpoint fail once, those of the
// copying after the stall too; the program must not notice.
func TestCheckpointFaults(t *testing.T) {
	exe := build(t, "mix")
	for _, b := range []Backing{BackingCopy, BackingFork} {
		t.Run(string(b), func(t *testing.T) { checkpointFaults(t, exe, b) })
	}
}

func checkpointFaults(t *testing.T, exe string, b Backing) {
	const steps = "3000"
	want := reference(t, exe, steps)
	out := filepath.Join(t.TempDir(), "out")
	p := start(t, exe, out, steps)
	f := &progtest.Fault{}
	pod, _ := newPodBacked(t, kernel.New(f.Hook), b, p)
	kinds := map[string]int{}
	e := job.Epoch(0)
	for n := 1; ; n++ {
		e++
		ctx := testCtx(t)
		f.Arm(n)
		_, err := capture(ctx, pod, e)
		if err == nil {
			err = pod.draft.finish(ctx)
		}
		hit := f.Arm(0)
		if aerr := pod.Abandon(ctx, e); aerr != nil {
			t.Fatalf("call %d (%s): abandon: %v", n, hit, aerr)
		}
		if left := copies(t, p); len(left) > 0 {
			t.Fatalf("call %d (%s): left behind: %v", n, hit, left)
		}
		if st, err := proc.ReadStatus(p.pid()); err != nil || st.State == 'Z' {
			t.Log("program is through before all calls were tried")
			break
		}
		runsFree(t, p.pid(), hit)
		if hit == "" {
			if err != nil {
				t.Fatalf("undisturbed round: %v", err)
			}
			break
		}
		kinds[hit]++
	}
	t.Logf("%d rounds, failed %v", e, kinds)
	p.wait()
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Fatal("output differs from an undisturbed run")
	}
}

// TestAbandonFaults makes every call of an abandoned round's end fail: whatever
// that answers, the next round can begin.
func TestAbandonFaults(t *testing.T) {
	p := start(t, build(t, "mix"), filepath.Join(t.TempDir(), "out"), "100000000")
	f := &progtest.Fault{}
	pod, _ := newPodBacked(t, kernel.New(f.Hook), BackingFork, p)
	e := job.Epoch(0)
	for n, hit := 1, "none"; hit != ""; n++ {
		e++
		ctx := testCtx(t)
		if _, err := pod.Freeze(ctx, e); err != nil {
			t.Fatalf("call %d: freeze: %v", n, err)
		}
		if n%2 == 0 {
			if _, err := pod.CaptureSend(ctx, e); err != nil {
				t.Fatalf("call %d: capture: %v", n, err)
			}
		}
		f.Arm(n)
		err := pod.Abandon(ctx, e)
		if hit = f.Arm(0); err != nil && hit == "" {
			t.Fatalf("call %d: %v", n, err)
		}
		runsFree(t, p.pid(), hit)
		if left := copies(t, p); len(left) > 0 {
			t.Fatalf("call %d (%s): left behind: %v", n, hit, left)
		}
	}
}

// TestSignalFaults makes every call fail once while a program raises signals
// all the time: none may be lost, and none come twice.
func TestSignalFaults(t *testing.T) {
	p := start(t, build(t, "raise"))
	f := &progtest.Fault{}
	pod, _ := newPod(t, kernel.New(f.Hook), p)
	e := job.Epoch(0)
	for n := 1; ; n++ {
		hit := ""
		for range 4 { // the stop may hit the signal or not
			e++
			ctx := testCtx(t)
			f.Arm(n)
			_, err := capture(ctx, pod, e)
			if h := f.Arm(0); h != "" {
				hit = h
			} else if err != nil {
				t.Fatalf("undisturbed round: %v", err)
			}
			if err := pod.Abandon(ctx, e); err != nil {
				t.Fatalf("call %d (%s): abandon: %v", n, hit, err)
			}
			time.Sleep(time.Millisecond)
			if st, serr := proc.ReadStatus(p.pid()); serr != nil || st.State == 'Z' {
				b, _ := os.ReadFile(p.cmd.Stderr.(*os.File).Name())
				t.Fatalf("call %d (%s), %v: %s", n, hit, err, b)
			}
		}
		if hit == "" {
			t.Logf("%d calls", n)
			break
		}
	}
	_ = unix.Kill(p.pid(), unix.SIGTERM)
	p.wait()
}

// TestRollbackFaults makes the calls of a rollback fail, one after the other, on
// one program that goes back again and again. Each time it is either whole, or
// reported as lost and still frozen; in the end its output is as it should be.
func TestRollbackFaults(t *testing.T) {
	exe := build(t, "mix")
	const steps = "4000" // it must outlive the first checkpoint on any disk
	want := reference(t, exe, steps)
	stride := 2
	if os.Getenv("LAM_TEST_LONG") != "" {
		stride = 1
	}
	if testing.Short() {
		stride = 31
	}
	out := filepath.Join(t.TempDir(), "out")
	p := start(t, exe, out, steps)
	f := &progtest.Fault{}
	pod, dir := newPod(t, kernel.New(f.Hook), p)
	checkpoint(t, pod, dir, 1)
	kinds := map[string]int{}
	whole, gen := 0, uint64(0)
	n := 1
	for hit := "none"; hit != ""; n += stride {
		time.Sleep(2 * time.Millisecond)
		ctx := testCtx(t)
		if _, err := pod.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		gen++
		f.Arm(n)
		r, err := pod.Rollback(ctx, 1, gen)
		hit = f.Arm(0)
		kinds[hit]++
		if err == nil {
			whole++
		} else {
			wantLost(t, p, n, hit, r, err)
			// Nothing is lost for good as long as it is frozen: a second
			// attempt succeeds.
			gen++
			if _, err = pod.Rollback(ctx, 1, gen); err != nil {
				t.Fatalf("call %d (%s): second attempt: %v", n, hit, err)
			}
		}
		if _, err := pod.Release(ctx); err != nil {
			t.Fatalf("call %d (%s): release: %v", n, hit, err)
		}
		runsFree(t, p.pid(), hit)
	}
	t.Logf("%d calls, %d rollbacks in spite of a failure, failed %v", n, whole, kinds)
	p.wait()
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != want {
		t.Fatal("output differs from an undisturbed run")
	}
}

// wantLost checks how a rollback reports that call n failed.
func wantLost(t *testing.T, p *program, n int, hit string, r *Report, err error) {
	t.Helper()
	if !errors.Is(err, ErrLost) && !errors.Is(err, unix.EIO) {
		t.Fatalf("call %d (%s): %v", n, hit, err)
	}
	if errors.Is(err, ErrLost) != (r != nil && len(r.LostRanks) == 1) {
		t.Fatalf("call %d (%s): %v but lost ranks %v", n, hit, err, r)
	}
	st, serr := proc.ReadStatus(p.pid())
	if serr != nil || st.State != 't' {
		t.Fatalf("call %d (%s): a rank that was not put back runs: %+v, %v", n, hit, st, serr)
	}
}
