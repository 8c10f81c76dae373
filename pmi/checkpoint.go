package pmi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/lampause/lampause/job"
)

// Pause stops the server: from its return until Resume nothing is read from or
// written to a rank, and no fence is counted. Pausing twice is one pause.
func (s *Server) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = true
}

// Resume lets a paused server go on. After an Import it first posts again what
// the imported state had open.
func (s *Server) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.paused {
		return
	}
	s.paused = false
	if s.imported {
		s.imported = false
		s.step(OnRestore{Now: s.now()})
	}
	for _, r := range s.locals() {
		s.consume(s.conns[r])
	}
	for _, r := range s.gone {
		s.step(OnGone{Rank: r})
	}
	s.gone = nil
	s.resumed.Broadcast()
}

// Export returns the state of the server and of the ranks' socketpairs, as
// bytes for the pod's image; Import takes them.
// Precondition: the server is paused and every living rank is frozen.
//
// Expected errors: a failure of a socketpair; the server is as it was then.
func (s *Server) Export() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.paused {
		return nil, fmt.Errorf("pmi: export: the server is not paused")
	}
	b := blob{Version: blobVersion, State: s.state, Pipes: map[job.Rank]inFlight{}}
	for _, r := range s.locals() {
		c := s.conns[r]
		unread, err := c.drain()
		if len(unread) > 0 {
			if perr := c.reply(string(unread)); perr != nil {
				return nil, fmt.Errorf("pmi: export: rank %d: put back: %w", r, perr)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("pmi: export: rank %d: %w", r, err)
		}
		b.Pipes[r] = inFlight{FromRank: slices.Clone(c.in), ToRank: unread}
	}
	out, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("pmi: export: %w", err)
	}
	return out, nil
}

// Import sets the server and the socketpairs back to an exported state: bytes
// in flight are discarded, those of the epoch put in their place, outstanding
// fences are forgotten. Size, mapping and name stay those of this server.
// Precondition: as for Export.
//
// Expected errors: a malformed blob, one of other ranks (nothing is changed),
// or a failure of a socketpair (the ranks of this pod are lost).
func (s *Server) Import(data []byte) error {
	b, err := decodeBlob(data)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.paused {
		return fmt.Errorf("pmi: import: the server is not paused")
	}
	if len(b.State.Ranks) != len(s.conns) {
		return fmt.Errorf("pmi: import: state of %d ranks, the pod has %d", len(b.State.Ranks), len(s.conns))
	}
	for r := range s.conns {
		if b.State.Ranks[r] == nil {
			return fmt.Errorf("pmi: import: no state of rank %d", r)
		}
	}
	s.endFences()
	s.fences, s.endFences = context.WithCancel(context.Background())
	b.State.Size, b.State.Mapping, b.State.Job = s.state.Size, s.state.Mapping, s.state.Job
	s.state, s.imported, s.gone = b.State, true, nil
	for _, r := range s.locals() {
		c := s.conns[r]
		if _, err := c.drain(); err != nil {
			return fmt.Errorf("pmi: import: rank %d: %w", r, err)
		}
		c.in, c.broken = slices.Clone(b.Pipes[r].FromRank), false
		if err := c.reply(string(b.Pipes[r].ToRank)); err != nil {
			return fmt.Errorf("pmi: import: rank %d: put back: %w", r, err)
		}
	}
	return nil
}
