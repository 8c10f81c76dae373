package scheduler

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lampause/lampause/job"
)

// Peer is a voter of raft.
type Peer struct {
	ID   job.NodeID
	Addr string // "IP:7947"
}

// Change is one step towards the right set of voters.
type Change struct {
	Add    *Peer
	Remove job.NodeID // "" when Add is set
}

// InitialVoters chooses the voters of a new cluster from its nodes, in order:
// five when there are five or more, three when there are three or four, else
// the first alone. The whole cluster must be given the same list.
func InitialVoters(nodes []Peer) []Peer {
	return nodes[:min(len(nodes), wantVoters(len(nodes)))]
}

func wantVoters(alive int) int {
	switch {
	case alive >= 5:
		return 5
	case alive >= 3:
		return 3
	}
	return 1
}

// NextChange returns what should be done next about the voters, nil when
// nothing should. A dead voter is removed when somebody can replace it, or
// when there are more voters than so many nodes want: three living voters of
// five bear no further loss, three of three do. No step needs more living
// voters for a majority than the one before. Otherwise a dead voter is kept,
// for it may return.
func NextChange(s *State, voters []Peer) *Change {
	alive := s.AliveNodes()
	var candidates []Node
	for _, n := range alive {
		i := slices.IndexFunc(voters, func(v Peer) bool { return v.ID == n.ID })
		switch {
		case i < 0:
			candidates = append(candidates, n)
		case voters[i].Addr != NodeAddress(n):
			return &Change{Add: &Peer{ID: n.ID, Addr: NodeAddress(n)}}
		}
	}
	want := wantVoters(len(alive))
	for _, v := range voters {
		n, known := s.Nodes[v.ID]
		if known && n.State == Left && len(voters) > 1 || known && n.State == Dead && (len(candidates) > 0 || len(voters) > max(3, want)) {
			return &Change{Remove: v.ID}
		}
	}
	if len(voters) < want && len(candidates) > 0 {
		return &Change{Add: &Peer{ID: candidates[0].ID, Addr: NodeAddress(candidates[0])}}
	}
	return nil
}

// voters returns the voters that raft has.
func (s *Scheduler) voters() ([]Peer, error) {
	f := s.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, fmt.Errorf("scheduler: read configuration: %w", err)
	}
	var out []Peer
	for _, sv := range f.Configuration().Servers {
		if sv.Suffrage == raft.Voter {
			out = append(out, Peer{ID: job.NodeID(sv.ID), Addr: string(sv.Address)})
		}
	}
	return out, nil
}

// keepVoters replaces dead voters while this node leads. It returns when ctx
// ends.
func (s *Scheduler) keepVoters(ctx context.Context) {
	tick := time.NewTicker(s.cfg.VoterInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		voters, err := s.voters()
		if err != nil {
			s.log.Warn().Err(err).Msg("voters not known")
			continue
		}
		c := NextChange(s.State(), voters)
		if c == nil {
			continue
		}
		if err := s.changeVoters(ctx, c); err != nil {
			s.log.Warn().Err(err).Msg("voters not changed")
		}
	}
}

func (s *Scheduler) changeVoters(ctx context.Context, c *Change) error {
	var f raft.IndexFuture
	if c.Add != nil {
		s.log.Info().Str("node", string(c.Add.ID)).Str("addr", c.Add.Addr).Msg("voter added")
		f = s.raft.AddVoter(raft.ServerID(c.Add.ID), raft.ServerAddress(c.Add.Addr), 0, s.cfg.ApplyTimeout)
	} else {
		s.log.Info().Str("node", string(c.Remove)).Msg("voter removed")
		f = s.raft.RemoveServer(raft.ServerID(c.Remove), 0, s.cfg.ApplyTimeout)
	}
	if err := s.wait(ctx, f); err != nil {
		return fmt.Errorf("scheduler: change voters: %w", err)
	}
	return nil
}
