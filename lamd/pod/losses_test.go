package pod

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
)

// Unmodified benchmarks check their own results.
func TestNASWithLosses(t *testing.T) {
	inOneCluster(t, func(t *testing.T) {
		for _, name := range []string{"cg.A", "mg.A", "is.A"} {
			h := newHarness(t, 2, 1, compileNAS(t, name))
			h.startAll()
			h.waitReady()
			h.checkpoint(1)
			h.lose(1) // at once: is.A is over in a fraction of a second
			h.recover(0, 1)
			wantOK(t, h.waitAll(runLimit), 2)
			if got := h.pods[0].output(0, 1); !strings.Contains(got, "SUCCESSFUL") {
				t.Errorf("%s: output %q", name, got)
			}
			for _, p := range h.pods {
				p.kill()
			}
		}
	})
}

// waitReady waits until MPI_Init is about to end in all pods.
func (h *harness) waitReady() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), runLimit)
	defer cancel()
	for _, p := range h.pods {
		if err := p.events(ctx, func(e podapi.Event) bool { return e.Kind == evReady }); err != nil {
			h.t.Fatalf("pod %d: %v", p.index, err)
		}
	}
}

// A rank is killed on a node that lives. The others must not notice: MPICH
// would abort them. Its pod is then replaced.
func TestRankKilledOthersWait(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		argv := []string{compile(t, "ring"), "200", "5000", "10", "8000"}
		want := undisturbed(t, 2, 1, argv...)
		h := newHarness(t, 2, 1, argv...)
		h.startAll()
		h.pods[0].waitOutput(0, "step 30 ")
		h.checkpoint(1)
		h.pods[0].waitOutput(0, "step 60 ")
		if err := unix.Kill(h.pods[1].status.Ranks[0].PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if e := h.pods[1].wait(runLimit)[1]; e.Signal != int(unix.SIGKILL) {
			t.Errorf("rank 1 ended with %+v", e)
		}
		time.Sleep(time.Second) // time to notice
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_ = h.pods[0].events(ctx, func(e podapi.Event) bool {
			if e.Kind == evAbort || e.Kind == evExit {
				t.Errorf("the other rank noticed: %+v %s", e, h.pods[0].output(0, 2))
			}
			return false
		})
		h.pods[1].kill()
		h.recover(0, 1)
		wantOK(t, h.waitAll(runLimit), 2)
		if got := h.pods[0].output(0, 1); got != want {
			t.Errorf("output differs:\n%s\nwant\n%s", got, want)
		}
	})
}

// Input that a rank read after the epoch is read again, here and in a rebuilt
// pod.
func TestStdinWithLoss(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		h := newHarness(t, 2, 1, compile(t, "cat"))
		h.startAll()
		h.waitReady()
		send := func(off int, s, more string) {
			t.Helper()
			if err := h.pods[0].raw(t.Context(), http.MethodPost, fmt.Sprintf("%s?offset=%d%s", podapi.PathStdin, off, more), strings.NewReader(s), nil); err != nil {
				t.Fatal(err)
			}
		}
		send(0, "one ", "")
		h.pods[0].waitOutput(0, "one ")
		h.checkpoint(1)
		send(4, "two ", "")
		h.pods[0].waitOutput(0, "one two ")
		h.lose(1)
		h.recover(0, 1)
		h.pods[0].waitOutput(0, "one two ") // again
		h.lose(0)
		h.recover(1, 0)
		var st podapi.Status
		if err := h.pods[0].call(t.Context(), http.MethodGet, podapi.PathStatus, nil, &st); err != nil || st.StdinOffset != 4 {
			t.Errorf("the sender shall go on at %d (%v), want 4", st.StdinOffset, err)
		}
		send(4, "two three", "&eof=1")
		wantOK(t, h.waitAll(runLimit), 2)
		if got := h.pods[0].output(0, 1); got != "one two three" {
			t.Errorf("output %q", got)
		}
	})
}

// A checkpoint at which one rank sits in the barrier of MPI_Finalize.
func TestLossDuringFinalize(t *testing.T) {
	inOneCluster(t, func(t *testing.T) {
		h := newHarness(t, 2, 1, compile(t, "late"), "9")
		h.startAll()
		h.pods[0].waitOutput(0, "finalize")
		time.Sleep(meshPatience) // its connections are fewer than in the run
		h.checkpoint(1)
		h.lose(1)
		h.recover(0, 1)
		h.lose(0)
		h.recover(1, 0)
		wantOK(t, h.waitAll(runLimit), 2)
	})
}

// The rank is a shell that runs the MPI program: a tree of processes.
func TestWrappedRank(t *testing.T) {
	inOneCluster(t, func(t *testing.T) {
		exe := compile(t, "ring")
		argv := []string{"/bin/sh", "-c", exe + " 300 10000 10 3000; echo wrapped $?"}
		want := undisturbed(t, 2, 1, argv...)
		h := newHarness(t, 2, 1, argv...)
		h.startAll()
		h.pods[0].waitOutput(0, "step 30 ")
		h.checkpoint(1)
		h.pods[0].waitOutput(0, "step 60 ")
		h.lose(0)
		h.recover(1, 0)
		wantOK(t, h.waitAll(runLimit), 2)
		if got := h.pods[0].output(0, 1); got != want {
			t.Errorf("output differs:\n%s\nwant\n%s", got, want)
		}
	})
}

// A job that its user suspended stays so through a recovery.
func TestLossWhileSuspended(t *testing.T) {
	inOneCluster(t, func(t *testing.T) {
		argv := []string{compile(t, "ring"), "300", "10000", "10", "3000"}
		want := undisturbed(t, 2, 1, argv...)
		h := newHarness(t, 2, 1, argv...)
		h.startAll()
		h.pods[0].waitOutput(0, "step 30 ")
		h.checkpoint(1)
		for _, op := range []podapi.Op{podapi.OpSuspend} {
			if _, err := h.each(h.all(), func(*testPod) podapi.PhaseRequest { return podapi.PhaseRequest{Op: op} }); err != nil {
				t.Fatal(err)
			}
		}
		h.lose(1)
		h.recover(0, 1)
		waitState(t, h.pods[0].status.Ranks[0].PID, "T")
		if _, err := h.each(h.all(), func(*testPod) podapi.PhaseRequest { return podapi.PhaseRequest{Op: podapi.OpContinue} }); err != nil {
			t.Fatal(err)
		}
		wantOK(t, h.waitAll(runLimit), 2)
		if got := h.pods[0].output(0, 1); got != want {
			t.Errorf("output differs:\n%s\nwant\n%s", got, want)
		}
	})
}

// A pod that is killed while its ranks are frozen ends, and they never run
// again: its job goes on elsewhere.
func TestKillWhileFrozen(t *testing.T) {
	inOneCluster(t, func(t *testing.T) {
		h := newHarness(t, 1, 2, compile(t, "ring"), "100000", "1000", "1000")
		h.startAll()
		p := h.pods[0]
		p.waitOutput(0, "step 1000 ")
		for _, op := range []podapi.Op{podapi.OpFreeze, podapi.OpStop} {
			h.header.Attempt++
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				_, err := p.phase(podapi.PhaseRequest{Op: op, Epoch: 1})
				if err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal(err)
				}
			}
			if op == podapi.OpFreeze {
				waitState(t, p.status.Ranks[0].PID, "t")
			}
		}
		if err := p.raw(t.Context(), http.MethodPost, podapi.PathKill, nil, nil); err != nil {
			t.Fatal(err)
		}
		for _, r := range p.status.Ranks {
			if runs(r.PID) {
				t.Errorf("rank %d still runs", r.Rank)
			}
		}
		if runs(p.status.InitPID) {
			t.Error("pod-init still runs")
		}
	})
}
