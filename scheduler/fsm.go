package scheduler

import (
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"github.com/rs/zerolog"
)

// fsm hands the committed entries to Step. raft calls Apply, Snapshot and
// Restore from one goroutine; state is read by any.
type fsm struct {
	state atomic.Pointer[State]
	hub   hub
	log   zerolog.Logger
}

func newFSM(log zerolog.Logger) *fsm {
	f := &fsm{log: log}
	f.state.Store((*State)(nil).clone())
	return f
}

// Apply implements raft.FSM. It returns a Result.
func (f *fsm) Apply(l *raft.Log) any {
	var c Command
	if err := json.Unmarshal(l.Data, &c); err != nil {
		f.log.Error().Err(err).Uint64("index", l.Index).Msg("entry of the log cannot be read; passed over")
		c = Command{}
	}
	next, acts := Step(f.state.Load(), l.Index, c)
	f.state.Store(next)
	res := Result{State: next, Actions: acts}
	if len(acts) == 1 && acts[0].Kind == ActRefuse {
		res.refusal = acts[0].Refusal
		if res.refusal.Code == Broken {
			f.log.Error().Str("command", string(l.Data)).Msg(res.refusal.Text)
		}
		return res
	}
	f.hub.publish(Update{State: next, Actions: acts})
	return res
}

// Snapshot implements raft.FSM. The state is immutable: nothing to copy.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return snapshot{f.state.Load()}, nil }

// Restore implements raft.FSM.
func (f *fsm) Restore(r io.ReadCloser) error {
	var s State
	err := json.NewDecoder(r).Decode(&s)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("scheduler: read snapshot: %w", err)
	}
	if err := Check(&s); err != nil {
		return fmt.Errorf("scheduler: snapshot: %w", err)
	}
	next := s.clone()
	f.state.Store(next)
	f.hub.publish(Update{State: next, Missed: true})
	return nil
}

type snapshot struct{ s *State }

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := json.NewEncoder(sink).Encode(s.s); err != nil {
		return fmt.Errorf("scheduler: write snapshot: %w", errorsJoinCancel(err, sink))
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("scheduler: write snapshot: %w", err)
	}
	return nil
}

// Release implements raft.FSMSnapshot.
func (snapshot) Release() {}

func errorsJoinCancel(err error, sink raft.SnapshotSink) error {
	if cerr := sink.Cancel(); cerr != nil {
		return fmt.Errorf("%w (and its removal: %w)", err, cerr)
	}
	return err
}
