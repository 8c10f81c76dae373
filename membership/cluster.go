package membership

import (
	"context"
	"fmt"
	"log"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
)

// Cluster is this node's view of the members. Its methods are safe for
// concurrent use.
type Cluster struct {
	cfg    Config
	log    zerolog.Logger
	start  time.Time // monotonic origin of the table's clock
	box    *mailbox
	events chan Event
	leave  chan chan error
	done   chan struct{} // closed when Run has returned
	once   atomic.Bool   // Run was called
	list   atomic.Pointer[[]Member]
}

// New checks cfg and returns a Cluster that does nothing before Run.
//
// Expected errors: one that names the field of cfg.
func New(cfg Config) (*Cluster, error) {
	if err := cfg.normalise(); err != nil {
		return nil, err
	}
	c := &Cluster{
		cfg:    cfg,
		log:    cfg.Log.With().Str("component", "membership").Logger(),
		start:  time.Now(),
		box:    newMailbox(),
		events: make(chan Event),
		leave:  make(chan chan error),
		done:   make(chan struct{}),
	}
	c.list.Store(&[]Member{})
	return c, nil
}

// Events delivers the changes, this node's own Alive first. A slow reader loses
// nothing and delays nobody. The channel is closed when Run returns.
func (c *Cluster) Events() <-chan Event { return c.events }

// Members lists all known members by name, dead ones included, this node too.
// The slice belongs to the caller's eyes only: do not change it.
func (c *Cluster) Members() []Member { return *c.list.Load() }

// Report brings evidence about a member. It returns at once; what becomes of it
// is seen in Events. Evidence about unknown members is ignored.
func (c *Cluster) Report(e Evidence) {
	c.log.Debug().Str("node", string(e.Node)).Uint64("boot", uint64(e.Boot)).
		Str("source", string(e.Source)).Str("detail", e.Detail).Msg("evidence")
	c.box.put(func(t *table) { t.report(c.now(), e) })
}

// Leave says good-bye to the others: they see Left instead of a death. Run then
// returns nil.
//
// Expected errors: ctx's, when it ends first; one that says that Run does not
// run; memberlist's when the good-bye could not be sent.
func (c *Cluster) Leave(ctx context.Context) error {
	reply := make(chan error, 1)
	select {
	case c.leave <- reply:
	case <-c.done:
		return fmt.Errorf("membership: leave: not running")
	case <-ctx.Done():
		return fmt.Errorf("membership: leave: %w", context.Cause(ctx))
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return fmt.Errorf("membership: leave: %w", context.Cause(ctx))
	}
}

// now is the table's clock: monotonic, and never 0.
func (c *Cluster) now() time.Duration { return time.Since(c.start) + 1 }

// Run takes part in the cluster until ctx ends or Leave was called. It returns
// when all goroutines of this package have ended. A Cluster runs once.
//
// Expected errors: bind errors; nil when ctx ended or after Leave.
func (c *Cluster) Run(ctx context.Context) error {
	if !c.once.CompareAndSwap(false, true) {
		return fmt.Errorf("membership: run: ran already")
	}
	defer close(c.done)
	defer close(c.events)
	ctx, stop := context.WithCancel(ctx)
	defer stop()

	logger := log.New(logWriter{c.log}, "", 0)
	tr, err := newWatched(ctx, &c.cfg, logger, c.dialFailed)
	if err != nil {
		return err
	}
	d := newDelegate(c)
	mc := c.cfg.gossipConfig()
	mc.Transport, mc.Logger = tr, logger
	mc.Delegate, mc.Events, mc.Ping, mc.Alive, mc.Conflict = d, d, d, d, d
	ml, err := memberlist.Create(mc)
	if err != nil {
		_ = tr.Shutdown() // closes what newWatched opened; its error is always nil
		return fmt.Errorf("membership: start gossip of %s: %w", mc.Name, err)
	}

	r := &runner{c: c, ml: ml, tr: tr, d: d, table: newTable(c.cfg.Node, c.cfg.Tuning), joins: make(chan target, 64)}
	g, gctx := errgroup.WithContext(ctx)
	r.group = g
	g.Go(func() error { return r.join(gctx) })
	g.Go(func() error {
		defer stop() // Leave ends Run
		return r.loop(gctx)
	})
	err = g.Wait()
	if serr := ml.Shutdown(); serr != nil && err == nil {
		err = fmt.Errorf("membership: shutdown: %w", serr)
	}
	return err
}

// dialFailed is called by the transport.
func (c *Cluster) dialFailed(name string) {
	node, boot, err := parseName(name)
	if err != nil {
		return // a seed without a name
	}
	c.box.put(func(t *table) { t.unreachable(c.now(), node, boot) })
}
