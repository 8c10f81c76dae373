package lamd

import (
	"context"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// sweepEvery is how often a node looks for images that the log does not count
// on any more. The leader has them dropped at once where it can; this is for
// nodes that were dead or deaf then.
const sweepEvery = 30 * time.Second

// sweeper deletes such images. Its fields are set once.
type sweeper struct {
	node  *nodeAPI
	state func() *scheduler.State
	log   zerolog.Logger
}

// run sweeps until ctx ends.
func (s *sweeper) run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		s.sweep(ctx)
	}
}

// sweep looks once.
func (s *sweeper) sweep(ctx context.Context) {
	jobs, err := s.node.store.Jobs()
	if err != nil {
		s.log.Warn().Err(err).Msg("images not swept")
		return
	}
	for _, id := range jobs {
		have, err := s.stored(id)
		if err != nil {
			s.log.Warn().Err(err).Uint64("job", uint64(id)).Msg("images not swept")
			continue
		}
		// The state is read after the directory: what is in it was there before.
		for _, e := range forgotten(s.state(), id, have) {
			s.log.Info().Uint64("job", uint64(id)).Uint64("epoch", uint64(e)).Msg("images that nothing counts on are deleted")
			if err := s.node.drop(ctx, dropRequest{Job: id, Epoch: e}); err != nil {
				s.log.Warn().Err(err).Uint64("job", uint64(id)).Msg("images not swept")
			}
		}
	}
}

// stored lists the epochs of which something is stored here.
func (s *sweeper) stored(id job.ID) ([]job.Epoch, error) {
	dir, err := s.node.store.Job(id)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	infos, err := dir.Epochs()
	if err != nil {
		return nil, err
	}
	out := make([]job.Epoch, len(infos))
	for i, e := range infos {
		out[i] = e.Epoch
	}
	return out, nil
}

// forgotten returns which of the stored epochs of a job are of no use to
// anybody, the whole job as epoch 0. The state may be an old one: it is the
// replica of a node that hears little. So nothing is deleted that a newer state
// may count on. Jobs that the log does not know are those of earlier clusters,
// which a restart can bring back. An epoch of the log stays also where the log
// knows of no copy: one may just have been made.
func forgotten(st *scheduler.State, id job.ID, have []job.Epoch) []job.Epoch {
	if st == nil {
		return nil
	}
	j := st.Jobs[id]
	switch {
	case j == nil:
		return nil
	case j.Retired && !j.KeepImages:
		return []job.Epoch{0}
	case j.State.Final() && !j.Retired:
		return nil // its end sees to it
	}
	return slices.DeleteFunc(slices.Clone(have), func(e job.Epoch) bool {
		return e > j.LastEpoch || j.Find(e) != nil || j.Open != nil && j.Open.Epoch == e
	})
}
