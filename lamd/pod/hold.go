package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
)

// holder names a reason why the ranks must stand still outside of a
// checkpoint or recovery.
type holder string

const (
	heldByLease holder = "lease"
	heldByUser  holder = "user"
)

// holds stops the ranks for as long as there is a reason.
//
// It uses SIGSTOP and SIGCONT, sent by pod-init to everything in its pid
// namespace, and not ptrace: it must work while the tracer is busy or stuck,
// it must cover processes that the tracer does not know (children of ranks),
// and it must last. A rank that spins is stopped at its next return to user
// space, at the latest by the timer tick, like any process. The signals do not
// reach frozen copies' state: those never run. What a program sees of it is
// what it sees of Ctrl-Z: EINTR from some calls, and SIGCONT if it asks for it.
// Safe for concurrent use.
type holds struct {
	signal func(context.Context, unix.Signal) error

	mu  sync.Mutex // guards below, and the order of signals
	set map[holder]bool
}

// signalTimeout bounds a signal by way of pod-init.
const signalTimeout = 2 * time.Second

// take stops the ranks; repeating it is harmless and stops late children.
func (h *holds) take(ctx context.Context, who holder) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.set == nil {
		h.set = map[holder]bool{}
	}
	h.set[who] = true
	return h.send(ctx, unix.SIGSTOP)
}

// drop lets the ranks go on when nobody else holds them.
func (h *holds) drop(ctx context.Context, who holder) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.set[who] {
		return nil
	}
	if len(h.set) == 1 {
		if err := h.send(ctx, unix.SIGCONT); err != nil {
			return err
		}
	}
	delete(h.set, who)
	return nil
}

// lift lets the ranks go on although they are held, for an operation that
// freezes them in its own way; again stops them afterwards.
func (h *holds) lift(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.set) == 0 {
		return nil
	}
	return h.send(ctx, unix.SIGCONT)
}

// note says that somebody holds the ranks, which stand still already or will
// before they execute anything.
func (h *holds) note(who holder) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.set == nil {
		h.set = map[holder]bool{}
	}
	h.set[who] = true
}

// again stops the ranks if anybody holds them.
func (h *holds) again(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.set) == 0 {
		return nil
	}
	return h.send(ctx, unix.SIGSTOP)
}

func (h *holds) any() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.set) > 0
}

func (h *holds) send(ctx context.Context, sig unix.Signal) error {
	ctx, cancel := context.WithTimeout(ctx, signalTimeout)
	defer cancel()
	if err := h.signal(ctx, sig); err != nil {
		return fmt.Errorf("signal %v to the pod: %w", sig, err)
	}
	return nil
}

// leaseKeeper drives the lease's core. Safe for concurrent use.
type leaseKeeper struct {
	now  func() time.Duration
	wake chan struct{}

	mu    sync.Mutex // guards below
	state leaseState
	due   []leaseAction // not yet carried out
}

func newLeaseKeeper(now func() time.Duration, ttl time.Duration) *leaseKeeper {
	return &leaseKeeper{now: now, wake: make(chan struct{}, 1), state: newLease(now(), ttl)}
}

// renew takes a renewal.
func (k *leaseKeeper) renew(l podapi.Lease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var a leaseAction
	k.state, a = k.state.renew(k.now(), time.Duration(l.SentNS), time.Duration(l.TTLMS)*time.Millisecond)
	if a != leaseNothing {
		k.due = append(k.due, a)
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// tick returns the actions that are due and how long to sleep.
func (k *leaseKeeper) tick() ([]leaseAction, time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	var a leaseAction
	k.state, a = k.state.tick(now)
	due := k.due
	if a != leaseNothing {
		due = append(due, a)
	}
	k.due = nil
	at, on := k.state.next()
	if !on {
		return due, time.Hour
	}
	return due, max(at-now, 0)
}

// valid reports whether the ranks may compute.
func (k *leaseKeeper) valid() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.state.on || k.state.phase == leaseHeld && k.now() < k.state.deadline
}

// keepLease carries out what the lease demands until ctx ends. The timer runs
// on CLOCK_MONOTONIC; after a sleep of the machine it may fire late, which the
// regular look bounds.
func (s *supervisor) keepLease(ctx context.Context) error {
	const look = 500 * time.Millisecond
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.lease.wake:
		case <-t.C:
		}
		due, wait := s.lease.tick()
		for _, a := range due {
			if err := s.applyLease(ctx, a); err != nil {
				s.log.Error().Err(err).Msg("lease not enforced; the pod is ended")
				return err
			}
		}
		t.Reset(min(wait, look))
	}
}

// applyLease carries one action out. A freeze that fails ends the pod: a pod
// without a lease must not compute.
func (s *supervisor) applyLease(ctx context.Context, a leaseAction) error {
	switch a {
	case leaseFreeze:
		s.log.Warn().Msg("lease ran out; ranks are stopped")
		err := errors.Join(s.holds.take(ctx, heldByLease), s.net.down())
		s.events.add(podapi.Event{Kind: evLeaseFrozen})
		return err
	case leaseThaw:
		if err := s.linkUp(ctx); err != nil {
			return err
		}
		s.log.Info().Msg("lease renewed; ranks go on")
		s.events.add(podapi.Event{Kind: evLeaseThawed})
		return s.holds.drop(ctx, heldByLease)
	case leaseKill:
		s.log.Warn().Msg("lease was not renewed; the pod is killed")
		s.events.add(podapi.Event{Kind: evLeaseKilled})
		return s.endPod()
	}
	return nil
}
