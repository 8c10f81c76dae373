package pod

import (
	"fmt"
	"strings"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/pmi"
)

// meshPatience is how long after the last fence of MPI_Init a pod waits for
// the complete mesh. An MPI library that connects later than MPICH does is
// checkpointed all the same then.
const meshPatience = 5 * time.Second

// inMesh reports what keeps the ranks from a first checkpoint: MPI_Init is not
// over. There is no message that says when it is; what is known is that the
// second fence comes before the connections, and that each rank then connects
// to every rank, itself included (UCX over TCP), so that it has size + 1 ends
// at least. Files of /proc that are open are a sign, too: UCX looks there for
// its network while it connects. Precondition: the ranks are frozen.
//
// Expected errors: errRetry, wrapped.
func (s *supervisor) inMesh(marks []podapi.Mark) error {
	s.mu.Lock()
	done := s.kept != nil
	since := s.meshFrom
	s.mu.Unlock()
	if done {
		return nil
	}
	ends := map[job.Rank]int{}
	for _, m := range marks {
		ends[m.Rank]++
	}
	size := s.spec.Spec.Ranks
	pids := s.outerPIDs(s.spec.Placement.Ranks)
	fences := s.pmi.Arrivals()
	for r, phase := range s.pmi.Phases() {
		if phase != pmi.InMPI || pids[r] == 0 || fences[r] > initFences {
			continue // no MPI program, or in MPI_Finalize
		}
		if since.IsZero() {
			return fmt.Errorf("rank %d is in MPI_Init: %w", r, errRetry)
		}
		if size > 1 && ends[r] < size+1 && time.Since(since) < meshPatience {
			return fmt.Errorf("rank %d is not yet connected to all: %w", r, errRetry)
		}
		if path := openProc(pids[r]); path != "" {
			return fmt.Errorf("rank %d reads %s: %w", r, path, errRetry)
		}
	}
	return nil
}

// openProc names a file of /proc that a rank has open, "" for none.
func openProc(pid int) string {
	for _, pid := range family(pid) {
		for _, to := range openFiles(pid) {
			if strings.HasPrefix(to, "/proc/") {
				return to
			}
		}
	}
	return ""
}
