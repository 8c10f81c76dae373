package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/rs/zerolog"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler/raftlog"
)

// ErrUnknownOutcome is in the chain of errors of Apply when the command may or
// may not be applied, now or later: leadership or the deadline was lost
// meanwhile. Commands may be repeated.
var ErrUnknownOutcome = errors.New("outcome not known")

// ErrNotLeader says that another node must be asked. Node is empty when none
// is known to lead.
type ErrNotLeader struct {
	Node job.NodeID
	Addr string // its raft address
}

// Error implements error.
func (e *ErrNotLeader) Error() string {
	if e.Node == "" {
		return "scheduler: no leader is known"
	}
	return "scheduler: the leader is " + string(e.Node)
}

// Config says who this node is. Zero times get the defaults named here; they
// are long because ranks take all the processor time that there is.
type Config struct {
	ID     job.NodeID
	Dir    string // LAM_STATE_DIR/NODE/raft; made with mode 0700
	Stream Stream // owned by the Scheduler from New on
	Log    zerolog.Logger

	// Lead runs while this node is the leader: from when it has applied
	// everything of earlier terms, until ctx ends because leadership was lost or
	// Run ends. It must return soon after that. May be nil.
	Lead func(ctx context.Context, term uint64)

	Heartbeat     time.Duration // followers stand for election after this to twice this of silence; default 1200 ms
	Election      time.Duration // >= Heartbeat; default 1200 ms
	Lease         time.Duration // a leader without a majority steps down after this, <= Heartbeat; default 1 s
	ApplyTimeout  time.Duration // to hand a command to raft; default 5 s
	VoterInterval time.Duration // between looks at the voters; default 1 s

	SnapshotThreshold uint64 // entries between snapshots; default 2048
}

func (c *Config) defaults() {
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&c.Heartbeat, 1200 * time.Millisecond},
		{&c.Election, 1200 * time.Millisecond},
		{&c.Lease, time.Second},
		{&c.ApplyTimeout, 5 * time.Second},
		{&c.VoterInterval, time.Second},
	} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = 2048
	}
}

// Scheduler is a node's replica of the state. Its methods may be called by any
// number of goroutines; Run exactly once.
type Scheduler struct {
	cfg     Config
	log     zerolog.Logger
	fsm     *fsm
	store   *raftlog.Store
	trans   *raft.NetworkTransport
	witness *witness // trans, as raft uses it
	raft    *raft.Raft
	confirm chan chan confirmation
	futures sync.WaitGroup
}

// Result is what became of a command.
type Result struct {
	State   *State   // after it
	Actions []Action // what followed from it
	refusal *Refusal
}

// New opens the log and joins raft. A node that is neither bootstrapped nor
// added by a leader stays silent. Run must follow, it also releases what New
// opened.
//
// Expected errors: Dir cannot be used, or another process uses it.
func New(cfg Config) (*Scheduler, error) {
	cfg.defaults()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("scheduler: %w", err)
	}
	log := cfg.Log.With().Str("component", "scheduler").Logger()
	out := logWriter{log}
	store, err := raftlog.Open(filepath.Join(cfg.Dir, "raft.db"))
	if err != nil {
		return nil, fmt.Errorf("scheduler: %w", err)
	}
	snaps, err := raft.NewFileSnapshotStore(cfg.Dir, 2, out)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("scheduler: snapshots: %w", err), store.Close())
	}
	s := &Scheduler{cfg: cfg, log: log, fsm: newFSM(log), store: store, confirm: make(chan chan confirmation)}
	s.trans = raft.NewNetworkTransport(layer{cfg.Stream}, 3, cfg.Heartbeat+cfg.Election, out)
	s.witness = newWitness(s.trans)
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(cfg.ID)
	rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = cfg.Heartbeat, cfg.Election, cfg.Lease
	rc.SnapshotThreshold, rc.TrailingLogs = cfg.SnapshotThreshold, cfg.SnapshotThreshold/2
	rc.SnapshotInterval = 30 * time.Second
	// How late a quiet follower learns what is committed. Nobody waits for that:
	// questions go to the leader. With the default of 50 ms the leader wakes
	// every voter 13 times a second, on cores that belong to the ranks.
	rc.CommitTimeout = 250 * time.Millisecond
	rc.ShutdownOnRemove = false // a node that was replaced may be needed again
	rc.LogOutput, rc.LogLevel = out, "INFO"
	rc.NoLegacyTelemetry = true
	s.raft, err = raft.NewRaft(rc, s.fsm, store, store, snaps, s.witness)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("scheduler: start raft: %w", err), s.trans.Close(), store.Close())
	}
	return s, nil
}

// Bootstrap makes the voters of a new cluster known; every one of them calls
// it with the same list, and may do so again at every start: an existing log
// is left alone. Nodes that are not among them must not call it.
func (s *Scheduler) Bootstrap(voters []Peer) error {
	var c raft.Configuration
	for _, v := range voters {
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(v.ID), Address: raft.ServerAddress(v.Addr)})
	}
	if err := s.raft.BootstrapCluster(c).Error(); err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		return fmt.Errorf("scheduler: bootstrap: %w", err)
	}
	return nil
}

// Run serves until ctx ends, then closes everything and returns nil. It
// returns only when all its goroutines, Config.Lead included, have ended.
//
// Expected errors: what the closing of the log yields.
func (s *Scheduler) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.serveConfirm(ctx) })
	s.lead(ctx)
	err := s.raft.Shutdown().Error()
	wg.Wait()
	s.futures.Wait()
	s.trans.CloseStreams()
	return errors.Join(err, s.trans.Close(), s.store.Close())
}

// lead runs Config.Lead and the care for voters whenever this node leads.
func (s *Scheduler) lead(ctx context.Context) {
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case <-ctx.Done():
			return
		case leader := <-s.raft.LeaderCh():
			stop()
			stop = func() {}
			if !leader {
				continue
			}
			sub, cancel := context.WithCancelCause(ctx)
			var wg sync.WaitGroup
			wg.Go(func() { s.leadTerm(sub) })
			stop = func() {
				cancel(errors.New("leadership lost"))
				wg.Wait()
			}
		}
	}
}

func (s *Scheduler) leadTerm(ctx context.Context) {
	if err := s.wait(ctx, s.raft.Barrier(s.cfg.ApplyTimeout)); err != nil {
		s.log.Warn().Err(err).Msg("leadership lost before it began")
		return
	}
	term := s.raft.CurrentTerm()
	if s.raft.State() != raft.Leader {
		return
	}
	s.log.Info().Uint64("term", term).Msg("this node leads")
	var wg sync.WaitGroup
	wg.Go(func() { s.keepVoters(ctx) })
	if s.cfg.Lead != nil {
		s.cfg.Lead(ctx, term)
	}
	wg.Wait()
	s.log.Info().Uint64("term", term).Msg("this node leads no more")
}

// Apply puts a command into the log and returns what followed from it, once it
// is applied here. AtMS is set to the wall clock unless given.
//
// Expected errors: *Refusal (Result is valid then), *ErrNotLeader,
// ErrUnknownOutcome.
func (s *Scheduler) Apply(ctx context.Context, c Command) (Result, error) {
	if c.AtMS == 0 {
		c.AtMS = time.Now().UnixMilli()
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return Result{}, fmt.Errorf("scheduler: apply: %w", err)
	}
	f := s.raft.Apply(raw, s.cfg.ApplyTimeout)
	if err := s.wait(ctx, f); err != nil {
		return Result{}, fmt.Errorf("scheduler: apply: %w", s.leaderError(err))
	}
	res, ok := f.Response().(Result)
	if !ok {
		return Result{}, fmt.Errorf("scheduler: apply: answer of type %T", f.Response())
	}
	if res.refusal != nil {
		return res, res.refusal
	}
	return res, nil
}

// leaderError turns raft's errors into those of this package.
func (s *Scheduler) leaderError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		addr, id := s.raft.LeaderWithID()
		if job.NodeID(id) == s.cfg.ID {
			return &ErrNotLeader{}
		}
		return &ErrNotLeader{Node: job.NodeID(id), Addr: string(addr)}
	}
	return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
}

// wait waits for a future, as long as ctx allows.
func (s *Scheduler) wait(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	s.futures.Go(func() { done <- f.Error() }) // ends when raft answers or shuts down
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// State returns the state as this node knows it: complete on the leader,
// possibly old elsewhere. It is shared and must not be written to.
func (s *Scheduler) State() *State { return s.fsm.state.Load() }

// Watch starts a watch of the updates after the call.
func (s *Scheduler) Watch() *Watcher { return s.fsm.hub.add() }

// Leadership is who leads, as far as this node knows.
type Leadership struct {
	Node job.NodeID // "" when not known
	Addr string     // its raft address
	Term uint64
	Self bool
}

// Leader returns who leads, as far as this node knows.
func (s *Scheduler) Leader() Leadership {
	addr, id := s.raft.LeaderWithID()
	return Leadership{Node: job.NodeID(id), Addr: string(addr), Term: s.raft.CurrentTerm(), Self: s.raft.State() == raft.Leader}
}

// Voters returns the voters of raft as this node knows them.
//
// Expected errors: the Scheduler was closed.
func (s *Scheduler) Voters() ([]Peer, error) { return s.voters() }

// StepDown hands leadership to another voter, for an orderly stop of this
// node.
//
// Expected errors: no other voter is up to date; this node does not lead.
func (s *Scheduler) StepDown(ctx context.Context) error {
	if err := s.wait(ctx, s.raft.LeadershipTransfer()); err != nil {
		return fmt.Errorf("scheduler: step down: %w", err)
	}
	return nil
}
