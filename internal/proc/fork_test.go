package proc

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// TestMain makes the tests the reaper of orphans: not every pid 1 of a
// container is one.
func TestMain(m *testing.M) {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // else orphans are looked for in vain, no more
	os.Exit(m.Run())
}

// orphans lists the children of the tests, programs under test aside. It takes
// the status of those that ended, as a reaper does.
func orphans(t *testing.T, programs ...int) []int {
	t.Helper()
	kids, err := Children(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, k := range kids {
		known := false
		for _, p := range programs {
			known = known || p == k
		}
		if known {
			continue
		}
		if got, _ := unix.Wait4(k, nil, unix.WNOHANG|unix.WALL, nil); got != k {
			out = append(out, k)
		}
	}
	return out
}

// TestFork compares the memory of copies with that of the frozen program, also
// later, when the program has changed it, and looks what is left behind.
func TestFork(t *testing.T) {
	p := start(t, build(t, "kids"))
	tr := newTracer(t, nil)
	for range 6 {
		ctx := testCtx(t)
		f, err := tr.Freeze(ctx, p.pid())
		if err != nil {
			t.Fatal(err)
		}
		maps, err := f.Maps()
		if err != nil {
			t.Fatal(err)
		}
		child, err := f.Fork(ctx)
		if err != nil {
			t.Fatal(err)
		}
		area := largest(maps)
		want := make([]byte, area.Len())
		if err := f.ReadMem(area.Start, want); err != nil {
			t.Fatal(err)
		}
		var kernels []kernel.Range // where the kernel writes whenever a thread runs
		for _, th := range f.Threads {
			r, err := f.Rseq(th)
			if err != nil {
				t.Fatal(err)
			}
			kernels = append(kernels, kernel.Range{Start: r.Addr, End: r.Addr + uint64(r.Len)})
		}
		if err := f.Thaw(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond) // some writes; none would be no failure
		have := make([]byte, area.Len())
		if err := child.ReadMem(area.Start, have); err != nil {
			t.Fatal(err)
		}
		for _, r := range kernels {
			if area.Start <= r.Start && r.End <= area.End {
				clear(have[r.Start-area.Start : r.End-area.Start])
				clear(want[r.Start-area.Start : r.End-area.Start])
			}
		}
		if !bytes.Equal(have, want) {
			for i := range have {
				if have[i] != want[i] {
					t.Fatalf("byte %x of %x-%x is %x, was %x", i, area.Start, area.End, have[i], want[i])
				}
			}
		}
		if fds, err := FDs(child.PID); err != nil || len(fds) != 0 {
			t.Fatalf("the copy holds descriptors %v, %v", fds, err)
		}
		if err := child.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat("/proc/" + strconv.Itoa(child.PID)); err == nil {
			t.Fatal("the copy is still there")
		}
	}
	if left := orphans(t, p.pid()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	p.finish()
}

func largest(maps []Map) (r kernel.Range) {
	for _, m := range maps {
		if m.Path == "" && m.Prot == unix.PROT_READ|unix.PROT_WRITE && m.Len() > r.Len() {
			r = m.Range
		}
	}
	return r
}

// TestForkFaults makes every call of a fork fail once: the program never sees
// a child, and none is left behind.
func TestForkFaults(t *testing.T) {
	p := start(t, build(t, "kids"))
	n, calls, hit := 0, 0, ""
	armed := false
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
	failed := map[string]int{}
	for n = 1; ; n++ {
		ctx := testCtx(t)
		f, err := tr.Freeze(ctx, p.pid())
		if err != nil {
			t.Fatal(err)
		}
		calls, hit, armed = 0, "", true
		child, err := f.Fork(ctx)
		armed = false
		if hit == "" && err != nil {
			t.Fatalf("undisturbed: %v", err)
		}
		if err != nil && !errors.Is(err, unix.EIO) {
			t.Fatalf("call %d (%s): %v", n, hit, err)
		}
		if err != nil && child != nil {
			t.Fatalf("call %d (%s): both a copy and %v", n, hit, err)
		}
		if child != nil {
			if err := child.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Thaw(ctx); err != nil {
			t.Fatalf("call %d (%s): thaw: %v", n, hit, err)
		}
		if left := orphans(t, p.pid()); len(left) > 0 {
			st, _ := ReadStatus(left[0])
			t.Fatalf("call %d (%s): left behind: %v, %+v", n, hit, left, st)
		}
		if hit == "" {
			break
		}
		failed[hit]++
	}
	t.Logf("failed %v", failed)
	p.finish()
}

// TestForkVictim is the tracer that TestForkTracerKilled kills.
func TestForkVictim(t *testing.T) {
	pid, err := strconv.Atoi(os.Getenv("PROC_VICTIM_PID"))
	if err != nil {
		t.Skip("only run by TestForkTracerKilled")
	}
	tr := newTracer(t, nil)
	f, err := tr.Freeze(testCtx(t), pid)
	if err != nil {
		t.Fatal(err)
	}
	child, err := f.Fork(testCtx(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Thaw(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stdout.WriteString("child " + strconv.Itoa(child.PID) + "\n"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute) // until killed
}

// TestForkTracerKilled kills the tracer of a copy: the copy ends, the program
// goes on.
func TestForkTracerKilled(t *testing.T) {
	p := start(t, build(t, "kids"))
	for range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestForkVictim$")
		cmd.Env = append(os.Environ(), "PROC_VICTIM_PID="+strconv.Itoa(p.pid()))
		r, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 256)
		n, err := r.Read(buf)
		word, ok := strings.CutPrefix(strings.TrimSpace(string(buf[:n])), "child ")
		child, aerr := strconv.Atoi(word)
		if err != nil || !ok || aerr != nil {
			t.Fatalf("tracer said %q, %v", buf[:n], err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		var ws unix.WaitStatus
		deadline := time.Now().Add(10 * time.Second)
		for {
			got, err := unix.Wait4(child, &ws, unix.WNOHANG|unix.WALL, nil)
			if got == child || err == unix.ECHILD { //nolint:errorlint // an errno
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the copy %d outlives its tracer: %v", child, err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	p.finish()
}
