package job

import (
	"fmt"
	"time"
)

// Policy words of a Spec.
const (
	OnFailurePause   = "pause"   // roll back in place, restart the lost ranks on spares
	OnFailureRestart = "restart" // restart the whole job from the last epoch
	OnFailureAbort   = "abort"   // end the job

	NoSpareWait  = "wait"  // stay frozen until a spare arrives
	NoSpareShare = "share" // put lost ranks beside others
	NoSpareAbort = "abort" // end the job with ExitCheckpoint

	MapByBlock = "block" // fill a node before the next
	MapByNode  = "node"  // deal the ranks round the nodes

	OutputLive      = "live"      // forward at once
	OutputCommitted = "committed" // forward with the epoch that covers it
)

// HostSlots asks for at most Slots ranks on Node; Spare keeps it free of ranks
// until one is lost. Slots 0 means "as many as the node has cores".
type HostSlots struct {
	Node  NodeID `json:"node"`
	Slots int    `json:"slots"`
	Spare bool   `json:"spare,omitempty"`
}

// Spec is what mpirun asks for. It is data only: uid and gid are set by the
// lamd that received it from the peer credentials of the socket, never by the
// client.
type Spec struct {
	Name string   `json:"name"` // base name of Argv[0] unless given
	Argv []string `json:"argv"` // Argv[0] is an absolute path
	Env  []string `json:"env"`  // KEY=value, complete
	Dir  string   `json:"dir"`  // working directory, absolute
	UID  uint32   `json:"uid"`
	GID  uint32   `json:"gid"`

	// More are the programs of the last ranks when a job has several (MPMD);
	// the first ranks, those that are left, run Argv.
	More []Program `json:"more,omitempty"`

	Ranks  int         `json:"ranks"`            // >= 1, of all programs
	PPN    int         `json:"ppn,omitempty"`    // ranks per node, 0 = fill slots
	MapBy  string      `json:"map_by"`           // MapBy*
	Hosts  []HostSlots `json:"hosts,omitempty"`  // empty = every compute node
	Spares int         `json:"spares,omitempty"` // spares wanted, 0 = what the pool has

	CkptInterval time.Duration `json:"ckpt_interval_ns"`  // 0 = off
	OnFailure    string        `json:"on_failure"`        // OnFailure*
	NoSpare      string        `json:"no_spare"`          // NoSpare*
	Replicas     int           `json:"replicas"`          // K >= 1, default 2
	Files        string        `json:"files"`             // truncate|seek|verify|save
	Backing      string        `json:"backing,omitempty"` // auto|copy|fork, empty = auto: when a checkpoint copies memory
	Output       string        `json:"output"`            // Output*
	CrashRetries int           `json:"crash_retries"`
	Preflight    bool          `json:"preflight,omitempty"`
	StdinRank    Rank          `json:"stdin_rank,omitempty"` // the rank that reads the standard input
}

// Program is what some ranks of a job run. The fields are those of Spec.
type Program struct {
	Ranks int      `json:"ranks"` // >= 1
	Argv  []string `json:"argv"`
	Env   []string `json:"env"`
	Dir   string   `json:"dir"`
}

// Program returns what rank r runs, and the number of that program from 0,
// which MPI calls its MPI_APPNUM.
func (s *Spec) Program(r Rank) (p Program, number int) {
	all := s.Programs()
	next := 0
	for i, p := range all {
		if next += p.Ranks; int(r) < next {
			return p, i
		}
	}
	return all[0], 0
}

// Programs returns all programs of the job, in the order of their ranks.
func (s *Spec) Programs() []Program {
	first := Program{Ranks: s.Ranks, Argv: s.Argv, Env: s.Env, Dir: s.Dir}
	for _, m := range s.More {
		first.Ranks -= m.Ranks
	}
	return append([]Program{first}, s.More...)
}

// Validate reports the first thing wrong with s.
//
// Expected errors: one that names the field and its value.
func (s *Spec) Validate() error {
	for _, p := range s.Programs() {
		if err := p.validate(); err != nil {
			return err
		}
	}
	switch {
	case s.Ranks < 1 || s.Ranks > MaxRanks:
		return fmt.Errorf("number of ranks %d: not in 1..%d", s.Ranks, MaxRanks)
	case s.PPN < 0:
		return fmt.Errorf("ranks per node %d: negative", s.PPN)
	case s.Replicas < 1 || s.Replicas > 8:
		return fmt.Errorf("replicas %d: not in 1..8", s.Replicas)
	case s.CkptInterval < 0:
		return fmt.Errorf("checkpoint interval %v: negative", s.CkptInterval)
	case s.StdinRank < 0 || int(s.StdinRank) >= s.Ranks:
		return fmt.Errorf("rank %d for the standard input: not in 0..%d", s.StdinRank, s.Ranks-1)
	case s.CrashRetries < 0:
		return fmt.Errorf("crash retries %d: negative", s.CrashRetries)
	}
	for _, w := range []struct {
		name, got string
		want      []string
	}{
		{"map-by", s.MapBy, []string{MapByBlock, MapByNode}},
		{"on-failure", s.OnFailure, []string{OnFailurePause, OnFailureRestart, OnFailureAbort}},
		{"no-spare", s.NoSpare, []string{NoSpareWait, NoSpareShare, NoSpareAbort}},
		{"output", s.Output, []string{OutputLive, OutputCommitted}},
		{"files", s.Files, []string{"truncate", "seek", "verify", "save"}},
		{"backing", s.Backing, []string{"", "auto", "copy", "fork"}},
	} {
		if !oneOf(w.got, w.want) {
			return fmt.Errorf("%s %q: not one of %v", w.name, w.got, w.want)
		}
	}
	return nil
}

func (p *Program) validate() error {
	switch {
	case len(p.Argv) == 0 || p.Argv[0] == "":
		return fmt.Errorf("no program given")
	case p.Argv[0][0] != '/':
		return fmt.Errorf("program %q: not an absolute path", p.Argv[0])
	case p.Dir == "" || p.Dir[0] != '/':
		return fmt.Errorf("working directory %q: not an absolute path", p.Dir)
	case p.Ranks < 1 || p.Ranks > MaxRanks:
		return fmt.Errorf("number of ranks %d of %s: not in 1..%d", p.Ranks, p.Argv[0], MaxRanks)
	}
	return nil
}

// MaxRanks bounds a job. The control plane is built for 1,000 nodes.
const MaxRanks = 1 << 16

func oneOf(s string, words []string) bool {
	for _, w := range words {
		if s == w {
			return true
		}
	}
	return false
}
