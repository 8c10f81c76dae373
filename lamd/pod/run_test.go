package pod

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

const runLimit = 60 * time.Second

func wantOK(t *testing.T, exits map[job.Rank]job.Exit, n int) {
	t.Helper()
	if len(exits) != n {
		t.Errorf("%d ranks ended, want %d", len(exits), n)
	}
	for r, e := range exits {
		if e.Status() != 0 {
			t.Errorf("rank %d ended with %+v", r, e)
		}
	}
}

func TestOnePodTwoRanks(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		h := newHarness(t, 1, 2, compile(t, "hello"))
		h.startAll()
		wantOK(t, h.waitAll(runLimit), 2)
		for r := job.Rank(0); r < 2; r++ {
			want := fmt.Sprintf("rank %d of 2 sum 1 pid %d host pod0 ", r, pidBase+int(r)*pidSpace)
			if got := h.pods[0].output(r, 1); !strings.HasPrefix(got, want) {
				t.Errorf("stdout of rank %d: %q, want %q...", r, got, want)
			}
			if got := h.pods[0].output(r, 2); got != fmt.Sprintf("err %d\n", r) {
				t.Errorf("stderr of rank %d: %q", r, got)
			}
		}
	})
}

func TestTwoPods(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		h := newHarness(t, 2, 1, compile(t, "ring"), "200", "20000", "20")
		h.startAll()
		wantOK(t, h.waitAll(runLimit), 2)
		if got := h.pods[0].output(0, 1); !strings.Contains(got, "done 200") || !strings.Contains(got, "bad 0") {
			t.Errorf("output: %q", got)
		}
	})
}

func TestExitCodeAndRecord(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		h := newHarness(t, 2, 1, compile(t, "hello"), "42")
		h.startAll()
		exits := h.waitAll(runLimit)
		if exits[0].Status() != 0 || exits[1].Status() != 42 {
			t.Errorf("exits: %+v", exits)
		}
		b, err := os.ReadFile(filepath.Join(h.pods[1].dir, exitsFile))
		if err != nil || !strings.Contains(string(b), `"code":42`) {
			t.Errorf("record: %s %v", b, err)
		}
	})
}

// Stock MPICH 4.0 over UCX TCP hangs in MPI_Finalize after this program, in
// two runs of three.
func TestFinalizeDoesNotHang(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		exe := compileNAS(t, "is.W")
		for range 3 {
			h := newHarness(t, 2, 2, exe)
			h.startAll()
			wantOK(t, h.waitAll(20*time.Second), 4)
			if got := h.pods[0].output(0, 1); !strings.Contains(got, "SUCCESSFUL") {
				t.Errorf("output: %q", got)
			}
			for _, p := range h.pods {
				p.kill()
			}
		}
	})
}

func TestMPIAbort(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		h := newHarness(t, 2, 1, compile(t, "abort"))
		h.startAll()
		ctx, cancel := context.WithTimeout(t.Context(), runLimit)
		defer cancel()
		var got podapi.Event
		err := h.pods[1].events(ctx, func(e podapi.Event) bool { got = e; return e.Kind == evAbort })
		if err != nil || got.Exit == nil || got.Exit.Code != 7 || got.Rank != 1 {
			t.Fatalf("abort event %+v, %v", got, err)
		}
		// What the coordinator then does: end the other ranks.
		x := podapi.Signal{Header: h.header, Signal: int(unix.SIGKILL)}
		if err := h.pods[0].call(ctx, http.MethodPost, podapi.PathSignal, x, nil); err != nil {
			t.Fatal(err)
		}
		if e := h.pods[0].wait(runLimit)[0]; e.Signal != int(unix.SIGKILL) {
			t.Errorf("rank 0 ended with %+v", e)
		}
	})
}

func TestStdin(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		h := newHarness(t, 1, 2, compile(t, "cat"))
		h.startAll()
		text := strings.Repeat("0123456789abcdef\n", 100_000)
		half := len(text) / 2
		send := func(off int, s, more string) error {
			return h.pods[0].raw(t.Context(), http.MethodPost, fmt.Sprintf("%s?offset=%d%s", podapi.PathStdin, off, more), strings.NewReader(s), nil)
		}
		if err := send(half, text[half:], ""); err == nil {
			t.Error("a gap was accepted")
		}
		if err := send(0, text[:half], ""); err != nil {
			t.Fatal(err)
		}
		if err := send(half-1000, text[half-1000:], "&eof=1"); err != nil { // overlaps
			t.Fatal(err)
		}
		wantOK(t, h.waitAll(runLimit), 2)
		if got := h.pods[0].output(0, 1); got != text {
			t.Errorf("%d bytes came back of %d", len(got), len(text))
		}
	})
}

func TestCannotStart(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		script := filepath.Join(t.TempDir(), "noexec")
		if err := os.WriteFile(script, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		for path, exit := range map[string]int{"/nonexistent/prog": job.ExitUsage, script: job.ExitPermission} {
			h := newHarness(t, 1, 1, path)
			_, err := h.tryStart(0, 0, false)
			var e *control.Error
			if !errors.As(err, &e) || e.Exit != exit {
				t.Errorf("%s: %v, want exit %d", path, err, exit)
			}
			h.pods[0].kill()
		}
	})
}

// A pod whose supervisor is killed dies with it.
func TestSupervisorKilled(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		h := newHarness(t, 1, 1, "/bin/sleep", "1000")
		h.startAll()
		st := h.pods[0].status
		if err := unix.Kill(st.SupervisorPID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(10 * time.Second)
		for _, pid := range []int{st.InitPID, st.Ranks[0].PID} {
			for runs(pid) {
				if time.Now().After(deadline) {
					t.Fatalf("process %d of the pod still runs", pid)
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	})
}

// runs reports whether pid exists and is no zombie.
func runs(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}
