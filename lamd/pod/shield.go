package pod

import (
	"bufio"
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/lampause/lampause/pmi"
)

// The shield keeps the death of a rank from the other ranks of the job.
//
// When a process is killed, the kernel ends its connections with FIN or RST,
// and MPICH in the ranks at the other ends aborts the job, or crashes, within
// milliseconds (seen: "Endpoint timeout" in a send, SIGSEGV in Alltoallv).
// Without those packets the others wait, which is what a recovery needs. So
// from the first checkpoint on the pod does not let them out:
//
//   - RST never;
//   - FIN, except while a connection is being closed by a rank that lives. UCX
//     does so with one of two connections that crossed each other, mostly
//     before that. Such a close leaves a socket in the kernel that has not
//     been acknowledged; it is seen within shieldLook and let out with its next
//     retransmission.
//
// At the end of MPI_Finalize both are let out again: a rank may wait for just
// that (package pmi, the hang in MPI_Finalize).
//
// The rules are nftables' in the pod's own network namespace, which S owns, so
// that they need no root and still hold when supervisor and ranks die at once.
// A pod that is ended by order is cut off first. On a kernel without nftables
// the pod runs without a shield, and says so.
const (
	shieldTable = "lam_shield"
	shieldLook  = 500 * time.Millisecond
)

// shieldState is what is in force.
type shieldState struct {
	rst bool // RST is dropped
	fin bool // FIN is dropped
}

// shieldView is what the decision depends on.
type shieldView struct {
	protected bool // there is an epoch to go back to
	inMPI     bool // a rank is inside MPI
	died      bool // a rank has ended without having finalized
	closing   int  // closed sockets whose FIN is not acknowledged
}

// shieldFor decides what is to be in force. It is pure.
func shieldFor(v shieldView) shieldState {
	if !v.protected || !v.inMPI && !v.died {
		return shieldState{}
	}
	return shieldState{rst: true, fin: v.died || v.closing == 0}
}

// shield holds what is in force. Safe for concurrent use.
type shield struct {
	mu       sync.Mutex // guards below, and the kernel's tables
	now      shieldState
	finished bool // MPI_Finalize: down for good
	broken   bool // the kernel has no nftables: said once, not tried again
}

// set puts a decision in force.
func (s *shield) set(want shieldState) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished || s.broken {
		return nil
	}
	err := s.change(want)
	s.broken = err != nil
	return err
}

// finish lowers the shield for the end of MPI_Finalize.
func (s *shield) finish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished = true
	return s.change(shieldState{})
}

// again allows the shield after a rollback.
func (s *shield) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished = false
}

// change makes want of now in the kernel. Precondition: mu is held.
func (s *shield) change(want shieldState) error {
	if s.now == want {
		return nil
	}
	var err error
	if flags := want.flags(); flags != 0 {
		err = dropFlags(shieldTable, flags)
	} else {
		err = passAgain(shieldTable)
	}
	if err == nil {
		s.now = want
	}
	return err
}

// flags returns the TCP flags whose segments are dropped.
func (s shieldState) flags() byte {
	var f byte
	if s.rst {
		f |= tcpRST
	}
	if s.fin {
		f |= tcpFIN
	}
	return f
}

// keepShield carries the shield's decisions out until ctx ends.
func (s *supervisor) keepShield(ctx context.Context) error {
	t := time.NewTicker(shieldLook)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			s.updateShield()
		}
	}
}

// updateShield decides anew. After a commit, and before a release, it must not
// wait for its turn: from then on deaths are to be survived.
func (s *supervisor) updateShield() {
	if s.spec.LinkReady { // the network is not ours
		return
	}
	if err := s.shield.set(shieldFor(s.lookAround())); err != nil {
		s.log.Warn().Err(err).Msg("no shield: the death of a rank may end others before they can be rolled back")
	}
}

// lookAround gathers what shieldFor needs.
func (s *supervisor) lookAround() shieldView {
	var v shieldView
	s.mu.Lock()
	v.protected = s.kept != nil
	s.mu.Unlock()
	if !v.protected {
		return v
	}
	phases := s.pmi.Phases()
	for r := range s.exits.all() {
		v.died = v.died || phases[r] == pmi.InMPI || phases[r] == pmi.Aborted
	}
	for r := range s.outerPIDs(s.spec.Placement.Ranks) {
		v.inMPI = v.inMPI || phases[r] == pmi.InMPI
	}
	if !v.inMPI || v.died {
		return v
	}
	f, err := os.Open("/proc/self/net/tcp")
	if err != nil {
		return v
	}
	defer func() { _ = f.Close() }() // read only
	v.closing = closingSockets(f)
	return v
}

// closingSockets counts the sockets in states FIN_WAIT1, LAST_ACK and CLOSING
// of /proc/net/tcp (proc_pid_net(5)).
func closingSockets(r io.Reader) int {
	n := 0
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		w := strings.Fields(lines.Text())
		if len(w) > 3 && (w[3] == "04" || w[3] == "09" || w[3] == "0B") {
			n++
		}
	}
	return n
}
