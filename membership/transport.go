package membership

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

// watched is the transport that memberlist uses: UDP and TCP, or an injected
// one. memberlist dials a member when its pings get no answer, which is the first
// sign of trouble, long before its own verdict; onFail is told of such a dial when
// it begins, and of every dial of a named member that fails. Dials end with ctx.
type watched struct {
	memberlist.NodeAwareTransport
	ctx    context.Context //nolint:containedctx // memberlist's interface has no context
	label  string
	dial   func(ctx context.Context, addr memberlist.Address) (net.Conn, error)
	onFail func(name string)
}

// newWatched binds the sockets unless inner is given.
//
// Expected errors: the bind errors of net.ListenTCP and net.ListenUDP.
func newWatched(ctx context.Context, cfg *Config, logger *log.Logger, onFail func(string)) (*watched, error) {
	w := &watched{ctx: ctx, label: cfg.Cluster, onFail: onFail}
	if inner := cfg.Transport; inner != nil {
		aware, ok := inner.(memberlist.NodeAwareTransport)
		if !ok {
			return nil, fmt.Errorf("membership: transport %T: does not know nodes", inner)
		}
		w.NodeAwareTransport = aware
		w.dial = func(ctx context.Context, a memberlist.Address) (net.Conn, error) {
			return aware.DialAddressTimeout(a, untilDeadline(ctx))
		}
		return w, nil
	}
	nt, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{cfg.Addr.String()},
		BindPort:  cfg.Port,
		Logger:    logger,
	})
	if err != nil {
		return nil, fmt.Errorf("membership: bind %s: %w", cfg.selfAddr(), err)
	}
	w.NodeAwareTransport = nt
	w.dial = func(ctx context.Context, a memberlist.Address) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", a.Addr)
	}
	return w, nil
}

// untilDeadline is the time left in ctx, which always has a deadline here.
func untilDeadline(ctx context.Context) time.Duration {
	d, ok := ctx.Deadline()
	if !ok {
		return joinTimeout
	}
	return time.Until(d)
}

// DialTimeout implements memberlist.Transport.
func (w *watched) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return w.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (w *watched) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(w.ctx, timeout)
	defer cancel()
	if a.Name != "" && timeout < joinTimeout {
		w.onFail(a.Name) // a fallback: the pings got no answer
	}
	conn, err := w.dial(ctx, a)
	if err != nil {
		if a.Name != "" && w.ctx.Err() == nil {
			w.onFail(a.Name)
		}
		return nil, fmt.Errorf("membership: dial %s: %w", a.Addr, err)
	}
	return conn, nil
}

// knock dials a member's gossip port and hangs up. The label saves the other
// side a complaint in its log.
func (w *watched) knock(ctx context.Context, a memberlist.Address) reach {
	conn, err := w.dial(ctx, a)
	if err == nil {
		if w.label != "" {
			_ = memberlist.AddLabelHeaderToStream(conn, w.label) // a courtesy only
		}
		_ = conn.Close()
		return reachAccepted
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
		return reachRefused
	}
	return reachNone
}
