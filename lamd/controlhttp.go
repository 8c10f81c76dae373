package lamd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/job"
)

// Headers by which one daemon passes a caller's identity to another. They are
// taken from the node API only, never from the unix socket, where the kernel
// tells who is calling.
const (
	headerUID = "X-Lam-Uid"
	headerGID = "X-Lam-Gid"
)

// caller is who asks: the peer credentials of a unix socket, as seen in this
// daemon's user namespace.
type caller struct {
	uid, gid uint32
}

type callerKey struct{}

func withCaller(ctx context.Context, c caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf returns the caller of a control request.
func callerOf(ctx context.Context) (caller, bool) {
	c, ok := ctx.Value(callerKey{}).(caller)
	return c, ok
}

// may reports whether c may command a job owned by uid: its owner may, and the
// user who runs the daemons.
func (c caller) may(uid uint32) bool { return c.uid == uid || int(c.uid) == os.Getuid() }

// peerCaller returns who is at the other end of a unix connection.
func peerCaller(conn net.Conn) (caller, error) {
	cred, err := peerCred(conn)
	if err != nil {
		return caller{}, err
	}
	return caller{uid: cred.Uid, gid: cred.Gid}, nil
}

// peerCred reads SO_PEERCRED of a unix connection (unix(7)).
func peerCred(conn net.Conn) (*unix.Ucred, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.New("peer credentials: not a unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, fmt.Errorf("peer credentials: %w", err)
	}
	if cerr != nil {
		return nil, fmt.Errorf("peer credentials: %w", cerr)
	}
	return cred, nil
}

// leaderProxy serves control requests: here when this daemon leads, else by
// passing them to the daemon that does.
type leaderProxy struct {
	self   job.NodeID
	leader func() (job.NodeID, bool) // the current leader, if one is known
	peers  *peers
	local  http.Handler
}

// leaderWait bounds how long a request waits for an election to end.
const leaderWait = 10 * time.Second

// ServeHTTP implements http.Handler.
func (p *leaderProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	leader, err := p.awaitLeader(r.Context())
	if err != nil {
		writeError(w, err)
		return
	}
	if leader == p.self {
		p.local.ServeHTTP(w, r)
		return
	}
	target, err := p.peers.url(leader, "")
	if err != nil {
		writeError(w, unavailable("leader "+string(leader)+": "+err.Error()))
		return
	}
	ctx, cancel := whileLeader(r.Context(), p.leader, leader)
	defer cancel()
	p.forward(w, r.WithContext(ctx), target)
}

// awaitLeader polls for a leader: raft tells of a new one through its state.
func (p *leaderProxy) awaitLeader(ctx context.Context) (job.NodeID, error) {
	ctx, cancel := context.WithTimeout(ctx, leaderWait)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if id, ok := p.leader(); ok {
			return id, nil
		}
		select {
		case <-ctx.Done():
			return "", unavailable("no leader: fewer than a majority of the voting nodes are alive; see `lam nodes`")
		case <-tick.C:
		}
	}
}

// forward passes one request to the leader's node API, with the caller's
// identity, and streams the answer back.
func (p *leaderProxy) forward(w http.ResponseWriter, r *http.Request, target string) {
	u, err := url.Parse(target)
	if err != nil {
		writeError(w, fmt.Errorf("leader address: %w", err))
		return
	}
	c, ok := callerOf(r.Context())
	if !ok {
		writeError(w, forbidden("caller not known"))
		return
	}
	rp := &httputil.ReverseProxy{
		FlushInterval: -1,
		Transport:     p.peers.client.Transport,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(u)
			pr.Out.URL.Path = "/v1/control" + pr.In.URL.Path
			pr.Out.Header.Set(headerUID, strconv.FormatUint(uint64(c.uid), 10))
			pr.Out.Header.Set(headerGID, strconv.FormatUint(uint64(c.gid), 10))
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			writeError(w, unavailable("leader did not answer: "+err.Error()))
		},
	}
	rp.ServeHTTP(w, r)
}

// fromPeer makes a handler of the node API out of a control handler: the
// caller is who the other daemon says.
func fromPeer(h http.Handler) http.Handler {
	return http.StripPrefix("/v1/control", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid, err1 := strconv.ParseUint(r.Header.Get(headerUID), 10, 32)
		gid, err2 := strconv.ParseUint(r.Header.Get(headerGID), 10, 32)
		if err1 != nil || err2 != nil {
			writeError(w, forbidden("control request of another daemon without a caller"))
			return
		}
		h.ServeHTTP(w, r.WithContext(withCaller(r.Context(), caller{uid: uint32(uid), gid: uint32(gid)})))
	}))
}

// serveUnix serves h on the unix socket path, 0660, until ctx ends. A socket
// file left by a dead daemon is replaced; the holder of the runtime directory
// makes sure that there is no living one.
func serveUnix(ctx context.Context, path string, h http.Handler) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("control socket: %w", err)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		_ = ln.Close()
		return fmt.Errorf("control socket: %w", err)
	}
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if c, err := peerCaller(conn); err == nil {
				return withCaller(ctx, c)
			}
			return ctx
		},
	}
	return serveHTTP(ctx, srv, ln)
}

// handlersMax bounds how long the end of a server waits for handlers, whose
// contexts have ended.
const handlersMax = 5 * time.Second

// serveHTTP runs srv on ln until ctx ends, then closes it with its connections
// (streams would keep a graceful shutdown waiting for ever) and waits for its
// handlers: what they use outlives them.
//
// Expected errors: ctx's; one that says that handlers did not end.
func serveHTTP(ctx context.Context, srv *http.Server, ln net.Listener) error {
	var busy handlers
	srv.Handler = busy.count(srv.Handler)
	srv.BaseContext = func(net.Listener) context.Context { return ctx }
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	err := srv.Serve(ln)
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	if n := busy.wait(handlersMax); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d requests did not end within %v", n, handlersMax))
	}
	if err != nil {
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	return ctx.Err()
}

// handlers counts the requests that are being handled. It is safe for
// concurrent use.
type handlers struct {
	mu    sync.Mutex // guards below
	n     int
	ended bool          // no request is let in any more
	idle  chan struct{} // closed when ended and n is 0
}

// count wraps a handler.
func (h *handlers) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		if h.ended {
			h.mu.Unlock()
			panic(http.ErrAbortHandler) // no answer: an empty one would say that it was done
		}
		h.n++
		h.mu.Unlock()
		defer func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.n--; h.n == 0 && h.ended {
				close(h.idle)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// wait waits for all handlers to end, at most limit, and returns how many did
// not. It is called once.
func (h *handlers) wait(limit time.Duration) int {
	h.mu.Lock()
	h.ended, h.idle = true, make(chan struct{})
	if h.n == 0 {
		h.mu.Unlock()
		return 0
	}
	h.mu.Unlock()
	select {
	case <-h.idle:
		return 0
	case <-time.After(limit):
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.n
}
