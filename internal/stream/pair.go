package stream

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// TCP states, linux/tcp_states.h.
const (
	stateEstablished = 1
	stateSynSent     = 2
	stateSynRecv     = 3
	stateFinWait1    = 4
	stateFinWait2    = 5
	stateTimeWait    = 6
	stateClose       = 7
	stateCloseWait   = 8
	stateLastAck     = 9
	stateListen      = 10
	stateClosing     = 11
)

// finSent reports whether an end in this state has ended its own stream.
func finSent(state uint8) bool {
	switch state {
	case stateFinWait1, stateFinWait2, stateClosing, stateLastAck:
		return true
	}
	return false
}

// finReceived reports whether an end in this state has the peer's whole stream.
func finReceived(state uint8) bool {
	switch state {
	case stateCloseWait, stateLastAck, stateClosing, stateClose, stateTimeWait:
		return true
	}
	return false
}

// Obstacle is a reason why connections cannot be captured now.
type Obstacle struct {
	Rank   job.Rank
	FD     int // -1 when not known
	Flow   podapi.Flow
	Reason string
	Retry  bool // it may be gone soon
}

// String returns one line for people.
func (o Obstacle) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "rank %d", o.Rank)
	if o.FD >= 0 {
		fmt.Fprintf(&b, " descriptor %d", o.FD)
	}
	if o.Flow.Local != "" {
		fmt.Fprintf(&b, " tcp %s-%s", o.Flow.Local, o.Flow.Remote)
	}
	return b.String() + ": " + o.Reason
}

// Refusal is the error of a round that must be given up. The ranks are as they
// were.
type Refusal struct {
	Obstacles []Obstacle // at least one
}

// Error names the first obstacle and counts the others.
func (r *Refusal) Error() string {
	s := "stream: " + r.Obstacles[0].String()
	if n := len(r.Obstacles) - 1; n > 0 {
		s += fmt.Sprintf(" (and %d more)", n)
	}
	return s
}

// Retry reports whether a later round may succeed: no obstacle is a lasting
// one.
func (r *Refusal) Retry() bool {
	return !slices.ContainsFunc(r.Obstacles, func(o Obstacle) bool { return !o.Retry })
}

// Pair joins the marks of all pods of a job: the result holds, for every pod,
// the marks of the other ends of its connections, in the order of its own. It
// is pure. The marks of op freeze, which have no sequence numbers, can be
// paired as well: then only the addresses and states count.
//
// An end whose peer no process holds has no mark in the result; that is allowed
// when the peer had ended its stream. Loopback connections pair within a pod.
//
// Expected errors: *Refusal when an end is being connected, when the other end
// of an open connection is missing, or when the queues of two ends do not fit
// together (both can be tried again).
func Pair(pods map[job.PodIndex][]podapi.Mark) (map[job.PodIndex][]podapi.Mark, error) {
	type place struct {
		pod  job.PodIndex // -1 when the address is the same everywhere
		flow podapi.Flow
	}
	where := func(pod job.PodIndex, f podapi.Flow) place {
		if local, err := netip.ParseAddrPort(f.Local); err == nil && !local.Addr().Unmap().IsLoopback() {
			pod = -1
		}
		return place{pod, f}
	}
	ends := map[place]podapi.Mark{}
	var refused []Obstacle
	for pod, marks := range pods {
		for _, m := range marks {
			at := where(pod, m.Flow)
			if _, twice := ends[at]; twice {
				refused = append(refused, obstacle(m, "two sockets have these addresses"))
			}
			ends[at] = m
		}
	}
	peers := make(map[job.PodIndex][]podapi.Mark, len(pods))
	for pod, marks := range pods {
		peers[pod] = []podapi.Mark{}
		for _, m := range marks {
			peer, ok := ends[where(pod, podapi.Flow{Local: m.Remote, Remote: m.Local})]
			if why := check(m, peer, ok); why != "" {
				refused = append(refused, obstacle(m, why))
			}
			if ok {
				peers[pod] = append(peers[pod], peer)
			}
		}
	}
	if len(refused) > 0 {
		slices.SortFunc(refused, func(a, b Obstacle) int { return strings.Compare(a.String(), b.String()) })
		return nil, &Refusal{Obstacles: refused}
	}
	return peers, nil
}

func obstacle(m podapi.Mark, why string) Obstacle {
	return Obstacle{Rank: m.Rank, FD: -1, Flow: m.Flow, Reason: why, Retry: true}
}

// check returns why the end m cannot be captured together with its peer.
func check(m, peer podapi.Mark, paired bool) string {
	switch {
	case m.State == stateSynSent || m.State == stateSynRecv:
		return "connection is being set up"
	case !paired && !finReceived(m.State):
		return "the other end is in no process of the job"
	case paired && (peer.State == stateSynSent || peer.State == stateSynRecv):
		return "" // named at the peer
	case paired:
		return fits(m, peer)
	}
	return ""
}

// fits checks that what m still holds for its peer reaches exactly from at or
// before what the peer has to the end of m's stream.
func fits(m, peer podapi.Mark) string {
	missing := m.WriteSeq - peer.RcvNxt
	if m.SendLen < 0 || m.RecvLen < 0 || peer.RecvLen < 0 || uint64(missing) > uint64(m.SendLen) {
		return fmt.Sprintf("queues do not fit: %d bytes in the send queue to %d, the peer has received to %d",
			m.SendLen, m.WriteSeq, peer.RcvNxt)
	}
	return ""
}
