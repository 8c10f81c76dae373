package nsinit

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// sockFD is the number under which init inherits its socket.
const sockFD = 3

const (
	maxPacket = 160 << 10 // SO_SNDBUF is 212992 by default
	maxFDs    = 64
)

// Spec is a program to start. Its descriptors are those that go with it,
// numbered from 0; it has no others.
type Spec struct {
	PID  int      `json:"pid"` // wanted inside, 0 = any
	Path string   `json:"path"`
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	Dir  string   `json:"dir"`
}

// message is what travels: a Spec to init; an answer (ID set), or an exit.
type message struct {
	ID     uint64 `json:"id,omitempty"`
	Spec   *Spec  `json:"spec,omitempty"`
	PID    int    `json:"pid,omitempty"`
	Exit   bool   `json:"exit,omitempty"`
	Status uint32 `json:"status,omitempty"`
	Error  string `json:"error,omitempty"`
	Errno  int    `json:"errno,omitempty"`
}

func send(sock int, m message, fds ...int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if len(b) > maxPacket {
		return fmt.Errorf("arguments and environment of %d bytes: %w", len(b), unix.E2BIG)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		if err := unix.Sendmsg(sock, b, oob, nil, unix.MSG_NOSIGNAL); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// errGone: the other end was closed.
var errGone = errors.New("nsinit: the other end is gone")

func receive(sock int) (message, []int, error) {
	buf, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*maxFDs))
	for {
		n, k, _, _, err := unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return message{}, nil, fmt.Errorf("nsinit: receive: %w", err)
		case n == 0:
			return message{}, nil, errGone
		}
		fds, err := rights(oob[:k])
		var m message
		if err == nil {
			err = json.Unmarshal(buf[:n], &m)
		}
		if err != nil {
			closeAll(fds)
			return message{}, nil, fmt.Errorf("nsinit: receive: %w", err)
		}
		return m, fds, nil
	}
}

func rights(oob []byte) ([]int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return fds, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) //nolint:errcheck // descriptors that are dropped
	}
}
