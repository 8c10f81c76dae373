package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/pid1"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/pmi"
)

// maxBody bounds a request, in bytes: peers' marks and address books.
const maxBody = 64 << 20

// peerKey is the context key of a connection's peer credentials.
type peerKey struct{}

// serve answers on the pod's socket until ctx ends.
func (s *supervisor) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.authorised(s.routes()),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, peerOf(c))
		},
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("pod: serve: %w", err)
	case <-ctx.Done():
	}
	// A moment for the answer of the request that ended us; streams are cut.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 300*time.Millisecond)
	defer cancel()
	err := srv.Shutdown(grace)
	if err != nil {
		err = srv.Close()
	}
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return errors.Join(ctx.Err(), err)
	}
	return ctx.Err()
}

// peerOf returns the peer's uid as this user namespace sees it, -1 if unknown.
func peerOf(c net.Conn) int {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return -1
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return -1
	}
	uid := -1
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	if err != nil {
		return -1
	}
	return uid
}

// authorised lets in the owner (uid 0 of S) and root. Root has no number in S
// unless it is the owner; it then shows as the overflow uid. Any other user
// would show so, too, but cannot open the socket: its mode is 0600.
func (s *supervisor) authorised(next http.Handler) http.Handler {
	const overflow = 65534 // /proc/sys/kernel/overflowuid
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid, ok := r.Context().Value(peerKey{}).(int)
		if !ok || uid != 0 && uid != overflow {
			fail(w, http.StatusForbidden, job.ExitPermission, fmt.Errorf("uid %d may not command this pod", uid))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *supervisor) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+podapi.PathStatus, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, s.status()) })
	mux.HandleFunc("GET "+podapi.PathFences, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, s.fences()) })
	mux.HandleFunc("POST "+podapi.PathPhase, s.postPhase)
	mux.HandleFunc("POST "+podapi.PathLease, s.postLease)
	mux.HandleFunc("POST "+podapi.PathLink, s.postLink)
	mux.HandleFunc("POST "+podapi.PathSignal, s.postSignal)
	mux.HandleFunc("POST "+podapi.PathStdin, s.postStdin)
	mux.HandleFunc("POST "+podapi.PathKill, s.postKill)
	mux.HandleFunc("GET "+podapi.PathEvents, s.getEvents)
	mux.HandleFunc("GET "+podapi.PathOutput, s.getOutput)
	return mux
}

// answerJSON answers with v. A client that went away is its own affair.
func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the status line is gone: nobody to tell
}

// fail answers with an error.
func fail(w http.ResponseWriter, status, exit int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(control.Error{Message: err.Error(), Exit: exit}) // as answerJSON
}

// decode reads the body into v; on failure it has answered.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(v); err != nil {
		fail(w, http.StatusBadRequest, job.ExitUsage, fmt.Errorf("malformed request: %w", err))
		return false
	}
	return true
}

// stale reports whether a header is of an older term or incarnation than the
// pod has seen; then it has answered.
func (s *supervisor) stale(w http.ResponseWriter, h podapi.Header) bool {
	st := s.phases.look()
	cur := s.currentHeader()
	if h.Job == cur.Job && h.Term >= st.Term && h.Incarnation >= cur.Incarnation {
		return false
	}
	fail(w, http.StatusConflict, job.ExitInternal, fmt.Errorf("stale: job %d term %d incarnation %d, this is job %d term %d incarnation %d",
		h.Job, h.Term, h.Incarnation, cur.Job, st.Term, cur.Incarnation))
	return true
}

func (s *supervisor) postPhase(w http.ResponseWriter, r *http.Request) {
	var q podapi.PhaseRequest
	if !decode(w, r, &q) {
		return
	}
	reply, err := s.phases.handle(r.Context(), q)
	if err == nil {
		answerJSON(w, reply)
		return
	}
	status := http.StatusServiceUnavailable
	reply.Error = err.Error()
	var no *refusal
	if errors.As(err, &no) {
		status, reply.Retry = no.status, no.retry
		if len(no.lost) > 0 {
			reply.LostRanks = no.lost
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(reply) // as answerJSON
}

func (s *supervisor) postLease(w http.ResponseWriter, r *http.Request) {
	var l podapi.Lease
	if !decode(w, r, &l) || s.stale(w, l.Header) {
		return
	}
	s.lease.renew(l)
	w.WriteHeader(http.StatusNoContent)
}

func (s *supervisor) postLink(w http.ResponseWriter, r *http.Request) {
	var l podapi.Link
	if !decode(w, r, &l) {
		return
	}
	// The pod is built, and stays, whether the caller waits or not.
	err := s.build(context.WithoutCancel(r.Context()), l.Name)
	var no *startError
	switch {
	case errors.As(err, &no):
		fail(w, http.StatusInternalServerError, no.exit(), err)
	case err != nil:
		fail(w, http.StatusInternalServerError, job.ExitInternal, err)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *supervisor) postSignal(w http.ResponseWriter, r *http.Request) {
	var x podapi.Signal
	if !decode(w, r, &x) || s.stale(w, x.Header) {
		return
	}
	if x.Signal < 1 || x.Signal > 64 {
		fail(w, http.StatusBadRequest, job.ExitUsage, fmt.Errorf("signal %d: there is none", x.Signal))
		return
	}
	if err := s.signalRanks(unix.Signal(x.Signal)); err != nil {
		fail(w, http.StatusInternalServerError, job.ExitInternal, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// signalRanks sends a signal to every running rank of the pod, and to nothing
// else: what a rank does with its children is its own affair.
func (s *supervisor) signalRanks(sig unix.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, r := range s.ranks {
		if !r.started || r.exit != nil {
			continue
		}
		err := unix.PidfdSendSignal(pid1.FD(r.proc.pidfd), sig, nil, 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("signal rank %d: %w", r.id, err))
		}
	}
	return errors.Join(errs...)
}

func (s *supervisor) postStdin(w http.ResponseWriter, r *http.Request) {
	if s.in == nil {
		fail(w, http.StatusNotFound, job.ExitUsage, errors.New("rank 0 is not in this pod"))
		return
	}
	off, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	if err != nil || off < 0 {
		fail(w, http.StatusBadRequest, job.ExitUsage, fmt.Errorf("offset=%q: not a number", r.URL.Query().Get("offset")))
		return
	}
	if st := s.phases.look().Stage; st == stEmpty || st == stBroken { // what it has read by then is in the image
		fail(w, http.StatusServiceUnavailable, job.ExitInternal, errors.New("rank 0 is not restored yet"))
		return
	}
	if err := s.takeStdin(r, off); err != nil {
		var gap *errOffset
		status := http.StatusInternalServerError
		switch {
		case errors.As(err, &gap):
			status = http.StatusConflict // Status.StdinOffset tells where to go on
		case errors.Is(err, errStdinClosed):
			status = http.StatusServiceUnavailable
		}
		fail(w, status, job.ExitInternal, err)
		return
	}
	answerJSON(w, s.stdinTaken())
}

// stdinTaken says how far rank 0's input has come. What a round has captured
// that is not committed yet is as good as what was captured then.
func (s *supervisor) stdinTaken() podapi.StdinTaken {
	s.mu.Lock()
	defer s.mu.Unlock() // a round that takes the state meanwhile is either seen here or by taken
	var open *stdinState
	if s.pending != nil {
		open = s.pending.Stdin
	}
	return s.in.taken(open)
}

// takeStdin takes the body in pieces, so that a long one is fed as it comes.
func (s *supervisor) takeStdin(r *http.Request, off int64) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Body.Read(buf)
		end := errors.Is(err, io.EOF)
		if n > 0 {
			if err := s.in.add(r.Context(), off, buf[:n], false); err != nil {
				return err
			}
			off += int64(n)
		}
		if end {
			return s.in.add(r.Context(), off, nil, r.URL.Query().Get("eof") == "1")
		}
		if err != nil {
			return err
		}
	}
}

func (s *supervisor) postKill(w http.ResponseWriter, _ *http.Request) {
	if err := s.endPod(); err != nil {
		fail(w, http.StatusInternalServerError, job.ExitInternal, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
	_ = http.NewResponseController(w).Flush() // as answerJSON
	s.end(errKilled)
}

func (s *supervisor) getEvents(w http.ResponseWriter, r *http.Request) {
	from, err := strconv.ParseUint(r.URL.Query().Get("from"), 10, 64)
	if err != nil {
		from = 1
	}
	enc, flush := jsonLines(w)
	for {
		events, err := s.events.from(r.Context(), from)
		if err != nil {
			return
		}
		for _, e := range events {
			if enc.Encode(e) != nil {
				return
			}
			from = e.Seq + 1
		}
		if flush() != nil {
			return
		}
	}
}

// ended reports whether every rank has ended.
func (s *supervisor) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.ranks {
		if r.exit == nil {
			return false
		}
	}
	return true
}

// fences lists every fence at which the pod arrived.
func (s *supervisor) fences() []podapi.Fence {
	f := lamdFencer{header: s.currentHeader, pod: s.spec.Placement.Pod}
	out := []podapi.Fence{}
	for _, x := range s.pmi.Fences() {
		out = append(out, f.message(x))
	}
	return out
}

// status describes the pod.
func (s *supervisor) status() podapi.Status {
	phase := s.phases.look()
	inMPI := s.pmi.Phases()
	st := podapi.Status{
		Version: podapi.Version, Pod: s.spec.Placement.Pod, Node: s.spec.Node,
		Epoch: phase.Seen, SupervisorPID: unix.Getpid(), OutputGen: s.out.generation(),
	}
	if s.in != nil {
		st.StdinOffset = s.in.offset()
	}
	ended := s.ended()
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Header = s.header
	st.Term, st.Attempt = phase.Term, phase.Round.Attempt
	if s.init != nil {
		st.InitPID = s.init.cmd.Process.Pid
	}
	for _, id := range s.spec.Placement.Ranks {
		r := s.ranks[id]
		st.Ranks = append(st.Ranks, podapi.RankStatus{
			Rank: id, PID: r.proc.outer, InnerPID: r.inner, Exit: r.exit, InMPI: inMPI[id] == pmi.InMPI,
		})
	}
	switch st.State = phase.Stage.String(); {
	case ended:
		st.State = "ended"
	case s.init == nil:
		st.State = "building"
	case st.State == "running" && s.holds.any():
		st.State = "suspended"
	}
	return st
}
