package stream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// Set is the inventory of the TCP sockets of a pod's frozen processes. It
// holds a duplicate of each: close it before the processes go on, or a socket
// that they close stays open.
type Set struct {
	streams   *Streams
	ends      []*end
	byCookie  map[uint64]*end
	slots     []Slot
	obstacles []Obstacle
}

// end is a live socket.
type end struct {
	sys      *kernel.Sys
	fd       int // our duplicate; -1 when closed
	rank     job.Rank
	at       int // descriptor of the first process that has it
	flags    int
	local    netip.AddrPort
	remote   netip.AddrPort // zero when not connected
	tcp      image.TCPEnd   // filled step by step
	writeSeq uint32         // end of the data we wrote
	gotSend  bool
	gotRecv  bool
	over     bool // was connected; both directions ended
	waiting  int  // listeners: connections that wait to be accepted

	// Of trees; see NewTree.
	peer    *end
	drained bool // tcp.Recv has also what the other end still holds
	refused []Obstacle
}

// Scan lists the TCP sockets of frozen processes. Other sockets are passed by.
// What cannot be captured does not fail Scan; see Set.Obstacles.
//
// Precondition: every thread of the processes is stopped, and the caller may
// trace them (ptrace(2), PTRACE_MODE_ATTACH).
// Expected errors: kernel errors with ESRCH, EPERM, EMFILE.
func (s *Streams) Scan(ctx context.Context, procs []Process) (_ *Set, err error) {
	set := &Set{streams: s, byCookie: map[uint64]*end{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, set.Close())
		}
	}()
	inodes := map[string]*end{} // "socket:[123]" -> end, nil: not TCP
	for _, p := range procs {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("stream: scan: %w", context.Cause(ctx))
		}
		if err := set.scanProcess(p, inodes); err != nil {
			return nil, fmt.Errorf("stream: scan rank %d: %w", p.Rank, err)
		}
	}
	err = each(ctx, len(set.ends), grain, func(i int) error {
		e := set.ends[i]
		if err := e.describe(); err != nil {
			return fmt.Errorf("stream: scan rank %d descriptor %d: %w", e.rank, e.at, err)
		}
		return nil
	})
	if err == nil && s.local {
		err = set.join()
	}
	for _, e := range set.ends {
		for _, o := range e.refused {
			o.Rank, o.FD, o.Flow = e.rank, e.at, e.flow()
			set.obstacles = append(set.obstacles, o)
		}
	}
	return set, err
}

func (set *Set) scanProcess(p Process, inodes map[string]*end) (err error) {
	sys := set.streams.sys
	pidfd, err := sys.PidfdOpen(p.PID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.Close(pidfd)) }()
	dir := "/proc/" + strconv.Itoa(p.PID) + "/fd"
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		fd, err := strconv.Atoi(n.Name())
		if err != nil {
			return err
		}
		link, err := os.Readlink(dir + "/" + n.Name())
		if err != nil {
			return err
		}
		if !strings.HasPrefix(link, "socket:[") {
			continue
		}
		e, known := inodes[link]
		if !known {
			if e, err = set.open(p, pidfd, fd); err != nil {
				return fmt.Errorf("descriptor %d: %w", fd, err)
			}
			inodes[link] = e
		}
		if e == nil {
			continue
		}
		cloexec, err := closeOnExec(p.PID, fd)
		if err != nil {
			return err
		}
		set.slots = append(set.slots, Slot{Rank: p.Rank, PID: p.PID, FD: fd, CloExec: cloexec, Cookie: e.tcp.Cookie})
	}
	return nil
}

// closeOnExec reads the descriptor's own flag.
func closeOnExec(pid, fd int) (bool, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "flags:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32)
			return n&unix.O_CLOEXEC != 0, err
		}
	}
	return false, fmt.Errorf("fdinfo of %d has no flags", fd)
}

// open duplicates a socket, when it is a TCP socket.
func (set *Set) open(p Process, pidfd, at int) (*end, error) {
	sys := set.streams.sys
	fd, err := sys.PidfdGetfd(pidfd, p.PID, at)
	if err != nil {
		return nil, err
	}
	e := &end{sys: sys, fd: fd, rank: p.Rank, at: at}
	proto, err := e.tcpProtocol()
	if proto != unix.IPPROTO_TCP || err != nil {
		if proto == unix.IPPROTO_MPTCP {
			set.obstacles = append(set.obstacles, Obstacle{Rank: p.Rank, FD: at, Reason: "multipath TCP is not supported"})
		}
		return nil, errors.Join(err, sys.Close(fd))
	}
	if e.tcp.Cookie, err = sys.SockCookie(fd); err != nil {
		return nil, errors.Join(err, sys.Close(fd))
	}
	set.ends = append(set.ends, e)
	set.byCookie[e.tcp.Cookie] = e
	return e, nil
}

// tcpProtocol returns the protocol of an internet stream socket, else 0.
func (e *end) tcpProtocol() (int, error) {
	domain, err := e.sys.SockInt(e.fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_INET && domain != unix.AF_INET6 {
		return 0, err
	}
	e.tcp.Family = domain
	return e.sys.SockInt(e.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
}

// describe reads what does not need repair mode.
func (e *end) describe() (err error) {
	if err := e.describeState(); err != nil {
		return err
	}
	if e.flags, err = e.sys.FileFlags(e.fd); err != nil {
		return err
	}
	if e.local, err = e.address(e.sys.SockName); err != nil {
		return err
	}
	e.tcp.Local = e.local.String()
	switch e.tcp.State {
	case stateClose, stateListen:
	default:
		e.remote, err = e.address(e.sys.PeerName)
		if errors.Is(err, unix.ENOTCONN) { // closed this moment, or connecting
			err = e.describeState()
			break
		}
		e.tcp.Remote = e.remote.String()
	}
	if err != nil {
		return err
	}
	listener := e.tcp.State == stateListen
	if e.tcp.Options, err = readOptions(e.sys, e.fd, e.tcp.Family, listener); err != nil {
		return err
	}
	if e.tcp.Congestion, err = e.sys.SockString(e.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil {
		return err
	}
	return e.inspect()
}

func (e *end) address(get func(int) (unix.Sockaddr, error)) (netip.AddrPort, error) {
	sa, err := get(e.fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return addrPort(sa)
}

// describeState reads what tcp_info tells.
func (e *end) describeState() error {
	const timestamps, sack, wscale = 1, 2, 4 // TCPI_OPT_*
	info, err := e.sys.TCPInfo(e.fd)
	if err != nil {
		return err
	}
	e.tcp.State = info.State
	e.tcp.Timestamps = info.Options&timestamps != 0
	e.tcp.SACK = info.Options&sack != 0
	e.tcp.SndWScale, e.tcp.RcvWScale = 0, 0
	if info.Options&wscale != 0 {
		e.tcp.SndWScale, e.tcp.RcvWScale = info.SndWScale, info.RcvWScale
	}
	if info.State == stateListen {
		e.tcp.Backlog = int(info.Sacked) // sk_max_ack_backlog
		e.waiting = int(info.Unacked)
	}
	return nil
}

// Obstacles lists what stands against a capture: connections being set up,
// urgent data, unsupported protocols.
func (set *Set) Obstacles() []Obstacle { return set.obstacles }

// Refusal returns the obstacles as an error, or nil when there are none.
func (set *Set) Refusal() error {
	if len(set.obstacles) == 0 {
		return nil
	}
	return &Refusal{Obstacles: set.obstacles}
}

func (e *end) refuse(why string, retry bool) {
	e.refused = append(e.refused, Obstacle{Reason: why, Retry: retry})
}

// inspect looks for what a capture cannot represent.
func (e *end) inspect() error {
	if e.tcp.State == stateSynSent || e.tcp.State == stateSynRecv {
		e.refuse("connection is being set up", true)
	}
	ulp, err := e.sys.SockString(e.fd, unix.IPPROTO_TCP, unix.TCP_ULP)
	if err != nil && !unknownOption(err) {
		return err
	}
	if ulp != "" {
		e.refuse("protocol layer "+ulp+" is not supported", false)
	}
	if e.tcp.State == stateListen {
		return nil
	}
	if off, err := e.sys.SockInt(e.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF); err == nil && off >= 0 {
		e.refuse("a peek offset is not supported", false)
	}
	if e.tcp.State == stateClose {
		ready, err := e.sys.Poll(e.fd, unix.POLLRDHUP, 0)
		e.over = ready&unix.POLLRDHUP != 0 && e.local.Port() != 0
		e.tcp.Reset = e.over && ready&unix.POLLERR != 0
		return err
	}
	// MSG_OOB fails with EINVAL when no urgent byte is waiting or announced.
	if _, err := e.sys.Peek(e.fd, make([]byte, 1), unix.MSG_OOB); err == nil {
		e.refuse("urgent data is not supported", true)
	}
	return nil
}

func (e *end) flow() podapi.Flow { return podapi.Flow{Local: e.tcp.Local, Remote: e.tcp.Remote} }

// connected reports whether e has a stream to capture.
func (e *end) connected() bool { return e.tcp.Remote != "" && e.tcp.State != stateClose }

// name is for errors.
func (e *end) name() string {
	return fmt.Sprintf("rank %d descriptor %d tcp %s-%s", e.rank, e.at, e.tcp.Local, e.tcp.Remote)
}

// Slots lists which descriptors are sockets of the set.
func (set *Set) Slots() []Slot { return set.slots }

// At returns the identity of the socket behind a descriptor of a process.
func (set *Set) At(pid, fd int) (cookie uint64, ok bool) {
	for _, s := range set.slots {
		if s.PID == pid && s.FD == fd {
			return s.Cookie, true
		}
	}
	return 0, false
}

// Close gives the duplicates back. It may be called again.
func (set *Set) Close() error {
	var errs []error
	for _, e := range set.ends {
		if e.fd >= 0 {
			errs = append(errs, e.sys.Close(e.fd))
			e.fd = -1
		}
	}
	return errors.Join(errs...)
}
