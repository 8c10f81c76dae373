package stream

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// option is an int option of a socket that a recovery brings back.
type option struct {
	name  string // key of image.TCPEnd.Options
	level int
	opt   int
	where uint8
}

// Where an option makes sense.
const (
	onConn   uint8 = 1 << iota // connections and closed sockets
	onListen                   // listeners
	onV6                       // IPv6 sockets only
)

// onAny is every socket.
const onAny = onConn | onListen

// plainOptions lists the options that can be set at any time before the socket
// is connected. Keys never change: images hold them.
func plainOptions() []option {
	return []option{
		{"reuseport", unix.SOL_SOCKET, unix.SO_REUSEPORT, onAny},
		{"keepalive", unix.SOL_SOCKET, unix.SO_KEEPALIVE, onAny},
		{"oobinline", unix.SOL_SOCKET, unix.SO_OOBINLINE, onAny},
		{"dontroute", unix.SOL_SOCKET, unix.SO_DONTROUTE, onAny},
		{"priority", unix.SOL_SOCKET, unix.SO_PRIORITY, onAny},
		{"rcvlowat", unix.SOL_SOCKET, unix.SO_RCVLOWAT, onAny},
		{"busy_poll", unix.SOL_SOCKET, unix.SO_BUSY_POLL, onAny},
		{"mark", unix.SOL_SOCKET, unix.SO_MARK, onAny},
		{"nodelay", unix.IPPROTO_TCP, unix.TCP_NODELAY, onAny},
		{"keepidle", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, onAny},
		{"keepintvl", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, onAny},
		{"keepcnt", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, onAny},
		{"syncnt", unix.IPPROTO_TCP, unix.TCP_SYNCNT, onAny},
		{"linger2", unix.IPPROTO_TCP, unix.TCP_LINGER2, onAny},
		{"user_timeout", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, onAny},
		{"notsent_lowat", unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, onAny},
		{"quickack", unix.IPPROTO_TCP, unix.TCP_QUICKACK, onConn},
		{"defer_accept", unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, onListen},
		{"tos", unix.IPPROTO_IP, unix.IP_TOS, onAny},
		{"ttl", unix.IPPROTO_IP, unix.IP_TTL, onAny},
		{"mtu_discover", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, onAny},
		{"freebind", unix.IPPROTO_IP, unix.IP_FREEBIND, onAny},
		{"bind_no_port", unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, onAny},
		{"v6only", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, onListen | onV6}, // bind changes that of a connection
		{"v6_tclass", unix.IPPROTO_IPV6, unix.IPV6_TCLASS, onAny | onV6},
		{"v6_hops", unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, onAny | onV6},
	}
}

// Keys of options that need care of their own.
const (
	optReuseAddr = "reuseaddr" // repair mode changes it
	optSndBuf    = "sndbuf"    // as getsockopt tells: twice what was asked for
	optRcvBuf    = "rcvbuf"
	optBufLock   = "buf_lock"      // SOCK_SNDBUF_LOCK 1, SOCK_RCVBUF_LOCK 2: set by the program, not tuned
	optLinger    = "linger"        // seconds; -1: off
	optRcvTimeo  = "rcvtimeo_us"   // 0: none
	optSndTimeo  = "sndtimeo_us"   //
	optCork      = "cork"          // after the refill
	optMaxSeg    = "user_maxseg"   // listeners: TCP_MAXSEG
	optFastOpen  = "fastopen_qlen" // listeners
)

func (o option) applies(family int, listener bool) bool {
	if o.where&onV6 != 0 && family != unix.AF_INET6 {
		return false
	}
	if listener {
		return o.where&onListen != 0
	}
	return o.where&onConn != 0
}

// readOptions reads everything that writeOptions and finish set. Options that
// the kernel does not know are left out.
func readOptions(sys *kernel.Sys, fd, family int, listener bool) (map[string]int, error) {
	m := make(map[string]int, 36)
	for _, o := range plainOptions() {
		if !o.applies(family, listener) {
			continue
		}
		if err := readInt(sys, m, fd, o); err != nil {
			return nil, err
		}
	}
	more := []option{
		{optReuseAddr, unix.SOL_SOCKET, unix.SO_REUSEADDR, onAny},
		{optSndBuf, unix.SOL_SOCKET, unix.SO_SNDBUF, onAny},
		{optRcvBuf, unix.SOL_SOCKET, unix.SO_RCVBUF, onAny},
		{optBufLock, unix.SOL_SOCKET, unix.SO_BUF_LOCK, onAny},
		{optCork, unix.IPPROTO_TCP, unix.TCP_CORK, onConn},
		{optFastOpen, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, onListen},
		{optMaxSeg, unix.IPPROTO_TCP, unix.TCP_MAXSEG, onListen},
	}
	for _, o := range more {
		if !o.applies(family, listener) {
			continue
		}
		if err := readInt(sys, m, fd, o); err != nil {
			return nil, err
		}
	}
	return m, readTimes(sys, m, fd)
}

func readInt(sys *kernel.Sys, m map[string]int, fd int, o option) error {
	v, err := sys.SockInt(fd, o.level, o.opt)
	switch {
	case err == nil:
		m[o.name] = v
	case !unknownOption(err):
		return fmt.Errorf("option %s: %w", o.name, err)
	}
	return nil
}

func unknownOption(err error) bool {
	return errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP)
}

func readTimes(sys *kernel.Sys, m map[string]int, fd int) error {
	on, sec, err := sys.SockLinger(fd)
	if err != nil {
		return fmt.Errorf("option %s: %w", optLinger, err)
	}
	if m[optLinger] = -1; on {
		m[optLinger] = sec
	}
	for name, opt := range timeouts() {
		us, err := sys.SockTimeout(fd, opt)
		if err != nil {
			return fmt.Errorf("option %s: %w", name, err)
		}
		m[name] = int(us)
	}
	return nil
}

func timeouts() map[string]int {
	return map[string]int{optRcvTimeo: unix.SO_RCVTIMEO, optSndTimeo: unix.SO_SNDTIMEO}
}

// writeOptions sets those plain options and times of m that the socket has
// otherwise. Buffers, SO_REUSEADDR and TCP_CORK are left to build and finish.
func writeOptions(sys *kernel.Sys, m map[string]int, fd, family int, listener bool) error {
	for _, o := range plainOptions() {
		if want, ok := m[o.name]; ok && o.applies(family, listener) {
			if err := writeInt(sys, fd, o, want); err != nil {
				return err
			}
		}
	}
	if want, ok := m[optMaxSeg]; ok && listener && want > 0 {
		// The default is the kernel's own and cannot be told from a choice: a
		// value that it will not take is one that nobody set.
		_ = writeInt(sys, fd, option{optMaxSeg, unix.IPPROTO_TCP, unix.TCP_MAXSEG, onListen}, want)
	}
	if want, ok := m[optLinger]; ok {
		if err := sys.SetSockLinger(fd, want >= 0, max(want, 0)); err != nil {
			return fmt.Errorf("option %s: %w", optLinger, err)
		}
	}
	for name, opt := range timeouts() {
		if want, ok := m[name]; ok {
			if err := sys.SetSockTimeout(fd, opt, int64(want)); err != nil {
				return fmt.Errorf("option %s: %w", name, err)
			}
		}
	}
	return nil
}

// writeInt sets an option when it differs: many need no privilege then.
func writeInt(sys *kernel.Sys, fd int, o option, want int) error {
	if have, err := sys.SockInt(fd, o.level, o.opt); err == nil && have == want {
		return nil
	}
	if err := sys.SetSockInt(fd, o.level, o.opt, want); err != nil && !unknownOption(err) {
		return fmt.Errorf("option %s to %d: %w", o.name, want, err)
	}
	return nil
}

// bufferSlack is what a queue needs beside the bytes: the kernel's bookkeeping
// of every segment.
const bufferSlack = 128 << 10

// room returns the buffer size (as getsockopt tells) that holds n bytes.
func room(n int) int { return n + n/4 + bufferSlack }

// growBuffer makes a buffer hold at least size, or as much as is permitted.
// Above net.core.[rw]mem_max this needs privilege in the initial user
// namespace; pods have large buffers from the start (net.ipv4.tcp_[rw]mem), so
// that it is not needed there.
func (k *socket) growBuffer(opt, force, size int) error {
	have, err := k.sys.SockInt(k.fd, unix.SOL_SOCKET, opt)
	if err != nil || have >= size {
		return err
	}
	err = k.sys.SetSockInt(k.fd, unix.SOL_SOCKET, force, size/2)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	// Without privilege a wish above the limit is cut down to it, which may be
	// less than the socket has, and there is no way back: try elsewhere first.
	limit, err := k.permitted(opt, size)
	if err != nil || limit <= have {
		return err
	}
	return k.sys.SetSockInt(k.fd, unix.SOL_SOCKET, opt, size/2)
}

// permitted returns what a buffer of a socket becomes when size is asked for.
func (k *socket) permitted(opt, size int) (got int, err error) {
	fd, err := k.sys.Socket(k.netns, k.want.Family)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, k.sys.Close(fd)) }()
	if err := k.sys.SetSockInt(fd, unix.SOL_SOCKET, opt, size/2); err != nil {
		return 0, err
	}
	return k.sys.SockInt(fd, unix.SOL_SOCKET, opt)
}

// setBuffer sets a buffer to size, as getsockopt tells it, as far as permitted.
func setBuffer(sys *kernel.Sys, fd, opt, force, size int) error {
	err := sys.SetSockInt(fd, unix.SOL_SOCKET, force, size/2)
	if errors.Is(err, unix.EPERM) {
		err = sys.SetSockInt(fd, unix.SOL_SOCKET, opt, size/2)
	}
	return err
}
