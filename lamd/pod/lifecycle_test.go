package pod

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/proc"
)

// procState is the state letter of a process, 0 when it is gone.
func procState(pid int) byte {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[0]
}

func waitState(t *testing.T, pid int, want string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(want, string(procState(pid))); {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is %c, want one of %s", pid, procState(pid), want)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// waitHandler waits until a program has set up what it does at a signal.
func waitHandler(t *testing.T, pid int, sig unix.Signal) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if st, err := proc.ReadStatus(pid); err == nil && st.SigCgt>>(uint(sig)-1)&1 == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not handle signal %d", pid, sig)
		}
	}
}

// A pod whose lease runs out stands still with its link down, goes on with a
// renewal, and is killed when none comes.
func TestLeaseOfPod(t *testing.T) {
	inOneCluster(t, func(t *testing.T) {
		h := newHarness(t, 1, 1, "/bin/sh", "-c", "while :; do :; done")
		h.lease = 600
		h.startAll()
		p := h.pods[0]
		pid := p.status.Ranks[0].PID
		renew := func() {
			t.Helper()
			l := podapi.Lease{Header: h.header, TTLMS: 1000, SentNS: int64(bootTime())}
			if err := p.call(t.Context(), http.MethodPost, podapi.PathLease, l, nil); err != nil {
				t.Fatal(err)
			}
		}
		for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			renew()
		}
		if s := procState(pid); s == 'T' {
			t.Errorf("with a lease the rank is %c", s)
		}
		waitState(t, pid, "T") // the lease runs out
		stale := podapi.Lease{Header: h.header, TTLMS: 1000, SentNS: int64(bootTime()) - 1e10}
		if err := p.call(t.Context(), http.MethodPost, podapi.PathLease, stale, nil); err != nil {
			t.Fatal(err)
		}
		old := h.header
		old.Incarnation = 0
		if err := p.call(t.Context(), http.MethodPost, podapi.PathLease, podapi.Lease{Header: old, TTLMS: 1000, SentNS: int64(bootTime())}, nil); err == nil {
			t.Error("a lease of an older incarnation was taken")
		}
		renew()
		waitState(t, pid, "R")
		waitState(t, pid, "T")
		waitState(t, pid, "\x00Z") // ten seconds later
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var kinds []string
		_ = p.events(ctx, func(e podapi.Event) bool {
			kinds = append(kinds, e.Kind)
			return e.Kind == evLeaseKilled
		})
		if got := strings.Join(kinds, " "); !strings.Contains(got, "lease-frozen lease-thawed lease-frozen lease-killed") {
			t.Errorf("events: %s", got)
		}
	})
}

func TestSuspendAndSignal(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		h := newHarness(t, 1, 2, "/bin/sh", "-c", "trap 'exit 9' USR1; while :; do :; done")
		h.startAll()
		p := h.pods[0]
		var pids []int
		for _, r := range p.status.Ranks {
			pids = append(pids, r.PID)
			waitHandler(t, r.PID, unix.SIGUSR1)
		}
		if _, err := p.phase(podapi.PhaseRequest{Op: podapi.OpSuspend}); err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			waitState(t, pid, "T")
		}
		h.header.Attempt++
		if _, err := p.phase(podapi.PhaseRequest{Op: podapi.OpFreeze, Epoch: 1}); err == nil {
			t.Error("a suspended pod was frozen for a checkpoint")
		}
		if _, err := p.phase(podapi.PhaseRequest{Op: podapi.OpContinue}); err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			waitState(t, pid, "R")
		}
		x := podapi.Signal{Header: h.header, Signal: int(unix.SIGUSR1)}
		if err := p.call(t.Context(), http.MethodPost, podapi.PathSignal, x, nil); err != nil {
			t.Fatal(err)
		}
		for r, e := range p.wait(runLimit) {
			if e.Code != 9 {
				t.Errorf("rank %d ended with %+v", r, e)
			}
		}
	})
}

// What a rank sees: its own namespaces, one capability, no foreign descriptor,
// its own temporary directory; nothing of it on the node.
func TestInsideOfPod(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		script := `echo pid $$; grep -E 'Cap(Eff|Prm|Bnd|Amb)' /proc/self/status; ls /proc/self/fd | tr '\n' ' '; echo
			umask; cat /proc/1/comm; hostname; touch /dev/shm/mine $TMPDIR/mine && ls /dev/shm; ls /proc | grep -c '^[0-9]'; id -u; id -g`
		h := newHarness(t, 1, 1, "/bin/sh", "-c", script)
		h.startAll()
		wantOK(t, h.waitAll(runLimit), 1)
		out := h.pods[0].output(0, 1)
		for _, want := range []string{
			"pid 1024\n", "CapPrm:\t0000010000000000", "CapEff:\t0000010000000000", "CapBnd:\t0000010000000000", "CapAmb:\t0000010000000000",
			"\n0 1 2 3 4 \n", "0022\n", "\npod0\n", "mine\ntmp\n",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in:\n%s\n%s", want, out, h.pods[0].output(0, 2))
			}
		}
		if _, err := os.Stat("/dev/shm/mine"); err == nil {
			t.Error("the pod's /dev/shm is the node's")
		}
		if _, err := os.Stat(h.pods[0].dir + "/tmp/mine"); err != nil {
			t.Errorf("temporary directory: %v", err)
		}
	})
}

// A job of another user than the daemon's, on a cluster of root's.
func TestJobOfAnotherUser(t *testing.T) {
	inOneCluster(t, func(t *testing.T) {
		if _, err := os.Stat("/root/."); err != nil {
			t.Skip("only root starts jobs of others")
		}
		if b, err := os.ReadFile("/proc/self/uid_map"); err != nil || !strings.Contains(string(b), "65535") {
			t.Skip("only root starts jobs of others")
		}
		h := newHarness(t, 2, 1, compile(t, "ring"), "300", "10000", "10", "2000")
		h.spec.UID, h.spec.GID = 1500, 1500
		h.startAll()
		st, err := os.Stat(fmt.Sprintf("/proc/%d", h.pods[1].status.Ranks[0].PID))
		if err != nil {
			t.Fatal(err)
		}
		if uid := statUID(st); uid != 1500 {
			t.Errorf("the rank runs as uid %d", uid)
		}
		h.pods[0].waitOutput(0, "step 30 ")
		h.checkpoint(1)
		h.lose(1)
		h.recover(0, 1)
		wantOK(t, h.waitAll(runLimit), 2)
	})
}

func statUID(st os.FileInfo) int {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return int(s.Uid)
}
