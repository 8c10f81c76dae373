package stream

import (
	"context"
	"fmt"
	"runtime"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/job"
)

// Streams works on the connections of one pod. It holds no state of its own.
type Streams struct {
	sys   *kernel.Sys
	netns int
	local bool // both ends of every connection are here: no privilege needed
	log   zerolog.Logger
}

// New returns the Streams of a pod. netns is a descriptor of the pod's network
// namespace, for new sockets; it stays the caller's and must stay open. A
// negative netns means that the caller itself lives in that namespace.
func New(sys *kernel.Sys, netns int, log zerolog.Logger) *Streams {
	return &Streams{sys: sys, netns: netns, log: log.With().Str("component", "stream").Logger()}
}

// Process is a frozen process of the pod.
type Process struct {
	PID  int // in the caller's pid namespace
	Rank job.Rank
}

// Slot says that a descriptor of a process is a certain socket. Cookie is the
// SO_COOKIE that names the socket in a Record.
type Slot struct {
	Rank    job.Rank
	PID     int // as in Process
	FD      int
	CloExec bool
	Cookie  uint64
}

// Forget makes the kernel give up every connection of the pod's namespace. It
// is for the end of a pod: closed connections whose bytes nobody acknowledges
// live on for minutes otherwise, with their memory, and keep the namespace.
//
// Expected errors: kernel errors with EPERM, EOPNOTSUPP (a kernel without
// CONFIG_INET_DIAG_DESTROY).
func (s *Streams) Forget() error {
	n, err := s.sys.TCPDestroyAll(s.netns)
	if err != nil {
		return fmt.Errorf("stream: forget connections: %w", err)
	}
	s.log.Debug().Int("connections", n).Msg("connections forgotten")
	return nil
}

// How many connections make work for one core: below twice that, handing out
// the work costs more than it gains. Captures take about ten microseconds each,
// everything else a hundred.
const (
	grainQuick = 8
	grain      = 2
)

// each runs fn for 0..n-1, on one core per grain of them. It stops at the first
// error or when ctx ends.
func each(ctx context.Context, n, grain int, fn func(i int) error) error {
	workers := min(runtime.GOMAXPROCS(0), n/grain)
	if workers <= 1 {
		for i := range n {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			if err := fn(i); err != nil {
				return err
			}
		}
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	for w := range workers {
		g.Go(func() error {
			for i := w; i < n; i += workers {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := fn(i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}
