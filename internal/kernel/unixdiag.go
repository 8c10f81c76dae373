package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// UnixInfo is what the kernel tells of an AF_UNIX socket.
type UnixInfo struct {
	Type     int    // SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET
	PeerIno  uint64 // inode of the other end; 0 when that is closed or there is none
	Shutdown int    // bit 0: no more receiving, bit 1: no more sending
	Named    bool   // bound to a name
}

// Numbers of linux/sock_diag.h and linux/unix_diag.h.
const (
	sockDiagByFamily  = 20
	unixDiagShowName  = 1
	unixDiagShowPeer  = 4
	unixDiagAttrName  = 0
	unixDiagAttrPeer  = 2
	unixDiagAttrShut  = 6
	unixDiagHeaderLen = 16
)

// UnixSocket asks for the AF_UNIX socket with the given inode, in the calling
// thread's network namespace.
//
// Expected errors: *Error with ENOENT (no such socket here, or the kernel is
// built without CONFIG_UNIX_DIAG). Source: sock_diag(7).
func (s *Sys) UnixSocket(ino uint64) (UnixInfo, error) {
	var info UnixInfo
	err := s.do("sock_diag unix", 0, func() (err error) {
		info, err = unixSocket(ino)
		return err
	})
	return info, err
}

func unixSocket(ino uint64) (info UnixInfo, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	limit := unix.NsecToTimeval(int64(2 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return info, err
	}
	le := binary.LittleEndian
	var q []byte
	q = le.AppendUint32(q, 16+24) // struct nlmsghdr
	q = le.AppendUint16(q, sockDiagByFamily)
	q = le.AppendUint16(q, unix.NLM_F_REQUEST)
	q = append(q, make([]byte, 8)...)
	q = append(q, unix.AF_UNIX, 0, 0, 0) // struct unix_diag_req
	q = le.AppendUint32(q, ^uint32(0))
	q = le.AppendUint32(q, uint32(ino)) //nolint:gosec // inodes of sockets are 32 bits
	q = le.AppendUint32(q, unixDiagShowName|unixDiagShowPeer)
	q = le.AppendUint64(q, ^uint64(0)) // any cookie
	if err := unix.Sendto(fd, q, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return info, err
	}
	buf := make([]byte, 8192)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return info, err
		}
		return parseUnixDiag(buf[:n])
	}
}

// parseUnixDiag parses one answer.
func parseUnixDiag(b []byte) (info UnixInfo, err error) {
	le := binary.LittleEndian
	if len(b) < 20 {
		return info, fmt.Errorf("answer of %d bytes", len(b))
	}
	if le.Uint16(b[4:]) == unix.NLMSG_ERROR {
		return info, unix.Errno(-int32(le.Uint32(b[16:]))) //nolint:gosec // a negative errno
	}
	if len(b) < 16+unixDiagHeaderLen {
		return info, fmt.Errorf("answer of %d bytes", len(b))
	}
	info.Type = int(b[17])
	for b = b[16+unixDiagHeaderLen:]; len(b) >= 4; {
		size, kind := int(le.Uint16(b)), le.Uint16(b[2:])
		if size < 4 || size > len(b) {
			return info, fmt.Errorf("attribute of %d bytes", size)
		}
		v := b[4:size]
		switch {
		case kind == unixDiagAttrName && len(v) > 0:
			info.Named = true
		case kind == unixDiagAttrPeer && len(v) >= 4:
			info.PeerIno = uint64(le.Uint32(v))
		case kind == unixDiagAttrShut && len(v) >= 1:
			info.Shutdown = int(v[0])
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return info, nil
}
