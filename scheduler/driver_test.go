package scheduler

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/rs/zerolog"

	"github.com/lampause/lampause/job"
)

func TestWatch(t *testing.T) {
	var h hub
	w := h.add()
	slow := h.add()
	for i := range backlog + 10 {
		h.publish(Update{State: &State{Index: uint64(i + 1)}})
		if u, err := w.Next(t.Context()); err != nil || u.State.Index != uint64(i+1) || u.Missed {
			t.Fatalf("update %d: %+v, %v", i, u, err)
		}
	}
	u, err := slow.Next(t.Context())
	if err != nil || !u.Missed {
		t.Errorf("a slow reader is not told that it missed something: %+v, %v", u, err)
	}
	if u, err = slow.Next(t.Context()); err != nil || u.Missed {
		t.Errorf("told twice: %+v, %v", u, err)
	}
	w.Close()
	h.publish(Update{State: &State{}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after Close: %v", err)
	}
}

// TestConfirmTogether: many ask at once, and a few questions answer them.
func TestConfirmTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		l := c.leader()
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				if term, err := l.Confirm(ctx); err != nil || term != l.Leader().Term {
					t.Errorf("term %d, %v", term, err)
				}
			})
		}
		wg.Wait()
		for _, m := range c.members {
			var not *ErrNotLeader
			if _, err := m.Confirm(context.Background()); m != l && !errors.As(err, &not) {
				t.Errorf("%s: %v", m.id, err)
			}
		}
	})
}

func TestStepDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		c.joinAll(3)
		old := c.leader()
		if err := old.StepDown(context.Background()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		if next := c.leader(); next == old {
			t.Error("still the leader")
		}
	})
}

// TestUnreadableEntry: an entry that nobody can read changes nothing, on any
// node, and stops nobody.
func TestUnreadableEntry(t *testing.T) {
	f := newFSM(zerolog.Nop())
	f.Apply(&raft.Log{Index: 1, Data: []byte(`{"join":{"node":"n1","boot":1}}`)})
	f.Apply(&raft.Log{Index: 2, Data: []byte("{")})
	f.Apply(&raft.Log{Index: 3, Data: []byte("{}")})
	if st := f.state.Load(); st.Index != 3 || len(st.Nodes) != 1 {
		t.Errorf("index %d, nodes %v", st.Index, st.Nodes)
	}
}

// TestOverTCP elects and applies over real sockets.
func TestOverTCP(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var peers []Peer
	var streams []Stream
	for i := range 3 {
		s, err := ListenTCP(t.Context(), "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
		peers = append(peers, Peer{ID: job.NodeID(fmt.Sprintf("n%d", i+1)), Addr: s.Addr().String()})
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	led := make(chan *Scheduler, 3)
	for i, p := range peers {
		var s *Scheduler
		s, err := New(Config{
			ID: p.ID, Dir: filepath.Join(dir, string(p.ID)), Stream: streams[i], Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel),
			Lead: func(ctx context.Context, _ uint64) {
				led <- s
				<-ctx.Done()
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Bootstrap(peers); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := s.Run(ctx); err != nil {
				t.Errorf("%s: %v", p.ID, err)
			}
		})
	}
	select {
	case l := <-led:
		sub, stop := context.WithTimeout(ctx, 20*time.Second)
		defer stop()
		res, err := l.Apply(sub, Command{Join: &Join{Node: "n1", Addr: "127.0.0.1", Boot: 1}})
		if err != nil || res.State.Nodes["n1"].Boot != 1 {
			t.Errorf("%+v, %v", res, err)
		}
	case <-time.After(time.Minute):
		t.Error("nobody leads after a minute")
	}
}
