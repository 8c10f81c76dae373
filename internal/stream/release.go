package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// pollSlice bounds one wait for room in a send buffer, so that the context is
// looked at.
const pollSlice = 50 * time.Millisecond

// Release lets the connections live: the bytes that were not sent at the epoch
// are written, and ended streams are ended again. The processes are still
// frozen; they may go on when it returns.
//
// Precondition: Restore has returned on every pod of the job.
// Expected errors: kernel errors with ECONNRESET (the other end is not there);
// the context's, when a send buffer stays full. It may be called again.
func (r *Restored) Release(ctx context.Context) error {
	if r.streams.local {
		return r.endTree(ctx)
	}
	// All ends first, bytes later: bytes need the other end, which may be ours.
	err := each(ctx, len(r.sockets), grain, func(i int) error {
		return r.sockets[i].named("release", r.sockets[i].wake())
	})
	if err != nil {
		return err
	}
	return each(ctx, len(r.sockets), grain, func(i int) error {
		return r.sockets[i].named("refill", r.sockets[i].refill(ctx))
	})
}

// wake leaves repair mode.
func (k *socket) wake() error {
	if k.released {
		return nil
	}
	peer := k.connected() && !k.want.PeerGone
	if err := leaveRepair(k.sys, k.fd, peer, k.want.Options[optReuseAddr]); err != nil {
		return err
	}
	if peer || !k.connected() {
		if err := k.sys.TCPAcceptAll(k.fd); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	k.released = true
	return nil
}

// refill writes what was not sent, ends what was ended, and gives the buffers
// their size.
func (k *socket) refill(ctx context.Context) error {
	if k.want.State == stateListen {
		return nil
	}
	if k.connected() {
		if err := k.writeAll(ctx); err != nil {
			return err
		}
		if err := k.end(); err != nil {
			return err
		}
	}
	if k.want.Options[optCork] != 0 {
		if err := k.sys.SetSockInt(k.fd, unix.IPPROTO_TCP, unix.TCP_CORK, 1); err != nil {
			return err
		}
	}
	return k.lockBuffers()
}

func (k *socket) writeAll(ctx context.Context) error {
	for k.sent < len(k.want.Send) {
		n, err := k.sys.Send(k.fd, k.want.Send[k.sent:])
		if err != nil {
			return err
		}
		if k.sent += n; n > 0 {
			continue
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%d of %d bytes written: %w", k.sent, len(k.want.Send), context.Cause(ctx))
		}
		if _, err := k.sys.Poll(k.fd, unix.POLLOUT, int(pollSlice.Milliseconds())); err != nil {
			return err
		}
	}
	return nil
}

// end brings the ends of streams back. Shutting down for reading is local: no
// packet tells of it, and the bytes before the end stay readable.
func (k *socket) end() error {
	if k.want.Closed {
		if err := k.sys.Shutdown(k.fd, unix.SHUT_WR); err != nil && !errors.Is(err, unix.ENOTCONN) {
			return err
		}
	}
	if k.want.EOF {
		if err := k.sys.Shutdown(k.fd, unix.SHUT_RD); err != nil && !errors.Is(err, unix.ENOTCONN) {
			return err
		}
	}
	return nil
}
