package lamd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lampause/lampause/internal/podapi"
)

func TestPodStarts(t *testing.T) {
	m, s := testPods(t)
	var up []*localPod
	m.onUp = func(p *localPod) { up = append(up, p) }
	f := startOne(t, m, s, specOf(7, 1))
	if !slices.Equal(f.links, []string{"link0"}) {
		t.Errorf("links %v", f.links)
	}
	p, ok := m.get(7)
	if !ok || len(up) != 1 || up[0] != p {
		t.Fatalf("known %v, told of %v", p, up)
	}
	if err := m.start(testContext(t), specOf(7, 1)); err != nil || len(s.pods()) != 1 {
		t.Errorf("started again: %v, %d supervisors", err, len(s.pods()))
	}
}

func TestPodOfOlderIncarnationIsReplaced(t *testing.T) {
	m, s := testPods(t)
	old := startOne(t, m, s, specOf(7, 1))
	now := startOne(t, m, s, specOf(7, 2))
	if old == now || old.alive() || !now.alive() {
		t.Fatalf("old alive %v, new alive %v", old.alive(), now.alive())
	}
	if p, _ := m.get(7); p.spec.Incarnation != 2 {
		t.Errorf("incarnation %d", p.spec.Incarnation)
	}
}

// A leader repeats a start whose answer it did not get, and a new leader does
// so while the first is still under way.
func TestPodStartedTwiceAtATimeIsOne(t *testing.T) {
	m, s := testPods(t)
	ctx := testContext(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := m.start(ctx, specOf(7, 1)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := len(s.pods()); n != 1 {
		t.Errorf("%d supervisors", n)
	}
}

// The answer to kill is a positive fence: it must not come while a pod that
// it names is being built.
func TestKillWaitsForAPodBeingBuilt(t *testing.T) {
	m, s := testPods(t)
	building, goOn := make(chan struct{}), make(chan struct{})
	s.hold = func(context.Context) {
		close(building)
		<-goOn
	}
	ctx := testContext(t)
	var both sync.WaitGroup
	both.Go(func() {
		if err := m.start(ctx, specOf(7, 1)); err != nil {
			t.Error(err)
		}
	})
	<-building
	killed := make(chan error, 1)
	both.Go(func() { killed <- m.kill(ctx, 7, everyPod) })
	eventually(t, "kill waits", func() bool { return m.busy.waiters(7) == 2 })
	close(goOn)
	both.Wait()
	if err := <-killed; err != nil {
		t.Fatal(err)
	}
	if all := s.pods(); len(all) != 1 || all[0].alive() {
		t.Errorf("a pod lives after its kill was answered")
	}
}

// waiters tells how many have or want a key.
func (k *keyLock[K]) waiters(key K) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h := k.held[key]; h != nil {
		return h.users
	}
	return 0
}

func TestKeyLockHeedsContext(t *testing.T) {
	var k keyLock[int]
	unlock, err := k.lock(testContext(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	other, err := k.lock(testContext(t), 2)
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := k.lock(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	unlock()
	if len(k.held) != 0 {
		t.Errorf("%d keys stay", len(k.held))
	}
}

func TestKillNamesAPod(t *testing.T) {
	m, s := testPods(t)
	f := startOne(t, m, s, specOf(7, 3))
	if err := m.kill(testContext(t), 7, func(p *localPod) bool { return p.spec.Incarnation <= 2 }); err != nil {
		t.Fatal(err)
	}
	if !f.alive() {
		t.Fatal("a newer pod was ended")
	}
	if err := m.kill(testContext(t), 7, everyPod); err != nil {
		t.Fatal(err)
	}
	_, known := m.get(7)
	if _, err := os.Stat(m.podDir(7)); f.alive() || known || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("alive %v, known %v, directory: %v", f.alive(), known, err)
	}
	if err := m.kill(testContext(t), 7, everyPod); err != nil {
		t.Errorf("killed again: %v", err)
	}
}

func TestKillOfASupervisorThatDoesNotAnswer(t *testing.T) {
	m, s := testPods(t)
	f := startOne(t, m, s, specOf(7, 1))
	f.mu.Lock()
	f.deaf = true
	f.mu.Unlock()
	if err := m.kill(testContext(t), 7, everyPod); err != nil {
		t.Fatal(err)
	}
	if f.alive() {
		t.Error("the pod lives")
	}
}

func TestSupervisorOfAnotherProtocol(t *testing.T) {
	m, s := testPods(t)
	s.hook = func(f *fakePod) { f.version = podapi.Version + 1 }
	err := m.start(testContext(t), specOf(7, 1))
	if err == nil || !strings.Contains(err.Error(), "protocol") {
		t.Fatalf("got %v", err)
	}
	if s.pods()[0].alive() || len(m.list()) != 0 {
		t.Error("it was left running")
	}
}

func TestPodWithoutLinkIsEnded(t *testing.T) {
	m, s := testPods(t)
	m.linker = fakeLinker{err: errors.New("no such device")}
	if err := m.start(testContext(t), specOf(7, 1)); err == nil {
		t.Fatal("started")
	}
	if s.pods()[0].alive() {
		t.Error("it was left running")
	}
}

func TestPodNotInItsOwnBook(t *testing.T) {
	m, s := testPods(t)
	spec := specOf(7, 1)
	spec.Book = nil
	if err := m.start(testContext(t), spec); err == nil || s.pods()[0].alive() {
		t.Fatalf("got %v", err)
	}
}

func TestReap(t *testing.T) {
	m, s := testPods(t)
	f := startOne(t, m, s, specOf(7, 1))
	p, _ := m.get(7)
	if m.reap(testContext(t), p) {
		t.Fatal("a living pod was taken for gone")
	}
	f.die()
	if !m.reap(testContext(t), p) {
		t.Fatal("a dead pod was not seen")
	}
	if len(m.list()) != 0 {
		t.Error("roll calls still name a pod that is gone")
	}
	if _, err := os.Stat(filepath.Join(m.podDir(7), specFile)); err != nil {
		t.Errorf("the log of a dead pod went with it: %v", err)
	}
}

// A number may have been given to another process meanwhile.
func TestProcessIsToldFromItsSuccessor(t *testing.T) {
	me, ok := processOf(os.Getpid())
	if !ok || !me.alive() {
		t.Fatalf("own process: %+v, %v", me, ok)
	}
	former := process{pid: me.pid, start: "1"}
	if former.alive() {
		t.Error("another process was taken for it")
	}
	former.kill() // must not end this test
	for _, pid := range []int{-1, 0, 1} {
		if _, ok := processOf(pid); ok {
			t.Errorf("pid %d is never a pod's", pid)
		}
	}
}
