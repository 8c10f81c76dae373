package kernel

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Values of TCP_REPAIR_QUEUE; linux/tcp.h.
const (
	QueueNone = 0
	QueueRecv = 1
	QueueSend = 2
)

// TCPWindow is struct tcp_repair_window of linux/tcp.h (Linux 4.8).
type TCPWindow struct {
	SndWl1    uint32 // sequence number of the segment that last updated SndWnd
	SndWnd    uint32 // window that the peer offers us, bytes
	MaxWindow uint32 // largest SndWnd ever
	RcvWnd    uint32 // window that we offer, from RcvWup on
	RcvWup    uint32 // rcv_nxt when we last sent a window
}

// TCPOption is struct tcp_repair_opt: an option that the handshake agreed on.
type TCPOption struct {
	Code, Value uint32
}

// Codes of TCPOption; the numbers of RFC 793, 2018 and 7323.
const (
	TCPOptMSS        = 2
	TCPOptWindow     = 3 // value: send scale | receive scale << 16
	TCPOptSACK       = 4
	TCPOptTimestamps = 8
)

// TCPRepair enters repair mode. The socket stops sending on its own account
// and its queues and sequence numbers become accessible. It also sets
// SO_REUSEADDR to a "force" value, which TCPRepairOff turns into 0: the caller
// remembers and sets the option.
//
// Expected errors: *Error with EPERM (no CAP_NET_ADMIN in the user namespace
// that owns the socket's network namespace, or a listening socket).
// Source: net/ipv4/tcp.c, do_tcp_setsockopt.
func (s *Sys) TCPRepair(fd int) error {
	return s.do("setsockopt TCP_REPAIR", 0, func() error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
	})
}

// TCPRepairOff leaves repair mode; with probe, a window probe is sent, which
// makes the peer answer with its window.
func (s *Sys) TCPRepairOff(fd int, probe bool) error {
	how := unix.TCP_REPAIR_OFF_NO_WP
	if probe {
		how = unix.TCP_REPAIR_OFF
	}
	return s.do("setsockopt TCP_REPAIR_OFF", 0, func() error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, how)
	})
}

// TCPQueue chooses the queue (Queue*) that sequence numbers, Peek and Send
// mean from now on. Repair mode only.
func (s *Sys) TCPQueue(fd, queue int) error {
	return s.do("setsockopt TCP_REPAIR_QUEUE", 0, func() error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, queue)
	})
}

// TCPSeq returns the sequence number of the chosen queue's end: write_seq, or
// rcv_nxt.
func (s *Sys) TCPSeq(fd int) (uint32, error) {
	var v uint32
	err := s.do("getsockopt TCP_QUEUE_SEQ", 0, func() error {
		n, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		v = uint32(n)
		return err
	})
	return v, err
}

// SetTCPSeq sets the sequence number of the chosen queue.
//
// Expected errors: *Error with EPERM unless the socket is closed.
func (s *Sys) SetTCPSeq(fd int, seq uint32) error {
	return s.do("setsockopt TCP_QUEUE_SEQ", 0, func() error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, int(int32(seq)))
	})
}

// SetTCPOptions tells a connection made under repair what its handshake would
// have agreed on. Nothing may have been sent on it.
//
// Expected errors: *Error with EPERM (not established, or used).
func (s *Sys) SetTCPOptions(fd int, opts []TCPOption) error {
	b := make([]byte, 0, 8*len(opts))
	for _, o := range opts {
		b = binary.NativeEndian.AppendUint32(b, o.Code)
		b = binary.NativeEndian.AppendUint32(b, o.Value)
	}
	return s.do("setsockopt TCP_REPAIR_OPTIONS", 0, func() error {
		return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_OPTIONS, string(b))
	})
}

// SetTCPWindow sets the windows of a connection under repair.
//
// Expected errors: *Error with EINVAL (MaxWindow < SndWnd, or RcvWup beyond
// rcv_nxt).
func (s *Sys) SetTCPWindow(fd int, w TCPWindow) error {
	var b []byte
	for _, v := range []uint32{w.SndWl1, w.SndWnd, w.MaxWindow, w.RcvWnd, w.RcvWup} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return s.do("setsockopt TCP_REPAIR_WINDOW", 0, func() error {
		return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, string(b))
	})
}

// TCPInfo is the part of struct tcp_info that streams need.
type TCPInfo struct {
	State     uint8  // TCP_ESTABLISHED, ... of linux/tcp_states.h
	Options   uint8  // TCPI_OPT_*
	SndWScale uint8  // valid with TCPI_OPT_WSCALE
	RcvWScale uint8  //
	Unacked   uint32 // segments not acknowledged; listeners: length of the accept queue
	Sacked    uint32 // listeners: the backlog
	NotSent   uint32 // bytes never sent
}

// TCPInfo returns the state of a TCP socket.
//
// Source: tcp(7), TCP_INFO; offsets of linux/tcp.h.
func (s *Sys) TCPInfo(fd int) (TCPInfo, error) {
	var b [256]byte
	err := s.do("getsockopt TCP_INFO", 0, func() error {
		return getsockoptBytes(fd, unix.IPPROTO_TCP, unix.TCP_INFO, b[:])
	})
	return TCPInfo{
		State:     b[0],
		Options:   b[5],
		SndWScale: b[6] & 15,
		RcvWScale: b[6] >> 4,
		Unacked:   binary.NativeEndian.Uint32(b[24:]),
		Sacked:    binary.NativeEndian.Uint32(b[28:]),
		NotSent:   binary.NativeEndian.Uint32(b[144:]),
	}, err
}

// TCPWindow returns the windows of a connection under repair.
//
// Expected errors: *Error with EPERM outside of repair mode.
func (s *Sys) TCPWindow(fd int) (TCPWindow, error) {
	var b [20]byte
	err := s.do("getsockopt TCP_REPAIR_WINDOW", 0, func() error {
		return getsockoptBytes(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, b[:])
	})
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }
	return TCPWindow{SndWl1: word(0), SndWnd: word(1), MaxWindow: word(2), RcvWnd: word(3), RcvWup: word(4)}, err
}

// TCPDropAll makes a socket ignore every incoming packet.
//
// Source: socket(7), SO_ATTACH_FILTER.
func (s *Sys) TCPDropAll(fd int) error {
	return s.attach(fd, []unix.SockFilter{{Code: bpfRet, K: 0}})
}

// TCPAccept makes a socket ignore incoming packets except those whose sequence
// number is one of the span numbers from first on, and all resets.
func (s *Sys) TCPAccept(fd int, first, span uint32) error {
	const flagRST = 4
	return s.attach(fd, []unix.SockFilter{
		{Code: bpfLoadWord, K: 4}, // sequence number of the TCP header
		{Code: bpfSub, K: first},
		{Code: bpfJumpGE, Jt: 3, K: span},
		{Code: bpfLoadByte, K: 13}, // flags of the TCP header
		{Code: bpfJumpSet, Jt: 1, K: flagRST},
		{Code: bpfRet, K: ^uint32(0)},
		{Code: bpfRet, K: 0},
	})
}

// TCPAcceptAll removes what TCPDropAll or TCPAccept attached.
//
// Expected errors: *Error with ENOENT when there is no filter.
func (s *Sys) TCPAcceptAll(fd int) error {
	return s.do("setsockopt SO_DETACH_FILTER", 0, func() error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	})
}

// Classic BPF opcodes; linux/filter.h.
const (
	bpfLoadWord = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	bpfLoadByte = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
	bpfSub      = unix.BPF_ALU | unix.BPF_SUB | unix.BPF_K
	bpfJumpGE   = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	bpfJumpSet  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	bpfRet      = unix.BPF_RET | unix.BPF_K
)

func (s *Sys) attach(fd int, prog []unix.SockFilter) error {
	return s.do("setsockopt SO_ATTACH_FILTER", 0, func() error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	})
}
