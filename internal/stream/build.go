package stream

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// firstWindow is the window that both ends of a connection start with, in
// bytes, whatever they had: enough for the first round trip, after which the
// true one is known. It is a multiple of every window scale.
const firstWindow = 64 << 10

// filterSpan is how far beyond the epoch incoming bytes may be before release,
// when the peer was released earlier: more than any receive buffer.
const filterSpan = 64 << 20

// build brings a connection, or a closed socket, back. Whatever it was, the
// socket is closed and in repair mode or new.
func (k *socket) build() error {
	if err := k.prepare(); err != nil {
		return err
	}
	if !k.connected() {
		return k.buildClosed()
	}
	recvSeq := k.want.RecvSeq - uint32(len(k.want.Recv)) + shift(k.gen, k.remote, k.local)
	sendSeq := k.want.SendSeq + shift(k.gen, k.local, k.remote)
	if err := k.setSeqs(sendSeq, recvSeq); err != nil {
		return err
	}
	if err := k.bind(); err != nil {
		return err
	}
	if err := k.filter(recvSeq + uint32(len(k.want.Recv))); err != nil {
		return err
	}
	if err := k.connect(); err != nil {
		return err
	}
	if err := k.sys.SetTCPOptions(k.fd, k.handshake()); err != nil {
		return err
	}
	if err := k.pushRecv(); err != nil {
		return err
	}
	return k.setWindow(recvSeq + uint32(len(k.want.Recv)))
}

// prepare sets what must be known before connecting.
func (k *socket) prepare() error {
	if k.fresh {
		if err := k.sys.TCPDropAll(k.fd); err != nil {
			return err
		}
	}
	if err := k.sys.TCPRepair(k.fd); err != nil {
		return err
	}
	if err := k.common(false); err != nil {
		return err
	}
	lock := k.want.Options[optBufLock]
	rcv, snd := room(len(k.want.Recv)), room(len(k.want.Send))
	if lock&unix.SOCK_RCVBUF_LOCK != 0 {
		rcv = max(rcv, k.want.Options[optRcvBuf])
	}
	if lock&unix.SOCK_SNDBUF_LOCK != 0 {
		snd = max(snd, k.want.Options[optSndBuf])
	}
	if err := k.growBuffer(unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, rcv); err != nil {
		return err
	}
	return k.growBuffer(unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, snd)
}

// common sets flags and options that all kinds of sockets have.
func (k *socket) common(listener bool) error {
	if err := k.sys.SetFileFlags(k.fd, k.flags); err != nil {
		return err
	}
	if err := writeOptions(k.sys, k.want.Options, k.fd, k.want.Family, listener); err != nil {
		return err
	}
	if k.want.Congestion == "" {
		return nil
	}
	if have, err := k.sys.SockString(k.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil && have == k.want.Congestion {
		return nil
	}
	return k.sys.SetSockString(k.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, k.want.Congestion)
}

// buildClosed brings back a socket that was not connected. One that was bound
// is bound again.
func (k *socket) buildClosed() error {
	if k.local.Port() == 0 {
		return nil
	}
	return k.bind()
}

func (k *socket) setSeqs(send, recv uint32) error {
	for _, q := range []struct {
		queue int
		seq   uint32
	}{{kernel.QueueSend, send}, {kernel.QueueRecv, recv}} {
		if err := k.sys.TCPQueue(k.fd, q.queue); err != nil {
			return err
		}
		if err := k.sys.SetTCPSeq(k.fd, q.seq); err != nil {
			return err
		}
	}
	return nil
}

// bind gives the socket its address. A socket that the program had bound
// itself still has its port.
func (k *socket) bind() error {
	err := k.sys.Bind(k.fd, sockaddr(k.want.Family, k.local))
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	return k.verifyLocal(false)
}

// verifyLocal compares the address of the socket with the one it should have.
func (k *socket) verifyLocal(whole bool) error {
	sa, err := k.sys.SockName(k.fd)
	if err != nil {
		return err
	}
	have, err := addrPort(sa)
	if err != nil {
		return err
	}
	if have.Port() != k.local.Port() || whole && have.Addr() != k.local.Addr() {
		return fmt.Errorf("socket has address %v: %w", have, unix.EADDRNOTAVAIL)
	}
	return nil
}

// filter lets only segments of the connection's new life in, and none at all
// when nobody is there to send any.
func (k *socket) filter(next uint32) error {
	if k.want.PeerGone {
		return k.sys.TCPDropAll(k.fd)
	}
	return k.sys.TCPAccept(k.fd, next-1, filterSpan) // a window probe is one below
}

// connect connects under repair. What is left of a closed connection with the
// same addresses is removed first if it is in the way.
func (k *socket) connect() error {
	err := k.sys.Connect(k.fd, sockaddr(k.want.Family, k.remote))
	for try := 1; errors.Is(err, unix.EADDRNOTAVAIL) && try < k.connectTries(); try++ {
		if k.over() {
			k.remote = netip.AddrPortFrom(k.remote.Addr(), k.remote.Port()%standIns+1)
		} else if gone := k.sys.TCPDestroy(k.netns, tuple(k.want.Family, k.local, k.remote)); gone != nil {
			return errors.Join(err, gone)
		}
		err = k.sys.Connect(k.fd, sockaddr(k.want.Family, k.remote))
	}
	if err != nil {
		return err
	}
	return k.verifyLocal(true)
}

func (k *socket) connectTries() int {
	if k.over() {
		return standIns
	}
	return 2
}

// handshake returns the options that the two ends had agreed on.
func (k *socket) handshake() []kernel.TCPOption {
	var opts []kernel.TCPOption
	if k.want.SACK {
		opts = append(opts, kernel.TCPOption{Code: kernel.TCPOptSACK})
	}
	if k.want.SndWScale != 0 || k.want.RcvWScale != 0 {
		scale := uint32(k.want.SndWScale) | uint32(k.want.RcvWScale)<<16
		opts = append(opts, kernel.TCPOption{Code: kernel.TCPOptWindow, Value: scale})
	}
	if k.want.Timestamps {
		opts = append(opts, kernel.TCPOption{Code: kernel.TCPOptTimestamps})
	}
	if k.want.MSS != 0 {
		opts = append(opts, kernel.TCPOption{Code: kernel.TCPOptMSS, Value: k.want.MSS})
	}
	return opts
}

// pushRecv puts the unread bytes into the receive queue.
func (k *socket) pushRecv() error {
	if err := k.sys.TCPQueue(k.fd, kernel.QueueRecv); err != nil {
		return err
	}
	for b := k.want.Recv; len(b) > 0; {
		n, err := k.sys.Send(k.fd, b)
		if err == nil && n == 0 || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("no room for %d unread bytes in the receive buffer or in the system's memory for TCP: %w",
				len(k.want.Recv), unix.ENOBUFS)
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	// Leave no queue chosen: with the send queue chosen, what an acknowledgement
	// makes the kernel send would be counted as sent and not go out.
	return k.sys.TCPQueue(k.fd, kernel.QueueNone)
}

// setWindow makes both directions usable at once, without a probe.
func (k *socket) setWindow(next uint32) error {
	window := uint32(firstWindow)
	if k.want.SndWScale == 0 && k.want.RcvWScale == 0 {
		window-- // 16 bits
	}
	send, recv := window, window
	if k.want.MaxWindow > 0 {
		send = min(send, k.want.MaxWindow)
	}
	if k.want.Options[optBufLock]&unix.SOCK_RCVBUF_LOCK != 0 {
		recv = min(recv, uint32(max(k.want.Options[optRcvBuf], 0))/2)
	}
	return k.sys.SetTCPWindow(k.fd, kernel.TCPWindow{
		SndWl1: next, SndWnd: send, MaxWindow: send, RcvWnd: recv, RcvWup: next,
	})
}

// listen brings a listener back. A live one keeps its port; connections that
// wait to be accepted are of the abandoned future.
func (k *socket) listen() error {
	if !k.fresh {
		if err := flush(k.sys, k.fd); err != nil {
			return err
		}
		if err := k.sys.SetSockInt(k.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, k.want.Options[optReuseAddr]); err != nil {
			return err
		}
		return k.finishListener()
	}
	// Under repair any port can be bound; without, SO_REUSEADDR must be set on
	// all its users, which is so while they are under repair.
	if err := k.sys.TCPRepair(k.fd); err != nil {
		return err
	}
	if err := k.common(true); err != nil {
		return err
	}
	if err := k.sys.Bind(k.fd, sockaddr(k.want.Family, k.local)); err != nil {
		return err
	}
	if err := leaveRepair(k.sys, k.fd, false, 1); err != nil {
		return err
	}
	if err := k.sys.Listen(k.fd, k.want.Backlog); err != nil {
		return err
	}
	if err := k.sys.SetSockInt(k.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, k.want.Options[optReuseAddr]); err != nil {
		return err
	}
	return k.finishListener()
}

func (k *socket) finishListener() error {
	k.released = true
	if !k.fresh {
		if err := k.common(true); err != nil {
			return err
		}
		if err := k.sys.Listen(k.fd, k.want.Backlog); err != nil { // sets the backlog only
			return err
		}
	}
	if n := k.want.Options[optFastOpen]; n > 0 {
		if err := k.sys.SetSockInt(k.fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, n); err != nil {
			return err
		}
	}
	return k.lockBuffers()
}

// flush takes all connections out of a listener's queue and drops them
// silently.
func flush(sys *kernel.Sys, listener int) error {
	for {
		fd, ok, err := sys.Accept(listener)
		if err != nil || !ok {
			return err
		}
		err = silence(sys, fd)
		if err = errors.Join(err, sys.Close(fd)); err != nil {
			return err
		}
	}
}

// lockBuffers gives buffers that the program had sized their size back, and
// the others to the kernel's tuning.
func (k *socket) lockBuffers() error {
	lock, ok := k.want.Options[optBufLock]
	if !ok {
		return nil
	}
	if lock&unix.SOCK_SNDBUF_LOCK != 0 {
		if err := setBuffer(k.sys, k.fd, unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, k.want.Options[optSndBuf]); err != nil {
			return err
		}
	}
	if lock&unix.SOCK_RCVBUF_LOCK != 0 {
		if err := setBuffer(k.sys, k.fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, k.want.Options[optRcvBuf]); err != nil {
			return err
		}
	}
	return k.sys.SetSockInt(k.fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, lock)
}
