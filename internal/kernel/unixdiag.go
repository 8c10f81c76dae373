package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// UnixInfo is what the kernel tells of an AF_UNIX socket.
type UnixInfo struct {
	Type     int    // SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET
	PeerIno  uint64 // inode of the other end; 0 when that is closed or there is none
	Shutdown int    // bit 0: no more receiving, bit 1: no more sending
	Named    bool   // bound to a name

	Peered  bool     // it has another end, which may be closed or not accepted yet
	Name    []byte   // sun_path without a path's closing zero; abstract names begin with one
	FileIno uint32   // of the file with the name, its lower 32 bits
	Waiting []uint64 // listeners: inodes of the sockets that wait to be accepted, in order
	Backlog int      // listeners
}

// Numbers of linux/sock_diag.h and linux/unix_diag.h.
const (
	sockDiagByFamily  = 20
	unixDiagShowName  = 1
	unixDiagShowVFS   = 2
	unixDiagShowPeer  = 4
	unixDiagShowIcons = 8
	unixDiagShowQueue = 16
	unixDiagAttrName  = 0
	unixDiagAttrVFS   = 1
	unixDiagAttrPeer  = 2
	unixDiagAttrIcons = 3
	unixDiagAttrQueue = 4
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
	q = le.AppendUint32(q, unixDiagShowName|unixDiagShowVFS|unixDiagShowPeer|unixDiagShowIcons|unixDiagShowQueue)
	q = le.AppendUint64(q, ^uint64(0)) // any cookie
	if err := unix.Sendto(fd, q, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return info, err
	}
	buf := make([]byte, 32<<10)
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
			info.Name = slices.Clone(v)
			if v[0] != 0 {
				info.Name, _, _ = bytes.Cut(info.Name, []byte{0})
			}
		case kind == unixDiagAttrVFS && len(v) >= 8:
			info.FileIno = le.Uint32(v)
		case kind == unixDiagAttrPeer && len(v) >= 4:
			info.PeerIno, info.Peered = uint64(le.Uint32(v)), true
		case kind == unixDiagAttrIcons:
			for ; len(v) >= 4; v = v[4:] {
				info.Waiting = append(info.Waiting, uint64(le.Uint32(v)))
			}
		case kind == unixDiagAttrQueue && len(v) >= 8:
			info.Backlog = int(le.Uint32(v[4:]))
		case kind == unixDiagAttrShut && len(v) >= 1:
			info.Shutdown = int(v[0])
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return info, nil
}
