package pmi

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lampause/lampause/job"
)

// Phase is how far a rank is, as PMI sees it.
type Phase string

// The phases of a rank, in order.
const (
	Before    Phase = "before"    // has not spoken: not (yet) an MPI program
	InMPI     Phase = "in-mpi"    // between init and finalize
	Finalized Phase = "finalized" // has sent finalize
	Aborted   Phase = "aborted"   // has sent abort
)

// RankState is what the server knows of one rank.
type RankState struct {
	Phase   Phase `json:"phase"`
	Arrived int   `json:"arrived"` // barriers entered; > State.Done means waiting
	Puts    int   `json:"puts"`    // since its last barrier
	EverPut bool  `json:"ever_put"`
	EverGot bool  `json:"ever_got"`
	App     int   `json:"app,omitempty"`   // number of its program, MPI_APPNUM
	Spawn   bool  `json:"spawn,omitempty"` // inside a multi-line spawn command
	Gone    bool  `json:"gone,omitempty"`  // the process has ended
	// Since is when the rank began to wait at its barrier, on the driver's
	// clock. It is not part of a checkpoint: times start anew.
	Since time.Duration `json:"-"`
}

// State is the whole state of a pod's PMI server. It is a value: Step returns
// a new one and leaves its argument alone.
type State struct {
	Job     string                  `json:"job"` // kvsname
	Size    int                     `json:"size"`
	Mapping string                  `json:"mapping"`
	Ranks   map[job.Rank]*RankState `json:"ranks"`
	KVS     map[string]string       `json:"kvs"`     // union of the completed fences
	Own     map[string]string       `json:"own"`     // puts since the last fence, of this pod
	History []map[string]string     `json:"history"` // this pod's puts of each completed fence; index = number - 1
	Done    int                     `json:"done"`    // completed fences
	Posted  int                     `json:"-"`       // newest fence handed to the Fencer as an arrival
	Asked   int                     `json:"-"`       // newest fence only asked for
	Stuck   int                     `json:"-"`       // looks in a row that found unread bytes
}

// NewState returns the state before any rank has spoken.
func NewState(kvsname, mapping string, size int, local []job.Rank) State {
	s := State{
		Job: kvsname, Size: size, Mapping: mapping,
		Ranks: map[job.Rank]*RankState{}, KVS: map[string]string{}, Own: map[string]string{},
	}
	for _, r := range local {
		s.Ranks[r] = &RankState{Phase: Before}
	}
	return s
}

// clone copies s so that Step may change the copy. The key-value maps are
// shared: whoever changes one makes a copy first, since most steps (every rank
// gets a key of every other) only read them.
func (s State) clone() State {
	ranks := make(map[job.Rank]*RankState, len(s.Ranks))
	for r, st := range s.Ranks {
		c := *st
		ranks[r] = &c
	}
	s.Ranks = ranks
	s.History = slices.Clip(s.History)
	return s
}

// fences lists every fence at which this pod has arrived, oldest first.
func (s State) fences() []Fence {
	out := make([]Fence, 0, len(s.History)+1)
	for i, puts := range s.History {
		out = append(out, Fence{Seq: i + 1, Puts: puts})
	}
	if s.full() {
		out = append(out, Fence{Seq: s.Done + 1, Puts: maps.Clone(s.Own)})
	}
	return out
}

// waiting lists the ranks inside a barrier that is not complete, ascending.
func (s State) waiting() []job.Rank {
	var out []job.Rank
	for r, st := range s.Ranks {
		if st.Arrived > s.Done && !st.Gone {
			out = append(out, r)
		}
	}
	slices.Sort(out)
	return out
}

// full reports whether no local rank is missing at the fence after Done. Ranks
// that finalized or ended are not waited for, but one must have arrived.
func (s State) full() bool {
	some := false
	for _, st := range s.Ranks {
		switch {
		case st.Arrived > s.Done:
			some = true
		case st.Gone || st.Phase == Finalized:
		default:
			return false
		}
	}
	return some
}

// finalizing reports whether the open fence looks like the one of MPI_Finalize
// to every rank that waits at it (package comment, rule 1).
func (s State) finalizing() bool {
	w := s.waiting()
	for _, r := range w {
		st := s.Ranks[r]
		if !st.EverPut && !st.EverGot || st.Puts > 0 || s.Done == 0 {
			return false
		}
		if s.Size > 1 && !st.EverGot {
			return false
		}
	}
	return len(w) > 0
}

// blob is the exported form: the state, and per rank the bytes in flight.
type blob struct {
	Version int                   `json:"version"`
	State   State                 `json:"state"`
	Pipes   map[job.Rank]inFlight `json:"pipes"`
}

// inFlight are the unread bytes of one rank's socketpair.
type inFlight struct {
	FromRank []byte `json:"from_rank,omitempty"` // sent by the rank, not yet taken as a line
	ToRank   []byte `json:"to_rank,omitempty"`   // written by the server, not yet read by the rank
}

const blobVersion = 1

// maxBlob bounds an imported blob, in bytes.
const maxBlob = 64 << 20

func decodeBlob(b []byte) (blob, error) {
	var x blob
	if len(b) > maxBlob {
		return x, fmt.Errorf("pmi: state of %d bytes is too large", len(b))
	}
	if err := json.Unmarshal(b, &x); err != nil {
		return x, fmt.Errorf("pmi: decode state: %w", err)
	}
	if x.Version != blobVersion {
		return x, fmt.Errorf("pmi: state has version %d, want %d", x.Version, blobVersion)
	}
	if x.State.KVS == nil || x.State.Ranks == nil {
		return x, fmt.Errorf("pmi: decode state: fields are missing")
	}
	if x.State.Own == nil {
		x.State.Own = map[string]string{}
	}
	if len(x.State.History) != x.State.Done {
		return x, fmt.Errorf("pmi: decode state: %d fences, %d of them known", x.State.Done, len(x.State.History))
	}
	for r, st := range x.State.Ranks {
		if st == nil {
			return x, fmt.Errorf("pmi: decode state: rank %d is empty", r)
		}
	}
	return x, nil
}
