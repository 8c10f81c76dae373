package pod

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
)

// phase sends an op to a pod.
func (p *testPod) phase(q podapi.PhaseRequest) (podapi.PhaseReply, error) {
	ctx, cancel := context.WithTimeout(p.h.t.Context(), 30*time.Second)
	defer cancel()
	q.Header = p.h.header
	if q.DeadlineMS == 0 {
		q.DeadlineMS = 20_000
	}
	var r podapi.PhaseReply
	err := p.call(ctx, http.MethodPost, podapi.PathPhase, q, &r)
	if err != nil {
		return r, fmt.Errorf("pod %d: %s: %w", p.index, q.Op, err)
	}
	return r, nil
}

// each sends an op to pods in parallel; ask makes the request of a pod.
func (h *harness) each(pods []*testPod, ask func(*testPod) podapi.PhaseRequest) (map[job.PodIndex]podapi.PhaseReply, error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[job.PodIndex]podapi.PhaseReply{}
	var errs []error
	for _, p := range pods {
		wg.Go(func() {
			r, err := p.phase(ask(p))
			mu.Lock()
			defer mu.Unlock()
			out[p.index] = r
			if err != nil {
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

func (h *harness) all() []*testPod {
	out := make([]*testPod, len(h.layout))
	for p := range h.layout {
		out[p] = h.pods[job.PodIndex(p)]
	}
	return out
}

// checkpoint carries out one round; it repeats refused ones for a while.
func (h *harness) checkpoint(e job.Epoch) {
	h.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		h.header.Attempt++
		err := h.round(e)
		if err == nil {
			return
		}
		_, aerr := h.each(h.all(), func(*testPod) podapi.PhaseRequest {
			return podapi.PhaseRequest{Op: podapi.OpAbandon, Epoch: e}
		})
		if aerr != nil {
			h.t.Fatalf("abandon: %v", aerr)
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("checkpoint %d: %v", e, err)
		}
		h.t.Logf("checkpoint %d: again after %v", e, err)
		e++ // a number is never used twice
		time.Sleep(100 * time.Millisecond)
	}
}

func (h *harness) round(e job.Epoch) error {
	var replies map[job.PodIndex]podapi.PhaseReply
	for _, op := range []podapi.Op{podapi.OpFreeze, podapi.OpCaptureSend, podapi.OpCaptureRecv} {
		var err error
		replies, err = h.each(h.all(), func(*testPod) podapi.PhaseRequest { return podapi.PhaseRequest{Op: op, Epoch: e} })
		if err != nil {
			return err
		}
	}
	marks := map[job.PodIndex][]podapi.Mark{}
	for p, r := range replies {
		marks[p] = r.Marks
	}
	peers, err := stream.Pair(marks)
	if err != nil {
		return err
	}
	for _, op := range []podapi.Op{podapi.OpResume, podapi.OpWrite, podapi.OpCommit} {
		_, err := h.each(h.all(), func(p *testPod) podapi.PhaseRequest {
			return podapi.PhaseRequest{Op: op, Epoch: e, Peers: peers[p.index]}
		})
		if err != nil {
			return err
		}
	}
	h.epoch = e
	return nil
}

// lose kills a pod as the loss of its node does.
func (h *harness) lose(p job.PodIndex) {
	h.t.Helper()
	pod := h.pods[p]
	if err := unix.Kill(pod.status.SupervisorPID, unix.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); runs(pod.status.InitPID); {
		if time.Now().After(deadline) {
			h.t.Fatalf("pod %d still runs", p)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// recover brings the job back to the newest epoch, with the lost pods rebuilt
// on another node.
func (h *harness) recover(node int, lost ...job.PodIndex) {
	h.t.Helper()
	h.header.Incarnation++
	h.header.Attempt = 1
	isLost := map[job.PodIndex]bool{}
	for _, p := range lost {
		isLost[p] = true
		h.book[p].MAC = testMAC(h.dir, h.header.Incarnation, int(p))
	}
	var survivors, rebuilt []*testPod
	for _, p := range h.all() {
		if !isLost[p.index] {
			survivors = append(survivors, p)
		}
	}
	if _, err := h.each(survivors, func(*testPod) podapi.PhaseRequest { return podapi.PhaseRequest{Op: podapi.OpStop} }); err != nil {
		h.t.Fatal(err)
	}
	h.broker.reset(h.header.Incarnation)
	for _, p := range lost {
		h.copyImages(p, node)
		rebuilt = append(rebuilt, h.start(p, node, true))
	}
	all := append(survivors, rebuilt...)
	_, err := h.each(all, func(p *testPod) podapi.PhaseRequest {
		q := podapi.PhaseRequest{Op: podapi.OpRollback, Epoch: h.epoch, Lost: lost, Book: h.book, Placement: h.layout}
		if isLost[p.index] {
			q.Op = podapi.OpRestore
		}
		return q
	})
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.each(all, func(*testPod) podapi.PhaseRequest {
		return podapi.PhaseRequest{Op: podapi.OpRelease, Epoch: h.epoch, Suspended: h.suspended}
	}); err != nil {
		h.t.Fatal(err)
	}
}

// copyImages is the replication of a pod's image to another node.
func (h *harness) copyImages(p job.PodIndex, node int) {
	h.t.Helper()
	name := filepath.Join(fmt.Sprint(h.epoch), fmt.Sprintf("pod%d", p))
	to := filepath.Join(h.dir, fmt.Sprintf("images%d", node), name)
	if _, err := os.Stat(to); err == nil {
		return
	}
	from := filepath.Join(h.dir, fmt.Sprintf("images%d", 1-node), name)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		h.t.Fatal(err)
	}
}

// waitOutput waits until a rank has written some text.
func (p *testPod) waitOutput(r job.Rank, text string) {
	p.h.t.Helper()
	for deadline := time.Now().Add(runLimit); !strings.Contains(p.output(r, 1), text); {
		if time.Now().After(deadline) {
			p.h.t.Fatalf("rank %d never wrote %q", r, text)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// undisturbed runs the program without any failure and returns its output.
func undisturbed(t *testing.T, pods, each int, argv ...string) string {
	t.Helper()
	h := newHarness(t, pods, each, argv...)
	h.startAll()
	wantOK(t, h.waitAll(runLimit), pods*each)
	out := h.pods[0].output(0, 1)
	for _, p := range h.pods {
		p.kill()
	}
	return out
}

func TestCheckpointOnly(t *testing.T) {
	inOneCluster(t, func(t *testing.T) {
		argv := []string{compile(t, "ring"), "600", "20000", "20", "2000"}
		want := undisturbed(t, 2, 1, argv...)
		h := newHarness(t, 2, 1, argv...)
		h.startAll()
		h.pods[0].waitOutput(0, "step 40 ")
		h.checkpoint(1)
		h.pods[0].waitOutput(0, "step 200 ")
		h.checkpoint(h.epoch + 1)
		wantOK(t, h.waitAll(runLimit), 2)
		if got := h.pods[0].output(0, 1); got != want {
			t.Errorf("output differs:\n%s\nwant\n%s", got, want)
		}
	})
}

func TestLosePodAndRecover(t *testing.T) {
	inCluster(t, func(t *testing.T) {
		argv := []string{compile(t, "ring"), "600", "20000", "20", "2000"}
		want := undisturbed(t, 2, 1, argv...)
		h := newHarness(t, 2, 1, argv...)
		h.startAll()
		h.pods[0].waitOutput(0, "step 40 ")
		h.checkpoint(1)
		h.pods[0].waitOutput(0, "step 160 ")
		h.lose(1)
		h.recover(0, 1)
		h.pods[0].waitOutput(0, "step 300 ")
		h.checkpoint(h.epoch + 1)
		seen := h.pods[0].output(0, 1)
		h.lose(0)
		h.recover(1, 0)
		wantOK(t, h.waitAll(runLimit), 2)
		// The rebuilt pod has the output from the epoch before on; what came
		// earlier was read from the lost one.
		at, rest := h.pods[0].outputFrom(0, 1)
		if got := seen[:at] + rest; got != want {
			t.Errorf("output differs:\n%s\nwant\n%s", got, want)
		}
	})
}

// Two ranks per pod, losses at random places of the run, several from the
// same epoch, of pods that were rebuilt before.
func TestManyLosses(t *testing.T) {
	inOneCluster(t, func(t *testing.T) {
		argv := []string{compile(t, "ring"), "200", "2000", "5", "12000"}
		want := undisturbed(t, 2, 2, argv...)
		h := newHarness(t, 2, 2, argv...)
		h.startAll()
		h.pods[0].waitOutput(0, "step 10 ")
		h.checkpoint(1)
		for i := range 4 {
			time.Sleep(time.Duration(37*i) * time.Millisecond) // somewhere in the run
			p := job.PodIndex(1)
			h.lose(p)
			h.recover(i%2, p)
			if i%2 == 0 {
				h.checkpoint(h.epoch + 1)
			}
		}
		wantOK(t, h.waitAll(runLimit), 4)
		if got := h.pods[0].output(0, 1); got != want {
			t.Errorf("output differs:\n%s\nwant\n%s", got, want)
		}
	})
}
