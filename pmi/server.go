package pmi

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/lampause/lampause/job"
)

// Fencer meets the other pods of the job.
type Fencer interface {
	// Fence returns the puts of all pods once fence f.Seq is complete. It is
	// called again with the same f after an error, until ctx ends.
	Fence(ctx context.Context, f Fence) (map[string]string, error)
}

// Prober looks at the sockets of ranks.
type Prober interface {
	// Unread reports whether one of the ranks has unread bytes in an
	// established TCP connection.
	Unread(ctx context.Context, ranks []job.Rank) (bool, error)
}

// Listener hears of the ranks' progress. Its methods are called with the
// server's lock held: they must not call the Server, and not wait for anybody.
type Listener interface {
	// Phase says that a rank entered a phase.
	Phase(r job.Rank, p Phase)
	// Fence says that fence seq is complete. MPI_Init is over after the second
	// one of MPICH.
	Fence(seq int)
	// Final says that ranks are about to close their connections at the end of
	// MPI_Finalize; they do so when it has returned.
	Final()
	// Abort says that a rank called MPI_Abort, or broke the protocol (err).
	Abort(r job.Rank, code int, text string, err error)
}

// Config is what a Server needs. All fields are required.
type Config struct {
	KVSName string           // name of the key-value space, the same in all pods
	Mapping string           // value of PMI_process_mapping, see Mapping
	Size    int              // ranks of the job
	Local   []job.Rank       // ranks of this pod
	AppNum  map[job.Rank]int // of local ranks whose program is not the first
	Fencer  Fencer
	Prober  Prober
	Events  Listener
	Log     zerolog.Logger
}

// Pauses of the driver.
const (
	tickEvery  = 100 * time.Millisecond
	fenceRetry = 100 * time.Millisecond
)

// Server serves the ranks of one pod. All methods are safe for concurrent use.
//
// Lock order: mu is the only lock. While paused, nothing is read, answered or
// counted; Export and Import need a paused server.
type Server struct {
	cfg   Config
	start time.Time

	conns map[job.Rank]*conn // the map does not change after New; its conns are guarded

	waits chan struct{} // a rank waits in a barrier: time matters

	mu        sync.Mutex // guards all below
	resumed   *sync.Cond // signalled when paused falls, and when closed rises
	state     State
	gone      []job.Rank // ended while the server was paused
	paused    bool
	closed    bool
	imported  bool            // OnRestore is due at Resume
	probing   bool            // a look at the sockets is under way
	fences    context.Context //nolint:containedctx // of all outstanding fences
	endFences context.CancelFunc
	wg        sync.WaitGroup // fences and looks
}

// New returns a server whose ranks have not spoken. Attach gives each its
// descriptor; Run serves them.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, start: time.Now(), conns: map[job.Rank]*conn{}, waits: make(chan struct{}, 1)}
	s.state = NewState(cfg.KVSName, cfg.Mapping, cfg.Size, cfg.Local)
	for r, n := range cfg.AppNum {
		if st := s.state.Ranks[r]; st != nil {
			st.App = n
		}
	}
	s.resumed = sync.NewCond(&s.mu)
	s.fences, s.endFences = context.WithCancel(context.Background()) // ends with Run, or with Import
	for _, r := range cfg.Local {
		c, err := newConn(r)
		if err != nil {
			for _, o := range s.conns {
				o.close()
			}
			return nil, fmt.Errorf("pmi: rank %d: %w", r, err)
		}
		s.conns[r] = c
	}
	return s, nil
}

// RankEnd returns the descriptor that rank r inherits as PMI_FD, nil for a
// rank of another pod. It stays the server's: duplicate it, do not close it.
func (s *Server) RankEnd(r job.Rank) *os.File {
	if c := s.conns[r]; c != nil {
		return c.rank
	}
	return nil
}

// now is the driver's monotonic clock.
func (s *Server) now() time.Duration { return time.Since(s.start) }

// Run serves all ranks until ctx ends, and closes every descriptor then.
//
// Expected errors: ctx.Err().
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	s.mu.Lock()
	for _, c := range s.conns {
		g.Go(func() error { s.read(c); return nil })
	}
	s.mu.Unlock()
	g.Go(func() error {
		<-ctx.Done()
		s.mu.Lock()
		s.closed = true
		s.endFences()
		s.resumed.Broadcast()
		s.mu.Unlock()
		for _, c := range s.conns { // not changed after New
			c.close()
		}
		return ctx.Err()
	})
	g.Go(func() error { return s.tick(ctx) })
	err := g.Wait()
	s.wg.Wait()
	return err
}

// tick lets time pass for the core while a rank waits in a barrier. Otherwise
// it sleeps: the cores are the ranks'.
func (s *Server) tick(ctx context.Context) error {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.waits:
		case <-t.C:
		}
		s.mu.Lock()
		waiting := len(s.state.waiting()) > 0
		if waiting && !s.paused && !s.closed {
			s.step(OnTick{Now: s.now()})
		}
		s.mu.Unlock()
		if waiting {
			t.Reset(tickEvery)
		}
	}
}

// await waits until the server is not paused. It reports false when it is
// closed. Precondition: mu is held.
func (s *Server) await() bool {
	for s.paused && !s.closed {
		s.resumed.Wait()
	}
	return !s.closed
}

// read takes bytes of one rank until its socket is closed.
func (s *Server) read(c *conn) {
	for {
		var failed error
		err := c.wait(func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			if !s.await() {
				failed = os.ErrClosed
				return true
			}
			var again bool
			again, failed = c.fill()
			s.consume(c)
			return again
		})
		if err == nil {
			err = failed
		}
		if err != nil {
			s.cfg.Log.Debug().Err(err).Int("rank", int(c.id)).Msg("pmi connection ended")
			return
		}
	}
}

// consume steps through the complete lines of a rank. Precondition: mu held.
func (s *Server) consume(c *conn) {
	for {
		line, ok := c.line()
		if !ok {
			break
		}
		s.step(OnLine{Rank: c.id, Line: line, Now: s.now()})
	}
	if len(c.in) > MaxLine && !c.broken {
		c.broken = true
		s.cfg.Events.Abort(c.id, 1, "", fmt.Errorf("%w: rank %d: line too long", ErrProtocol, c.id))
	}
	if c.broken {
		c.in = nil
	}
}

// step runs the core and carries its actions out. Precondition: mu held.
func (s *Server) step(e Event) {
	next, actions := Step(s.state, e)
	s.state = next
	if _, tick := e.(OnTick); !tick && len(next.waiting()) > 0 {
		select {
		case s.waits <- struct{}{}:
		default: // tick is awake
		}
	}
	for _, a := range actions {
		switch a := a.(type) {
		case DoReply:
			if err := s.conns[a.Rank].reply(a.Text); err != nil {
				s.cfg.Log.Warn().Err(err).Int("rank", int(a.Rank)).Msg("pmi answer not delivered")
			}
		case DoFence:
			if a.Fence.Early {
				s.cfg.Log.Info().Int("seq", a.Fence.Seq).Msg("a rank waits for answers of ranks in MPI_Finalize; its fence is completed early")
			}
			s.wg.Add(1)
			go s.fence(s.fences, a.Fence)
		case DoProbe:
			if !s.probing {
				s.probing = true
				s.wg.Add(1)
				go s.probe(s.fences, a)
			}
		case DoPhase:
			s.cfg.Events.Phase(a.Rank, a.Phase)
		case DoFinal:
			s.cfg.Events.Final()
		case DoAbort:
			if a.Err != nil {
				s.conns[a.Rank].broken = true
			}
			s.cfg.Events.Abort(a.Rank, a.Code, a.Text, a.Err)
		}
	}
}

// fence carries one fence out, however often it has to ask.
func (s *Server) fence(ctx context.Context, f Fence) {
	defer s.wg.Done()
	for ctx.Err() == nil {
		puts, err := s.cfg.Fencer.Fence(ctx, f)
		if err == nil {
			s.mu.Lock()
			if s.await() && ctx.Err() == nil {
				before := s.state.Done
				s.step(OnFence{Seq: f.Seq, Puts: puts})
				if s.state.Done > before {
					s.cfg.Events.Fence(s.state.Done)
				}
			}
			s.mu.Unlock()
			return
		}
		s.cfg.Log.Debug().Err(err).Int("seq", f.Seq).Msg("fence not complete; asking again")
		select {
		case <-ctx.Done():
		case <-time.After(fenceRetry):
		}
	}
}

// probe looks at the sockets of waiting ranks once.
func (s *Server) probe(ctx context.Context, p DoProbe) {
	defer s.wg.Done()
	unread, err := s.cfg.Prober.Unread(ctx, p.Ranks)
	if err != nil {
		s.cfg.Log.Warn().Err(err).Msg("cannot look at the sockets of waiting ranks")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probing = false
	if err == nil && s.await() && ctx.Err() == nil {
		s.step(OnProbe{Seq: p.Seq, Unread: unread})
	}
}

// Gone says that the process of rank r has ended. It counts when the server
// is not paused; an Import before that makes it void.
func (s *Server) Gone(r job.Rank) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
	case s.paused:
		s.gone = append(s.gone, r)
	default:
		s.step(OnGone{Rank: r})
	}
}

// Phases returns how far each rank is.
func (s *Server) Phases() map[job.Rank]Phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[job.Rank]Phase, len(s.state.Ranks))
	for r, st := range s.state.Ranks {
		out[r] = st.Phase
	}
	return out
}

// Arrivals returns how many barriers each rank has entered.
func (s *Server) Arrivals() map[job.Rank]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[job.Rank]int, len(s.state.Ranks))
	for r, st := range s.state.Ranks {
		out[r] = st.Arrived
	}
	return out
}

// Fences returns every fence at which this pod has arrived, oldest first. A
// coordinator that has lost count asks for them.
func (s *Server) Fences() []Fence {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.fences()
}

// locals returns the ranks of the pod, ascending. Precondition: mu held.
func (s *Server) locals() []job.Rank {
	out := make([]job.Rank, 0, len(s.conns))
	for r := range s.conns {
		out = append(out, r)
	}
	slices.Sort(out)
	return out
}
