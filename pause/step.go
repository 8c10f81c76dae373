package pause

import (
	"fmt"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// Phase is where a pod stands.
type Phase string

// The phases. In all but Running the ranks are frozen.
const (
	Running    Phase = "running"
	FrozenAt   Phase = "frozen"      // a checkpoint round has begun
	Sent       Phase = "sent"        // send queues are captured
	Captured   Phase = "captured"    // everything is captured
	Stopped    Phase = "stopped"     // a recovery has begun
	RolledBack Phase = "rolled-back" // whole again, waiting for the release
	Suspended  Phase = "suspended"
)

// opAdopt is the event of a pod whose ranks migrate/ rebuilt.
const opAdopt podapi.Op = "adopt"

// State is the pure state of a pod: which epochs it keeps and where it stands.
type State struct {
	Phase     Phase
	Committed job.Epoch // newest epoch seen committed, or adopted; 0 for none
	Draft     job.Epoch // epoch in the making, or made and not committed; 0 for none
	Written   bool      // the draft's image is durable
	Last      job.Epoch // highest epoch ever begun: numbers are not used again
	At        job.Epoch // in RolledBack: the epoch
}

// Event is a step that is asked for. Epoch counts for the ops that have one.
type Event struct {
	Op    podapi.Op
	Epoch job.Epoch
}

// Action is what the driver has to do, in order.
type Action string

// The actions.
const (
	ActFreeze      Action = "freeze"
	ActThaw        Action = "thaw"
	ActCaptureSend Action = "capture-send"
	ActCaptureRecv Action = "capture-recv"
	ActWrite       Action = "write"
	ActRollback    Action = "rollback"
	ActRelease     Action = "release"
	ActAdopt       Action = "adopt"
	ActDropDraft   Action = "drop-draft" // forget what is kept of the draft
	ActPromote     Action = "promote"    // the draft becomes the committed epoch, the older one is dropped
)

// step answers what an event means in a state. It is pure. No actions and no
// error mean that the step was done before. The new state counts when the
// actions succeeded.
//
// Expected errors: ErrOrder, ErrUnknownEpoch.
func step(s State, e Event) (State, []Action, error) {
	switch e.Op {
	case podapi.OpFreeze, podapi.OpCaptureSend, podapi.OpCaptureRecv, podapi.OpResume:
		return stepCapture(s, e)
	case podapi.OpWrite, podapi.OpCommit, podapi.OpAbandon:
		return stepImage(s, e)
	case podapi.OpStop, podapi.OpRollback, podapi.OpRelease:
		return stepRecovery(s, e)
	case podapi.OpSuspend:
		if s.Phase == Suspended {
			return s, nil, nil
		}
		if s.Phase == Running {
			s.Phase = Suspended
			return s, []Action{ActFreeze}, nil
		}
	case podapi.OpContinue:
		if s.Phase == Running {
			return s, nil, nil
		}
		if s.Phase == Suspended {
			s.Phase = Running
			return s, []Action{ActThaw}, nil
		}
	case opAdopt:
		if s.Phase == Running && s.Draft == 0 {
			s.Committed, s.Last = e.Epoch, max(s.Last, e.Epoch)
			return s, []Action{ActAdopt}, nil
		}
	}
	return s, nil, outOfOrder(s, e)
}

// stepCapture is the stall of a checkpoint.
func stepCapture(s State, e Event) (State, []Action, error) {
	if e.Op == podapi.OpFreeze {
		switch {
		case s.Phase == FrozenAt && s.Draft == e.Epoch:
			return s, nil, nil
		case s.Phase != Running || e.Epoch <= s.Last:
			return s, nil, outOfOrder(s, e)
		}
		var acts []Action
		if s.Draft != 0 {
			acts = append(acts, ActDropDraft) // its round was given up
		}
		s.Phase, s.Draft, s.Written, s.Last = FrozenAt, e.Epoch, false, e.Epoch
		return s, append(acts, ActFreeze), nil
	}
	if s.Draft != e.Epoch {
		return s, nil, outOfOrder(s, e)
	}
	type move struct {
		from, to Phase
		act      Action
	}
	m := map[podapi.Op]move{
		podapi.OpCaptureSend: {FrozenAt, Sent, ActCaptureSend},
		podapi.OpCaptureRecv: {Sent, Captured, ActCaptureRecv},
		podapi.OpResume:      {Captured, Running, ActThaw},
	}[e.Op]
	switch s.Phase {
	case m.to:
		return s, nil, nil
	case m.from:
		s.Phase = m.to
		return s, []Action{m.act}, nil
	}
	return s, nil, outOfOrder(s, e)
}

// stepImage is what follows a stall in the background.
func stepImage(s State, e Event) (State, []Action, error) {
	switch e.Op {
	case podapi.OpWrite:
		if s.Draft != e.Epoch || s.Phase == FrozenAt || s.Phase == Sent || s.Phase == Captured {
			return s, nil, outOfOrder(s, e)
		}
		if s.Written {
			return s, nil, nil
		}
		s.Written = true
		return s, []Action{ActWrite}, nil
	case podapi.OpCommit:
		if s.Committed == e.Epoch {
			return s, nil, nil
		}
		if s.Draft != e.Epoch || !s.Written {
			return s, nil, fmt.Errorf("commit of epoch %d: %w", e.Epoch, ErrUnknownEpoch)
		}
		s.Committed, s.Draft, s.Written = e.Epoch, 0, false
		return s, []Action{ActPromote}, nil
	}
	if s.Committed == e.Epoch { // abandon
		return s, nil, outOfOrder(s, e)
	}
	if s.Draft != e.Epoch {
		return s, nil, nil
	}
	acts := []Action{ActDropDraft}
	switch s.Phase {
	case FrozenAt, Sent, Captured:
		s.Phase = Running
		acts = []Action{ActThaw, ActDropDraft}
	}
	s.Draft, s.Written = 0, false
	return s, acts, nil
}

// stepRecovery is the way back. A recovery interrupts a round: what was
// captured and not written is dropped, the ranks stay frozen.
func stepRecovery(s State, e Event) (State, []Action, error) {
	switch e.Op {
	case podapi.OpStop:
		from := s.Phase
		s.Phase = Stopped
		switch from {
		case Stopped:
			return s, nil, nil
		case Running:
			return s, []Action{ActFreeze}, nil
		case FrozenAt, Sent, Captured:
			s.Draft, s.Written = 0, false
			return s, []Action{ActDropDraft}, nil
		}
		return s, nil, nil // suspended or rolled back: frozen already
	case podapi.OpRollback:
		if s.Phase == RolledBack && s.At == e.Epoch {
			return s, nil, nil
		}
		if s.Phase != Stopped {
			return s, nil, outOfOrder(s, e)
		}
		return stepRollback(s, e)
	}
	if s.Phase == Running && s.At != 0 && s.At == e.Epoch { // release
		return s, nil, nil
	}
	if s.Phase != RolledBack {
		return s, nil, outOfOrder(s, e)
	}
	s.Phase = Running
	return s, []Action{ActRelease}, nil
}

func stepRollback(s State, e Event) (State, []Action, error) {
	var acts []Action
	switch {
	case e.Epoch == 0:
		return s, nil, fmt.Errorf("rollback: %w", ErrUnknownEpoch)
	case e.Epoch == s.Draft && s.Written: // committed, but we were not told
		s.Committed, s.Draft, s.Written = e.Epoch, 0, false
		acts = append(acts, ActPromote)
	case e.Epoch == s.Committed:
		if s.Draft != 0 {
			s.Draft, s.Written = 0, false
			acts = append(acts, ActDropDraft)
		}
	default:
		return s, nil, fmt.Errorf("rollback to epoch %d: %w", e.Epoch, ErrUnknownEpoch)
	}
	s.Phase, s.At = RolledBack, e.Epoch
	return s, append(acts, ActRollback), nil
}

func outOfOrder(s State, e Event) error {
	return fmt.Errorf("%s of epoch %d in phase %s (committed %d, draft %d): %w",
		e.Op, e.Epoch, s.Phase, s.Committed, s.Draft, ErrOrder)
}
