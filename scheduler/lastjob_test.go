package scheduler

import (
	"testing"

	"github.com/lampause/lampause/job"
)

// A fresh log over old images: new jobs get numbers above those of the images,
// or the images of an old job would become another one's.
func TestJobNumbersStayAboveStoredImages(t *testing.T) {
	var s *State
	for i, last := range []job.ID{0, 7, 3} {
		node := job.NodeID([]string{"n1", "n2", "n3"}[i])
		s, _ = Step(s, uint64(i+1), Command{Join: &Join{Node: node, Addr: "a", Boot: 1, Slots: 2, LastJob: last}})
	}
	spec := job.Spec{
		Argv: []string{"/bin/true"}, Dir: "/", Ranks: 1, MapBy: job.MapByBlock, OnFailure: job.OnFailurePause,
		NoSpare: job.NoSpareWait, Replicas: 1, Files: "truncate", Output: job.OutputLive,
	}
	s, _ = Step(s, 4, Command{Submit: &Submit{Key: "k", Spec: spec}})
	if got := s.Keys["k"]; got != 8 {
		t.Errorf("job number %d, want 8", got)
	}
}
