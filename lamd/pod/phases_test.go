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
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// fakeWork records what the state machine asks for.
type fakeWork struct {
	mu    sync.Mutex
	log   []string
	block podapi.Op           // this op waits for the end of its context
	fail  map[podapi.Op]error // these fail
}

func (w *fakeWork) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, fmt.Sprintf(format, args...))
}

func (w *fakeWork) do(ctx context.Context, q podapi.PhaseRequest) (podapi.PhaseReply, error) {
	w.mu.Lock()
	block, fail := w.block == q.Op, w.fail[q.Op]
	w.mu.Unlock()
	w.say("%s %d", q.Op, q.Epoch)
	if block {
		<-ctx.Done()
		return podapi.PhaseReply{}, ctx.Err()
	}
	return podapi.PhaseReply{Bytes: int64(q.Epoch)}, fail
}

func (w *fakeWork) giveUp(_ context.Context, e job.Epoch) error { w.say("give up %d", e); return nil }

func (w *fakeWork) renamed(h podapi.Header) { w.say("incarnation %d", h.Incarnation) }

func (w *fakeWork) said() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := strings.Join(w.log, ", ")
	w.log = nil
	return s
}

func newTestPhases(t *testing.T, restore bool) (*phases, *fakeWork) {
	t.Helper()
	w := &fakeWork{fail: map[podapi.Op]error{}}
	start := time.Now()
	h := podapi.Header{Term: 1, Job: 7, Incarnation: 1}
	return newPhases(h, restore, t.TempDir(), w, func() time.Duration { return time.Since(start) }, zerolog.Nop()), w
}

// request is an op of incarnation 1.
func request(op podapi.Op, e job.Epoch, attempt uint64) podapi.PhaseRequest {
	return podapi.PhaseRequest{Header: podapi.Header{Term: 1, Job: 7, Incarnation: 1, Attempt: attempt}, Op: op, Epoch: e, DeadlineMS: 1000}
}

// statusOf is 200, or the status of a refusal.
func statusOf(t *testing.T, p *phases, q podapi.PhaseRequest) int {
	t.Helper()
	_, err := p.handle(t.Context(), q)
	var r *refusal
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &r):
		return r.status
	}
	t.Fatalf("%s: %v", q.Op, err)
	return 0
}

func wantStatus(t *testing.T, p *phases, want int, qs ...podapi.PhaseRequest) {
	t.Helper()
	for _, q := range qs {
		if got := statusOf(t, p, q); got != want {
			t.Errorf("%s epoch %d attempt %d: %d, want %d (pod is %s)", q.Op, q.Epoch, q.Attempt, got, want, p.look().Stage)
		}
	}
}

func wantSaid(t *testing.T, w *fakeWork, want string) {
	t.Helper()
	if got := w.said(); got != want {
		t.Errorf("work: %s; want %s", got, want)
	}
}

func TestRoundInOrder(t *testing.T) {
	p, w := newTestPhases(t, false)
	for _, op := range []podapi.Op{podapi.OpCaptureSend, podapi.OpResume, podapi.OpWrite, podapi.OpCommit, podapi.OpRelease, podapi.OpRollback, podapi.OpRestore} {
		wantStatus(t, p, http.StatusConflict, request(op, 1, 1))
	}
	all := []podapi.Op{podapi.OpFreeze, podapi.OpCaptureSend, podapi.OpCaptureRecv, podapi.OpResume, podapi.OpWrite, podapi.OpCommit}
	for _, op := range all {
		wantStatus(t, p, http.StatusOK, request(op, 1, 1), request(op, 1, 1)) // a repetition is answered from memory
	}
	wantSaid(t, w, "freeze 1, capture-send 1, capture-recv 1, resume 1, write 1, commit 1")
	wantStatus(t, p, http.StatusConflict, request(podapi.OpFreeze, 1, 2)) // an epoch is not used twice
	wantStatus(t, p, http.StatusOK, request(podapi.OpFreeze, 2, 3), request(podapi.OpAbandon, 2, 3), request(podapi.OpFreeze, 3, 4))
	wantStatus(t, p, http.StatusConflict, request(podapi.OpCaptureSend, 2, 3)) // of the attempt before
	wantStatus(t, p, http.StatusConflict, request(podapi.OpCaptureSend, 9, 4)) // of another epoch
	if p.look().Seen != 1 {
		t.Errorf("committed epoch %d", p.look().Seen)
	}
}

func TestStaleRequests(t *testing.T) {
	p, w := newTestPhases(t, false)
	q := request(podapi.OpFreeze, 1, 5)
	q.Term = 3
	wantStatus(t, p, http.StatusOK, q)
	older := request(podapi.OpCaptureSend, 1, 5)
	other := request(podapi.OpFreeze, 2, 6)
	other.Term, other.Job = 3, 8
	future := request(podapi.OpFreeze, 2, 6)
	future.Term, future.Incarnation = 3, 2
	wantStatus(t, p, http.StatusConflict, older, other, future)
	wantSaid(t, w, "freeze 1")
}

func TestFailedFreezeAndCapture(t *testing.T) {
	p, w := newTestPhases(t, false)
	w.fail[podapi.OpFreeze] = fmt.Errorf("unpaired: %w", errRetry)
	_, err := p.handle(t.Context(), request(podapi.OpFreeze, 1, 1))
	var r *refusal
	if !errors.As(err, &r) || !r.retry || r.status != http.StatusUnprocessableEntity {
		t.Fatalf("%v", err)
	}
	delete(w.fail, podapi.OpFreeze)
	w.fail[podapi.OpCaptureSend] = errors.New("no memory")
	wantStatus(t, p, http.StatusOK, request(podapi.OpFreeze, 1, 2))
	wantStatus(t, p, http.StatusUnprocessableEntity, request(podapi.OpCaptureSend, 1, 2))
	wantStatus(t, p, http.StatusConflict, request(podapi.OpCaptureRecv, 1, 2))
	wantStatus(t, p, http.StatusOK, request(podapi.OpAbandon, 1, 2))
	wantSaid(t, w, "freeze 1, freeze 1, capture-send 1, abandon 1")
}

// A pod whose coordinator falls silent goes on by itself and voids the round,
// durably; the coordinator's next op is refused.
func TestDeadline(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p, w := newTestPhases(t, false)
		p.void = filepath.Join(dir, voidFile)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.watch(ctx) }()
		wantStatus(t, p, http.StatusOK, request(podapi.OpFreeze, 1, 1), request(podapi.OpCaptureSend, 1, 1))
		time.Sleep(999 * time.Millisecond)
		synctest.Wait()
		wantSaid(t, w, "freeze 1, capture-send 1")
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		wantSaid(t, w, "give up 1")
		wantStatus(t, p, http.StatusConflict, request(podapi.OpCaptureRecv, 1, 1), request(podapi.OpFreeze, 1, 1))
		wantStatus(t, p, http.StatusOK, request(podapi.OpAbandon, 1, 1)) // is so already
		wantSaid(t, w, "")
		wantStatus(t, p, http.StatusOK, request(podapi.OpFreeze, 2, 2))
		cancel()
		<-done
	})
	b, err := os.ReadFile(filepath.Join(dir, voidFile))
	if err != nil || string(b) != `{"incarnation":1,"attempt":1}` {
		t.Errorf("void record: %s %v", b, err)
	}
}

// A recovery interrupts a checkpoint, wherever it is.
func TestStopInterrupts(t *testing.T) {
	for _, at := range []podapi.Op{podapi.OpFreeze, podapi.OpCaptureRecv, podapi.OpWrite} {
		p, w := newTestPhases(t, false)
		w.block = at
		ended := make(chan int, 1)
		go func() {
			for _, op := range []podapi.Op{podapi.OpFreeze, podapi.OpCaptureSend, podapi.OpCaptureRecv, podapi.OpResume, podapi.OpWrite} {
				q := request(op, 1, 1)
				q.DeadlineMS = 60_000
				if s := statusOf(t, p, q); s != http.StatusOK {
					ended <- s
					return
				}
			}
		}()
		for w2 := ""; !strings.HasSuffix(w2, string(at)+" 1"); {
			time.Sleep(time.Millisecond)
			w.mu.Lock()
			w2 = strings.Join(w.log, ", ")
			w.mu.Unlock()
		}
		stop := request(podapi.OpStop, 0, 1)
		stop.Incarnation = 2
		wantStatus(t, p, http.StatusOK, stop)
		if s := <-ended; s != http.StatusUnprocessableEntity {
			t.Errorf("interrupted %s: %d", at, s)
		}
		back, release := request(podapi.OpRollback, 1, 1), request(podapi.OpRelease, 1, 1)
		back.Incarnation, release.Incarnation = 2, 2
		wantStatus(t, p, http.StatusConflict, release)
		wantStatus(t, p, http.StatusOK, back, release, release)
		wantStatus(t, p, http.StatusConflict, request(podapi.OpFreeze, 2, 9)) // of the old incarnation
		if !strings.HasSuffix(w.said(), "incarnation 2, stop 0, rollback 1, release 1") {
			t.Errorf("after %s: wrong order", at)
		}
	}
}

// A written epoch may be committed without this pod knowing: it is neither
// dropped by a stop nor replaced by a freeze.
func TestWrittenEpochIsKept(t *testing.T) {
	p, w := newTestPhases(t, false)
	for _, op := range []podapi.Op{podapi.OpFreeze, podapi.OpCaptureSend, podapi.OpCaptureRecv, podapi.OpResume, podapi.OpWrite} {
		wantStatus(t, p, http.StatusOK, request(op, 1, 1))
	}
	wantStatus(t, p, http.StatusConflict, request(podapi.OpFreeze, 2, 2))
	stop := request(podapi.OpStop, 0, 1)
	stop.Incarnation = 2
	wantStatus(t, p, http.StatusOK, stop)
	if got := w.said(); strings.Contains(got, "give up") {
		t.Errorf("work: %s", got)
	}
}

func TestRebuiltPod(t *testing.T) {
	p, w := newTestPhases(t, true)
	wantStatus(t, p, http.StatusConflict, request(podapi.OpFreeze, 1, 1), request(podapi.OpStop, 0, 1), request(podapi.OpRelease, 4, 1))
	w.fail[podapi.OpRestore] = errors.New("no image")
	wantStatus(t, p, http.StatusUnprocessableEntity, request(podapi.OpRestore, 4, 1))
	delete(w.fail, podapi.OpRestore)
	wantStatus(t, p, http.StatusOK, request(podapi.OpRestore, 4, 2), request(podapi.OpRelease, 4, 2), request(podapi.OpFreeze, 5, 3))
	if p.look().Seen != 4 {
		t.Errorf("committed epoch %d", p.look().Seen)
	}
}

// Repetitions that come while the first one is under way get its answer.
func TestConcurrentRepetition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, w := newTestPhases(t, false)
		w.block = podapi.OpFreeze
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { wantStatus(t, p, http.StatusUnprocessableEntity, request(podapi.OpFreeze, 1, 1)) })
		}
		synctest.Wait()
		wantStatus(t, p, http.StatusConflict, request(podapi.OpSuspend, 0, 1)) // busy
		wg.Wait()
		wantSaid(t, w, "freeze 1")
	})
}
