package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// How long a capture waits for bytes to cross over to their receiver. What
// takes longer has no room there.
const (
	settleTries = 20
	settleSlice = time.Millisecond
	// drainLimit bounds the reading and writing of one direction, whatever
	// the caller's context says: half-way the bytes would be lost.
	drainLimit = 30 * time.Second
)

// settle brings the bytes of all connections over to their receivers.
//
// Expected errors: *Refusal when bytes behind the end of a stream have no room.
func (set *Set) settle(ctx context.Context) error {
	var open []*end // directions with bytes on their way, named by their sender
	for _, e := range set.ends {
		if !e.connected() {
			continue
		}
		e.gotSend = true
		e.tcp.Closed = finSent(e.tcp.State)
		e.tcp.SendSeq, e.tcp.RecvSeq = 0, 0
		if e.tcp.Options[optCork] != 0 { // what is held back goes out
			if err := e.cork(); err != nil {
				return err
			}
		}
		open = append(open, e)
	}
	for try := range settleTries {
		var rest []*end
		for _, e := range open {
			n, err := e.sys.SockIoctl(e.fd, unix.SIOCOUTQ)
			if err != nil {
				return fmt.Errorf("stream: capture %s: %w", e.name(), err)
			}
			if n == 0 {
				continue
			}
			rest = append(rest, e)
			if e.peer != nil { // acknowledge now, not after a while
				if err := e.sys.SetSockInt(e.peer.fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1); err != nil {
					return fmt.Errorf("stream: capture %s: %w", e.name(), err)
				}
			}
		}
		if open = rest; len(open) == 0 {
			return nil
		}
		if err := sleep(ctx, time.Duration(min(try, 5))*settleSlice); err != nil {
			return err
		}
	}
	for _, e := range open {
		if err := set.overflow(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// cork lets out what the option TCP_CORK holds back, and sets it again.
func (e *end) cork() error {
	err := e.sys.SetSockInt(e.fd, unix.IPPROTO_TCP, unix.TCP_CORK, 0)
	return errors.Join(err, twice(func() error {
		return e.sys.SetSockInt(e.fd, unix.IPPROTO_TCP, unix.TCP_CORK, 1)
	}))
}

// overflow captures a direction with more bytes than the receiver takes.
func (set *Set) overflow(ctx context.Context, e *end) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	why := ""
	switch {
	case e.tcp.PeerGone:
		return nil // nobody will ever read them
	case e.peer == nil:
		why = "bytes wait behind a connection that was not accepted yet"
	case e.tcp.Closed:
		why = "bytes before the end of the stream have no room at the receiver yet"
	}
	if why != "" {
		return &Refusal{Obstacles: []Obstacle{{Rank: e.rank, FD: e.at, Flow: e.flow(), Reason: why, Retry: true}}}
	}
	all, err := exchange(ctx, e)
	if err != nil {
		return fmt.Errorf("stream: capture %s: %w", e.name(), err)
	}
	e.peer.tcp.Recv, e.peer.gotRecv, e.peer.drained = all, true, true
	return nil
}

// exchange reads all bytes of a direction and writes them again. Once it has
// read some it does not give up.
func exchange(ctx context.Context, e *end) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainLimit)
	defer cancel()
	var all []byte
	var failed error
	for failures := 0; failures < 2; {
		more, done, err := drainOnce(e)
		if all = append(all, more...); err != nil {
			failed = err
			failures++
			continue
		}
		failed = nil
		if done {
			break
		}
		if ctx.Err() != nil {
			failed = context.Cause(ctx)
			break
		}
	}
	rest := all
	for failures := 0; len(rest) > 0; {
		n, err := e.sys.Send(e.fd, rest)
		if err == nil && n == 0 {
			_, err = e.sys.Poll(e.fd, unix.POLLOUT, int(pollSlice.Milliseconds()))
		}
		rest = rest[n:]
		if err == nil && ctx.Err() == nil {
			continue
		}
		if failures++; failures >= 2 {
			return nil, errors.Join(fmt.Errorf("%d of %d bytes could not be written again: the connection has lost them",
				len(rest), len(all)), err, failed)
		}
	}
	return all, failed
}

// drainOnce takes what the receiver has; done says that no more is coming.
func drainOnce(e *end) (got []byte, done bool, err error) {
	left, err := e.sys.SockIoctl(e.fd, unix.SIOCOUTQ)
	if err != nil {
		return nil, false, err
	}
	buf := make([]byte, 256<<10)
	n, ok, err := e.sys.Receive(e.peer.fd, buf)
	if err != nil || ok && n == 0 {
		return nil, ok, err
	}
	if !ok {
		if left == 0 {
			return nil, true, nil
		}
		_, err = e.sys.Poll(e.peer.fd, unix.POLLIN, 2)
		return nil, false, err
	}
	return buf[:n:n], false, nil
}

// peekRecv copies what can be read at e, whose other end is silent.
func (e *end) peekRecv() error {
	ready, err := e.sys.Poll(e.fd, unix.POLLRDHUP, 0)
	if err != nil {
		return err
	}
	e.tcp.EOF = finReceived(e.tcp.State) || ready&unix.POLLRDHUP != 0
	if e.drained {
		return nil
	}
	n, err := e.sys.SockIoctl(e.fd, unix.SIOCINQ)
	if err != nil {
		return err
	}
	if n < 0 || n > maxQueue {
		return fmt.Errorf("receive queue of %d bytes", n)
	}
	var buf []byte
	if n > 0 {
		buf = make([]byte, n)
		got, err := e.sys.Peek(e.fd, buf, 0)
		if err != nil {
			return err
		}
		if got != n {
			return errors.New("receive queue does not hold still")
		}
	}
	e.tcp.Recv, e.gotRecv = buf, true
	return nil
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
