package pod

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/job"
)

// side is what an epoch holds besides processes, memory and connections: where
// the ranks' output and input stood, their PMI state, and who had ended. It
// travels in the image as one opaque field.
type side struct {
	Version int              `json:"version"`
	Epoch   job.Epoch        `json:"epoch"`
	PMI     json.RawMessage  `json:"pmi"`
	Outputs []outputState    `json:"outputs"`
	Stdin   *stdinState      `json:"stdin,omitempty"`
	Exits   []job.Exit       `json:"exits,omitempty"`
	PIDs    map[job.Rank]int `json:"pids"` // in the pod
}

// outputState is one output stream at an epoch. Tail are the bytes just before
// Offset, so that a reader who lost them with a node finds them in the rebuilt
// pod: what came since the epoch before, and minTail at least.
type outputState struct {
	Rank   job.Rank `json:"rank"`
	FD     int      `json:"fd"`
	Offset int64    `json:"offset"`
	Tail   []byte   `json:"tail,omitempty"`
}

const sideVersion = 1

// Bounds of the tail of one stream, in bytes. More than maxTail since the last
// epoch is kept only on the node that has it; of most programs, minTail is all
// that they ever write.
const (
	minTail = 1 << 20
	maxTail = 4 << 20
)

// at returns the offsets of all streams.
func (s *side) at() map[streamKey]int64 {
	out := make(map[streamKey]int64, len(s.Outputs))
	for _, o := range s.Outputs {
		out[streamKey{o.Rank, o.FD}] = o.Offset
	}
	return out
}

// counts is the same in the words of the image.
func (s *side) counts() []image.StdioCount {
	out := make([]image.StdioCount, 0, len(s.Outputs)+1)
	if s.Stdin != nil {
		out = append(out, image.StdioCount{Rank: s.Stdin.Rank, FD: 0, Bytes: s.Stdin.Consumed})
	}
	for _, o := range s.Outputs {
		out = append(out, image.StdioCount{Rank: o.Rank, FD: o.FD, Bytes: o.Offset})
	}
	return out
}

func (s *side) encode() ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode state of the pod: %w", err)
	}
	return b, nil
}

// decodeSide decodes what encode wrote.
func decodeSide(b []byte) (*side, error) {
	var s side
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("decode state of the pod: %w", err)
	}
	if s.Version != sideVersion {
		return nil, fmt.Errorf("decode state of the pod: version %d, want %d", s.Version, sideVersion)
	}
	return &s, nil
}

// capture takes the side of an epoch. Precondition: the ranks are frozen, PMI
// and stdin are paused.
func (s *supervisor) capture(e job.Epoch) (*side, error) {
	x := &side{Version: sideVersion, Epoch: e, PIDs: map[job.Rank]int{}}
	at, err := s.out.drain()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	for id, r := range s.ranks {
		x.PIDs[id] = r.inner
	}
	s.mu.Unlock()
	for _, k := range s.out.keys() {
		x.Outputs = append(x.Outputs, outputState{Rank: k.rank, FD: k.fd, Offset: at[k]})
	}
	if x.PMI, err = s.pmi.Export(); err != nil {
		return nil, err
	}
	if s.in != nil {
		st, err := s.in.state()
		if err != nil {
			return nil, err
		}
		st.Rank = s.spec.Spec.StdinRank
		x.Stdin = &st
	}
	for _, e := range s.exits.all() {
		x.Exits = append(x.Exits, e)
	}
	slices.SortFunc(x.Exits, func(a, b job.Exit) int { return int(a.Rank) - int(b.Rank) })
	return x, nil
}

// withTails returns x with the tails of its streams, for the image. The ranks
// run meanwhile: what precedes the epoch does not change.
func (s *supervisor) withTails(x *side) (*side, error) {
	s.mu.Lock()
	before := map[streamKey]int64{}
	if s.kept != nil {
		before = s.kept.at()
	}
	s.mu.Unlock()
	y := *x
	y.Outputs = slices.Clone(x.Outputs)
	for i := range y.Outputs {
		o := &y.Outputs[i]
		k := streamKey{o.Rank, o.FD}
		from := max(min(before[k], o.Offset-minTail), o.Offset-maxTail)
		var err error
		if _, o.Tail, err = s.out.tail(k, from, o.Offset); err != nil {
			return nil, err
		}
	}
	return &y, nil
}

// putBack sets output, input, PMI and exits to an epoch's. rebuilt says that
// this supervisor has not seen that epoch: the past of the streams is in x.
// Precondition: as for capture.
func (s *supervisor) putBack(x *side, rebuilt bool) error {
	if rebuilt {
		for _, o := range x.Outputs {
			if err := s.out.seed(streamKey{o.Rank, o.FD}, o.Offset-int64(len(o.Tail)), o.Tail); err != nil {
				return err
			}
		}
	} else if err := s.out.rewindTo(x.at()); err != nil {
		return err
	}
	s.out.cover(x.at())
	if err := s.pmi.Import(x.PMI); err != nil {
		return err
	}
	s.shield.again()
	if s.in != nil && x.Stdin != nil {
		if err := s.in.restore(*x.Stdin); err != nil {
			return err
		}
	}
	exits := map[job.Rank]job.Exit{}
	for _, e := range x.Exits {
		exits[e.Rank] = e
		if err := s.out.ended(e.Rank); err != nil {
			return err
		}
	}
	return s.exits.reset(exits)
}
