package lamd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/membership"
	"github.com/lampause/lampause/scheduler"
	"github.com/lampause/lampause/scheduler/conduct"
)

// joinCluster tells the log of this node, again whenever the log does not have
// it as it is, until ctx ends.
//
// Expected errors: *staleBoot.
func (d *Daemon) joinCluster(ctx context.Context) error {
	role := scheduler.Compute
	if d.cfg.Spare {
		role = scheduler.Spare
	}
	last, err := lastStored(d.cfg.imagesDir())
	if err != nil {
		return err
	}
	join := scheduler.Command{Join: &scheduler.Join{
		LastJob: last, Node: d.cfg.Node, Addr: d.cfg.Addr.String(), Boot: d.cfg.Boot, Session: d.cfg.Session, Role: role, Slots: d.cfg.Slots,
	}}
	for ctx.Err() == nil {
		if d.leaving.Load() {
			pause(ctx, retryPause)
			continue
		}
		call, cancel := context.WithTimeout(ctx, statusTimeout)
		_, err := d.agent.toLeader(call, "/v1/join", join, nil)
		cancel()
		var refused *control.Error
		if errors.As(err, &refused) && refused.Status == http.StatusPreconditionFailed {
			boot, perr := strconv.ParseUint(refused.Message, 10, 64)
			if perr != nil {
				return fmt.Errorf("join: %w", err)
			}
			return &staleBoot{boot: job.Boot(boot)}
		}
		wait := retryPause
		if err == nil {
			wait = joinAgain
		}
		pause(ctx, wait)
	}
	return ctx.Err()
}

// lastStored returns the highest job number in an image store.
func lastStored(dir string) (job.ID, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("image store: %w", err)
	}
	var last job.ID
	for _, e := range entries {
		if id, err := job.ParseID(e.Name()); err == nil {
			last = max(last, id)
		}
	}
	return last, nil
}

// joinAgain is how often a node makes sure that the log has it.
const joinAgain = 2 * time.Second

// watchMembers passes what gossip says on to the conductor.
func (d *Daemon) watchMembers(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-d.members.Events():
			if !ok {
				return ctx.Err()
			}
			d.noteMember(e)
		}
	}
}

func (d *Daemon) noteMember(e membership.Event) {
	d.log.Info().Str("kind", string(e.Kind)).Str("member", string(e.Node)).Uint64("member_boot", uint64(e.Boot)).
		Str("source", string(e.Source)).Dur("doubt_ms", e.Doubt).Msg("member")
	if e.Kind == membership.Alive && e.Meta.Addr.IsValid() {
		d.mu.Lock()
		d.addrs[e.Node] = e.Meta.Addr
		d.mu.Unlock()
	}
	if l := d.lead(); l != nil {
		if ev := memberEvent(e); ev != nil {
			l.event(ev)
		}
	}
}

// memberEvent translates a change of membership for the conductor.
func memberEvent(e membership.Event) conduct.Event {
	ref := scheduler.NodeRef{Node: e.Node, Boot: e.Boot}
	age := float64(e.Doubt) / float64(time.Millisecond)
	switch e.Kind {
	case membership.Alive:
		return conduct.Cleared{Node: ref}
	case membership.Suspect:
		return conduct.Suspect{Node: ref, Source: string(e.Source), AgeMS: age}
	case membership.Left:
		// One that left in order is no part of the log any more, and nothing
		// follows from this.
		return conduct.Evidence{Node: ref, Source: string(e.Source)}
	case membership.Dead:
		return conduct.Evidence{Node: ref, Source: string(e.Source), AgeMS: age, Certain: e.Source == membership.SourceBoot}
	}
	return nil
}

// leadTerm runs the conductor of one term, until ctx ends.
func (d *Daemon) leadTerm(ctx context.Context, term uint64) {
	act := &actor{peers: d.peers, propose: d.applyHere, state: d.sched.State, fan: d.fan}
	l := newLead(term, act, func(dr conduct.Drop) {
		if err := act.drop(ctx, dr); err != nil && ctx.Err() == nil {
			d.log.Debug().Err(err).Msg("images not dropped; swept later")
		}
	}, component(d.log, "conductor"))
	d.mu.Lock()
	d.leading = l
	d.mu.Unlock()
	for _, m := range d.members.Members() { // what was said before this term
		if m.State != membership.Alive {
			e := membership.Event{Kind: m.State, Node: m.Node, Boot: m.Boot, Source: m.Source, Doubt: time.Since(m.Accused)}
			if ev := memberEvent(e); ev != nil {
				l.event(ev)
			}
		}
	}
	var watcher sync.WaitGroup
	defer watcher.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watcher.Go(func() { d.watchRoll(ctx, &l.roll) })
	l.run(ctx, conduct.Config{Pair: stream.Pair, SetDigest: image.SetDigest, Lease: leaseTTL, LeaseMargin: leaseMargin}, d.sched.State, d.news.after)
	d.mu.Lock()
	d.leading = nil
	d.mu.Unlock()
}
