package membership

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
)

// runner drives the table: it owns what lives between Run's start and return.
type runner struct {
	c     *Cluster
	ml    *memberlist.Memberlist
	tr    *watched
	d     *delegate
	table *table
	group *errgroup.Group
	joins chan target // members to exchange state with
}

// seedRetry is the pause between attempts to find the first member.
const seedRetry = 250 * time.Millisecond

// maxJoins bounds the exchanges of state at a time.
const maxJoins = 8

// leaveTimeout bounds each half of a good-bye: the changed meta, and the word.
const leaveTimeout = 500 * time.Millisecond

// loop is the only goroutine that touches the table. It ends with ctx or after
// a good-bye.
func (r *runner) loop(ctx context.Context) error {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	var out []Event
	for {
		var head Event
		var to chan<- Event
		if len(out) > 0 {
			head, to = out[0], r.c.events
		}
		select {
		case <-ctx.Done():
			return nil
		case reply := <-r.c.leave:
			reply <- r.goodbye()
			return nil
		case to <- head:
			out = out[1:]
			continue
		case <-r.c.box.ready:
			r.drainBox()
			if now := r.c.now(); r.table.late(now) {
				r.table.tick(now)
			}
		case <-tick.C:
			r.drainBox()
			r.table.tick(r.c.now())
		}
		out = append(out, r.act(ctx)...)
	}
}

// drainBox weighs all waiting inputs.
func (r *runner) drainBox() {
	for _, f := range r.c.box.take() {
		f(r.table)
	}
}

// act carries out what the table asks for and returns its events.
func (r *runner) act(ctx context.Context) []Event {
	out := r.table.drain(r.c.now())
	for _, g := range out.probes {
		r.group.Go(func() error {
			r.probe(ctx, g)
			return nil
		})
	}
	for _, g := range out.rejoin {
		select {
		case r.joins <- g:
		default: // the table asks again
		}
	}
	for _, e := range out.events {
		r.log(e)
	}
	if len(out.events) > 0 {
		list := r.table.members(r.c.start)
		r.c.list.Store(&list)
	}
	for _, w := range out.words {
		r.d.queue.QueueBroadcast(w)
	}
	return out.events
}

// probe asks one member in both ways and reports the better outcome. An outcome
// that came much later than it should tells of this process, not of the member.
func (r *runner) probe(ctx context.Context, g target) {
	limit := r.c.cfg.Tuning.DialTimeout
	start := r.c.now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	knocked := make(chan reach, 1)
	r.group.Go(func() error {
		knocked <- r.tr.knock(ctx, memberlist.Address{Addr: g.addr.String(), Name: gossipName(g.node, g.boot)})
		return nil
	})
	outcome := reachAck
	if err := ping(r.ml, g); err != nil {
		outcome = <-knocked
		if outcome == reachNone && r.c.now()-start > 3*limit/2 {
			outcome = reachUnknown
		}
	}
	r.c.box.put(func(t *table) { t.probed(r.c.now(), g, outcome) })
}

// join exchanges state with a seed until one answers, then with the members
// that the table names: dead ones that may be back, and living ones that do not
// know that they are held dead.
func (r *runner) join(ctx context.Context) error {
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case g := <-r.joins:
			// Failure is expected: the member is most likely really dead.
			_, _ = r.ml.Join([]string{g.addr.String()})
		case <-retry.C:
			if !r.joinSeeds() {
				retry.Reset(seedRetry)
			}
		}
	}
}

// joinSeeds exchanges state with all seeds at once and reports whether no further
// attempt is needed: one answered, or there is nobody to ask. All are asked,
// since of any two nodes the later one to start must find the earlier one.
func (r *runner) joinSeeds() bool {
	if r.c.cfg.Seeds == nil {
		return true
	}
	var addrs []string
	for _, a := range r.c.cfg.Seeds() {
		if a = withPort(a, r.c.cfg.Port); a != r.c.cfg.selfAddr() {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		return true
	}
	var answered atomic.Int32
	var g errgroup.Group
	g.SetLimit(maxJoins)
	for _, a := range addrs {
		g.Go(func() error {
			if n, err := r.ml.Join([]string{a}); err != nil {
				r.c.log.Debug().Err(err).Str("seed", a).Msg("seed does not answer")
			} else {
				answered.Add(int32(n))
			}
			return nil // a seed that is down is no fault
		})
	}
	_ = g.Wait() // the functions return nil
	return answered.Load() > 0
}

// goodbye tells the others that we leave on purpose. memberlist does not tell
// its users whether a member left or died, so the meta says it first.
func (r *runner) goodbye() error {
	r.d.leaving.Store(true)
	if err := r.ml.UpdateNode(leaveTimeout); err != nil {
		return fmt.Errorf("membership: leave: %w", err)
	}
	if err := r.ml.Leave(leaveTimeout); err != nil {
		return fmt.Errorf("membership: leave: %w", err)
	}
	return nil
}

// log writes an event.
func (r *runner) log(e Event) {
	level := zerolog.InfoLevel
	if e.Kind == Suspect {
		level = zerolog.DebugLevel
	}
	r.c.log.WithLevel(level).Str("event", string(e.Kind)).Str("node", string(e.Node)).
		Uint64("boot", uint64(e.Boot)).Uint64("session", e.Session).Str("source", string(e.Source)).
		Int64("doubt_ms", e.Doubt.Milliseconds()).Msg("member")
}
