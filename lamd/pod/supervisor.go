package pod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/pmi"
)

// Kinds of events (podapi.Event.Kind).
const (
	evStarted     = "started"      // a rank runs
	evReady       = "ready"        // MPI_Init of the job is about to end
	evExit        = "exit"         // a rank ended
	evAbort       = "abort"        // MPI_Abort, or a rank that broke the PMI protocol
	evLeaseFrozen = "lease-frozen" // the lease ran out; ranks are stopped
	evLeaseThawed = "lease-thawed" // it was renewed
	evLeaseKilled = "lease-killed" // it was not; the pod is dead
)

// errKilled ends Run after POST /v1/kill.
var errKilled = errors.New("killed by order")

// rank is one rank of the pod. Guarded by supervisor.mu.
type rank struct {
	id      job.Rank
	inner   int     // number in the pod; fixed for the life of the job
	proc    process // zero until started or restored
	started bool
	exit    *job.Exit
}

// supervisor holds the parts of a running pod.
type supervisor struct {
	dir    string
	spec   podapi.PodSpec
	self   job.PodAddress
	owner  visibleID
	log    zerolog.Logger
	logTo  *os.File
	net    network
	engine engine

	pmi    *pmi.Server
	out    *outputs
	in     *stdin // nil unless the rank that reads it is here
	events *eventLog
	exits  *exitBook
	phases *phases
	lease  *leaseKeeper
	holds  *holds
	shield shield

	prepare chan struct{} // asks for room for the next copy
	built   chan struct{} // closed when pod-init and the ranks were started, or failed to
	end     context.CancelCauseFunc

	mu       sync.Mutex // guards below
	header   podapi.Header
	book     []job.PodAddress
	init     *initClient
	ranks    map[job.Rank]*rank
	buildErr error
	building bool
	ending   bool      // endPod was called: the end of pod-init is no surprise
	meshFrom time.Time // the last fence of MPI_Init; zero before
	pending  *side     // of the open checkpoint
	kept     *side     // of the committed one
}

// bootTime reads CLOCK_BOOTTIME (clock_gettime(2)), which goes on while the
// machine sleeps.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // not possible: the clock exists since Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}

// runSupervisor is the second stage of `lamd pod DIR`: it runs inside S until
// the pod is killed, its directory is removed, or pod-init dies.
func runSupervisor(ctx context.Context, dir string, owner visibleID, ready *os.File, log zerolog.Logger) error {
	s, err := newSupervisor(dir, owner, log)
	if err != nil {
		return err
	}
	defer func() { _ = s.logTo.Close() }()
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", filepath.Join(dir, podapi.Socket))
	if err != nil {
		return fmt.Errorf("pod: %w", err)
	}
	if err := os.Chmod(l.Addr().String(), 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	if _, err := ready.WriteString(readyWord); err != nil {
		return errors.Join(err, l.Close())
	}
	if err := ready.Close(); err != nil {
		return errors.Join(err, l.Close())
	}
	return s.run(ctx, l)
}

func newSupervisor(dir string, owner visibleID, log zerolog.Logger) (*supervisor, error) {
	spec, err := readSpec(dir)
	if err != nil {
		return nil, err
	}
	s := &supervisor{
		dir: dir, spec: spec, owner: owner, net: podNetwork{}, header: spec.Header, book: spec.Book,
		built: make(chan struct{}), prepare: make(chan struct{}, 1), ranks: map[job.Rank]*rank{},
		log: log.With().Str("component", "pod").Uint64("job", uint64(spec.Job)).Int("pod", int(spec.Placement.Pod)).Logger(),
	}
	if s.logTo, err = os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	for _, a := range spec.Book {
		if a.Pod == spec.Placement.Pod {
			s.self = a
		}
	}
	if s.self.Hostname == "" {
		return nil, fmt.Errorf("pod %d: not in its own address book", spec.Placement.Pod)
	}
	if err := s.makeParts(); err != nil {
		return nil, err
	}
	return s, nil
}

// makeParts makes everything that needs no process.
func (s *supervisor) makeParts() error {
	var err error
	local := s.spec.Placement.Ranks
	if s.out, err = newOutputs(filepath.Join(s.dir, outDir), local); err != nil {
		return err
	}
	for r, pid := range pickPIDs(local, s.spec.Spec.Ranks, pidMax()) {
		s.ranks[r] = &rank{id: r, inner: pid}
		if r == s.spec.Spec.StdinRank {
			if s.in, err = newStdin(s.dir); err != nil {
				return err
			}
		}
	}
	s.events = newEventLog(s.spec.Incarnation)
	s.exits = newExitBook(filepath.Join(s.dir, exitsFile))
	s.holds = &holds{signal: s.signalAll}
	s.phases = newPhases(s.spec.Header, s.spec.Restore, s.dir, s, bootTime, s.log)
	s.lease = newLeaseKeeper(bootTime, time.Duration(s.spec.LeaseMS)*time.Millisecond)
	apps := map[job.Rank]int{}
	for _, r := range local {
		_, apps[r] = s.spec.Spec.Program(r)
	}
	s.pmi, err = pmi.New(pmi.Config{
		KVSName: "lam_" + s.spec.Job.String(), Mapping: pmi.Mapping(s.spec.Layout), Size: s.spec.Spec.Ranks, Local: local, AppNum: apps,
		Fencer: &lamdFencer{client: newLamdClient(s.lamdSocket()), header: s.currentHeader, pod: s.spec.Placement.Pod},
		Prober: prober{pids: s.outerPIDs}, Events: pmiEvents{s}, Log: s.log.With().Str("component", "pmi").Logger(),
	})
	if err != nil {
		return err
	}
	s.engine, err = newEngine(s)
	return err
}

func (s *supervisor) lamdSocket() string {
	if s.spec.LamdSocket != "" {
		return s.spec.LamdSocket
	}
	return filepath.Join(s.dir, "..", "..", "lamd.sock")
}

// pidMax is the bound of process numbers on this machine.
func pidMax() int {
	const fallback = 32768 // the kernel's default, kernel/sysctl
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return fallback
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fallback
	}
	return n
}

// run serves until the pod ends.
func (s *supervisor) run(ctx context.Context, l net.Listener) error {
	ctx, s.end = context.WithCancelCause(ctx)
	defer s.end(nil)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.serve(ctx, l) })
	g.Go(func() error { return s.pmi.Run(ctx) })
	g.Go(func() error { return s.out.run(ctx) })
	if s.in != nil {
		g.Go(func() error { return s.in.run(ctx) })
	}
	g.Go(func() error { return s.phases.watch(ctx) })
	g.Go(func() error { return s.keepLease(ctx) })
	g.Go(func() error { return s.watchDir(ctx) })
	g.Go(func() error { return s.keepShield(ctx) })
	g.Go(func() error { return s.keepPrepared(ctx) })
	g.Go(func() error { return s.watchInit(ctx) })
	if s.spec.LinkReady {
		g.Go(func() error {
			_ = s.build(ctx, "") // logged, and told to whoever asks for the link
			return nil
		})
	}
	err := g.Wait()
	if cause := context.Cause(ctx); errors.Is(cause, errKilled) {
		err = nil
	}
	s.log.Info().AnErr("cause", context.Cause(ctx)).Msg("supervisor ends")
	return errors.Join(err, s.endPod())
}

// endPod ends every process of the pod; it may be repeated.
func (s *supervisor) endPod() error {
	s.mu.Lock()
	init := s.init
	s.ending = true
	s.mu.Unlock()
	if init == nil {
		return nil
	}
	// Nobody shall hear of the end by FIN or RST (see shield.go).
	if err := s.net.down(); err != nil {
		s.log.Warn().Err(err).Msg("link not taken down")
	}
	if err := init.kill(s.engine.close); err != nil {
		return err
	}
	// Orphans of killed ranks would hold memory and the namespace for minutes.
	if err := stream.New(kernel.New(nil), -1, s.log).Forget(); err != nil {
		s.log.Warn().Err(err).Msg("connections of the pod live on for a while")
	}
	return nil
}

// watchDir ends the pod when its directory is gone: nobody can find it again.
func (s *supervisor) watchDir(ctx context.Context) error {
	t := time.NewTicker(5 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			if _, err := os.Stat(filepath.Join(s.dir, specFile)); errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("pod directory is gone: %w", err)
			}
		}
	}
}

// watchInit takes what pod-init reports, and ends the supervisor when pod-init
// has ended without being told to.
func (s *supervisor) watchInit(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.built:
	}
	s.mu.Lock()
	init := s.init
	s.mu.Unlock()
	if init == nil {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-init.exits:
			if !ok {
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.ending {
					return nil
				}
				return errInitGone
			}
			s.rankEnded(e)
		}
	}
}

// currentHeader is the header of the newest incarnation.
func (s *supervisor) currentHeader() podapi.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.header
}

// outerPIDs returns the running ranks among the given ones, by rank.
func (s *supervisor) outerPIDs(ranks []job.Rank) map[job.Rank]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[job.Rank]int{}
	for _, r := range ranks {
		if x := s.ranks[r]; x != nil && x.started && x.exit == nil {
			out[r] = x.proc.outer
		}
	}
	return out
}

// members returns the ranks as the engine sees them, ascending.
func (s *supervisor) members() []member {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]member, 0, len(s.ranks))
	for _, id := range s.spec.Placement.Ranks {
		r := s.ranks[id]
		m := member{rank: id, inner: r.inner, given: s.givenTo(id)}
		if r.started && r.exit == nil {
			m.outer = r.proc.outer
		}
		out = append(out, m)
	}
	return out
}

// givenTo returns the descriptors that a rank gets from the supervisor.
func (s *supervisor) givenTo(r job.Rank) map[string]*os.File {
	m := map[string]*os.File{
		"stdout": s.out.rankEnd(r, 1), "stderr": s.out.rankEnd(r, 2), "pmi": s.pmi.RankEnd(r),
	}
	if r == s.spec.Spec.StdinRank {
		m["stdin"] = s.in.read
	}
	return m
}

// signalAll sends a signal to every process of the pod.
func (s *supervisor) signalAll(ctx context.Context, sig unix.Signal) error {
	s.mu.Lock()
	init := s.init
	s.mu.Unlock()
	if init == nil {
		return nil
	}
	return init.signal(ctx, sig)
}
