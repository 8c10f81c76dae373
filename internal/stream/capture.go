package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/podapi"
)

// segmentSlack is what a send queue may hold beyond the bytes that are not
// acknowledged: the acknowledged part of its first segment.
const segmentSlack = 64 << 10

// maxQueue bounds what is read from one queue.
const maxQueue = 256 << 20

// captureTries bounds the attempts to read a queue that changes meanwhile.
const captureTries = 1000

// CaptureSend copies the send queue of every connection. The sockets stay as
// they are; the kernels go on to move bytes meanwhile.
//
// Precondition: no obstacles, or the caller accepts them.
// Expected errors: kernel errors with EPERM (no CAP_NET_ADMIN over the network
// namespace).
func (set *Set) CaptureSend(ctx context.Context) error {
	if set.streams.local {
		return set.settle(ctx)
	}
	return set.capture(ctx, "send queue", func(e *end) error {
		if !e.connected() {
			return nil
		}
		return e.captureSend()
	})
}

// CaptureRecv copies the unread bytes of every connection.
//
// Precondition: CaptureSend is done on *every* pod of the job: a byte that is
// acknowledged and not yet here would otherwise be in neither copy.
// Expected errors: as of CaptureSend.
func (set *Set) CaptureRecv(ctx context.Context) error {
	return set.capture(ctx, "receive queue", func(e *end) error {
		switch {
		case e.over:
			return e.captureOver()
		case e.connected() && set.streams.local:
			return e.peekRecv()
		case e.connected():
			return e.captureRecv()
		}
		return nil
	})
}

// errEnded says that a connection went to the closed state under our hands.
var errEnded = errors.New("connection ended meanwhile")

func (set *Set) capture(ctx context.Context, what string, one func(*end) error) error {
	return each(ctx, len(set.ends), grainQuick, func(i int) error {
		e := set.ends[i]
		err := one(e)
		if errors.Is(err, errEnded) {
			err = e.end()
		}
		if err != nil {
			return fmt.Errorf("stream: capture %s of %s: %w", what, e.name(), err)
		}
		return nil
	})
}

// underRepair runs fn with a queue chosen in repair mode, and leaves repair
// mode again, whatever fn says.
func (e *end) underRepair(queue int, fn func() error) (err error) {
	if err := e.sys.TCPRepair(e.fd); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leaveRepair(e.sys, e.fd, false, e.tcp.Options[optReuseAddr])) }()
	if err := e.sys.TCPQueue(e.fd, queue); err != nil {
		return err
	}
	return fn()
}

// leaveRepair ends repair mode and sets SO_REUSEADDR, which repair mode
// changed. Each call is made twice if need be: a socket in repair mode sends
// nothing any more.
func leaveRepair(sys *kernel.Sys, fd int, probe bool, reuse int) error {
	err := twice(func() error { return sys.TCPRepairOff(fd, probe) })
	if reuse != 0 {
		err = errors.Join(err, twice(func() error {
			return sys.SetSockInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse)
		}))
	}
	if err != nil {
		return fmt.Errorf("socket left in repair mode: %w", err)
	}
	return nil
}

func twice(fn func() error) error {
	if err := fn(); err == nil {
		return nil
	}
	return fn()
}

func (e *end) captureSend() error {
	return e.underRepair(kernel.QueueSend, func() error {
		if err := e.captureLimits(); err != nil {
			return err
		}
		if err := e.describeState(); err != nil {
			return err
		}
		if e.tcp.State == stateClose {
			return errEnded
		}
		seq, err := e.sys.TCPSeq(e.fd)
		if err != nil {
			return err
		}
		if finSent(e.tcp.State) {
			seq-- // the FIN itself
			e.tcp.Closed = true
		}
		if e.tcp.Send, err = e.peekSend(); err != nil {
			return err
		}
		e.writeSeq = seq
		e.tcp.SendSeq = seq - uint32(len(e.tcp.Send))
		e.gotSend = true
		return nil
	})
}

// captureLimits reads what the handshake agreed on.
func (e *end) captureLimits() error {
	mss, err := e.sys.SockInt(e.fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG) // the clamp, under repair
	if err != nil {
		return err
	}
	w, err := e.sys.TCPWindow(e.fd)
	e.tcp.MSS, e.tcp.MaxWindow = uint32(mss), w.MaxWindow
	return err
}

// peekSend returns a copy of the send queue. It can only shrink meanwhile.
func (e *end) peekSend() ([]byte, error) {
	n, err := e.sys.SockIoctl(e.fd, unix.SIOCOUTQ)
	if err != nil || n == 0 {
		return nil, err
	}
	for size := n + segmentSlack; size <= maxQueue; size *= 2 {
		buf := make([]byte, size)
		n, err := e.sys.Peek(e.fd, buf, 0)
		if errors.Is(err, unix.EFAULT) {
			continue // more acknowledged bytes in front than expected
		}
		if err != nil || n == 0 {
			return nil, err
		}
		if n > size/2 {
			return buf[:n:n], nil
		}
		return bytes.Clone(buf[:n]), nil
	}
	return nil, fmt.Errorf("send queue of %d bytes is too long", n)
}

func (e *end) captureRecv() error {
	return e.underRepair(kernel.QueueRecv, func() error {
		for range captureTries {
			start, n, err := e.recvRange()
			if err != nil {
				return err
			}
			var buf []byte
			if n > 0 {
				buf = make([]byte, n)
				if n, err = e.sys.Peek(e.fd, buf, 0); err != nil {
					return err
				}
			}
			if n != len(buf) {
				continue
			}
			e.tcp.Recv, e.tcp.RecvSeq, e.gotRecv = buf, start+uint32(n), true
			return nil
		}
		return errors.New("receive queue does not hold still")
	})
}

// recvRange returns the sequence number of the first unread byte and how many
// there are, and finds out whether the stream ends with them. Bytes that arrive between the calls make it look again; bytes that
// arrive later do not matter, the sender still has them in its copy.
func (e *end) recvRange() (start uint32, n int, err error) {
	before, err := e.sys.TCPSeq(e.fd)
	if err != nil {
		return 0, 0, err
	}
	for range captureTries {
		if err := e.describeState(); err != nil {
			return 0, 0, err
		}
		if n, err = e.sys.SockIoctl(e.fd, unix.SIOCINQ); err != nil {
			return 0, 0, err
		}
		if n < 0 || n > maxQueue {
			return 0, 0, fmt.Errorf("receive queue of %d bytes", n)
		}
		ready, err := e.sys.Poll(e.fd, unix.POLLRDHUP, 0)
		if err != nil {
			return 0, 0, err
		}
		after, err := e.sys.TCPSeq(e.fd)
		if err != nil {
			return 0, 0, err
		}
		if before == after {
			e.tcp.EOF = finReceived(e.tcp.State) || ready&unix.POLLRDHUP != 0
			if e.tcp.State == stateClose {
				return 0, 0, errEnded
			}
			if finReceived(e.tcp.State) {
				after-- // the FIN itself
			}
			return after - uint32(n), n, nil
		}
		before = after
	}
	return 0, 0, errors.New("receive queue does not hold still")
}

// end notes that the network ended a connection since the inventory. The other
// end may see that later: then Pair refuses this round.
func (e *end) end() error {
	e.over = true
	e.remote, e.tcp.Remote = netip.AddrPort{}, ""
	e.tcp.Send, e.writeSeq, e.tcp.SendSeq, e.tcp.RecvSeq = nil, 0, 0, 0
	return e.captureOver()
}

// captureOver copies what is left to read of a connection whose both directions
// have ended. Nothing changes there any more.
func (e *end) captureOver() error {
	n, err := e.sys.SockIoctl(e.fd, unix.SIOCINQ)
	if err != nil {
		return err
	}
	buf := make([]byte, n)
	if n > 0 {
		if n, err = e.sys.Peek(e.fd, buf, 0); err != nil {
			return err
		}
	}
	e.tcp.Recv = buf[:n:n]
	e.tcp.EOF, e.tcp.Closed, e.tcp.PeerGone = true, true, true
	e.gotRecv = true
	return nil
}

// state is the state for marks and images: the end of the peer's stream counts
// as received also when reading was shut down on our side only, which is how a
// recovery brings it back.
func (e *end) state() uint8 {
	if e.tcp.EOF && e.tcp.State == stateEstablished {
		return stateCloseWait
	}
	return e.tcp.State
}

// Marks returns the state of every connection as the coordinator needs it: the
// addresses and states after Scan, also the sequence numbers and queue lengths
// after CaptureSend and CaptureRecv.
func (set *Set) Marks() []podapi.Mark {
	marks := make([]podapi.Mark, 0, len(set.ends))
	for _, e := range set.ends {
		if e.tcp.Remote == "" {
			continue
		}
		marks = append(marks, podapi.Mark{
			Flow: e.flow(), Rank: e.rank, Cookie: e.tcp.Cookie, State: e.state(),
			WriteSeq: e.writeSeq, SendLen: len(e.tcp.Send),
			RcvNxt: e.tcp.RecvSeq, RecvLen: len(e.tcp.Recv),
		})
	}
	return marks
}

// Record returns what was captured. It shares the bytes with the set, which is
// not needed any more and should be closed.
//
// Expected errors: one that says so, when a connection was not captured.
func (set *Set) Record() (*Record, error) {
	r := &Record{Slots: set.slots, Ends: make([]End, 0, len(set.ends)), local: set.streams.local}
	for _, e := range set.ends {
		if e.connected() && (!e.gotSend || !e.gotRecv) || e.over && !e.gotRecv {
			return nil, fmt.Errorf("stream: record: %s was not captured", e.name())
		}
		t := e.tcp
		t.State = e.state()
		if !e.connected() {
			t.Remote = ""
		}
		r.Ends = append(r.Ends, End{Flags: e.flags, TCP: &t})
	}
	return r, nil
}
