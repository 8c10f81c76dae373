package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The protocol between supervisor and pod-init: JSON messages over a
// SOCK_SEQPACKET socketpair, one packet each, with descriptors beside them.
// The supervisor asks, pod-init answers with the same ID; ID 0 marks what
// pod-init says by itself. What may be large (arguments, environment) travels
// in a memory file.

// maxPacket bounds one message, in bytes.
const maxPacket = 16 << 10

// maxFDs bounds the descriptors of one message (SCM_MAX_FD is 253).
const maxFDs = 64

// initOp is what the supervisor asks.
type initOp string

const (
	opStart  initOp = "start"  // start a process: memory file with a procSpec, then its descriptors 0, 1, 2, ...
	opSignal initOp = "signal" // send Signal to every process of the pod but pod-init
)

// initRequest is a message to pod-init.
type initRequest struct {
	ID     uint64 `json:"id"`
	Op     initOp `json:"op"`
	Signal int    `json:"signal,omitempty"`
}

// procSpec describes a process to start. Its descriptors are those of the
// message, numbered from 0; it inherits no others.
type procSpec struct {
	PID     int      `json:"pid"` // wanted, 0 = any
	Path    string   `json:"path"`
	Argv    []string `json:"argv"`
	Env     []string `json:"env"`
	Dir     string   `json:"dir"`
	Umask   int      `json:"umask"`
	Pending bool     `json:"pending,omitempty"` // leave the process stopped (SIGSTOP) before its first instruction
}

// initMessage is a message of pod-init: an answer, or the end of a process.
type initMessage struct {
	ID     uint64 `json:"id"`
	Ready  bool   `json:"ready,omitempty"` // ID 0: the namespaces are complete
	PID    int    `json:"pid,omitempty"`   // started, or ended
	Exit   bool   `json:"exit,omitempty"`  // ID 0: PID ended with Status
	Status uint32 `json:"status,omitempty"`
	Error  string `json:"error,omitempty"`
	Errno  int    `json:"errno,omitempty"`
}

// sendPacket sends one message with descriptors.
func sendPacket(sock int, v any, fds ...int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(b) > maxPacket {
		return fmt.Errorf("message of %d bytes is too long", len(b))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(sock, b, oob, nil, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// errPeerGone says that the other end of the socketpair is closed.
var errPeerGone = errors.New("the other end is gone")

// recvPacket receives one message; the descriptors are the caller's and have
// close-on-exec set.
//
// Expected errors: errPeerGone.
func recvPacket(sock int, v any) ([]int, error) {
	buf := make([]byte, maxPacket)
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	var n, oobn, flags int
	var err error
	for {
		n, oobn, flags, _, err = unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("receive message: %w", err)
	}
	fds, err := parseRights(oob[:oobn])
	if err != nil {
		return nil, err
	}
	switch {
	case n == 0:
		closeFDs(fds)
		return nil, errPeerGone
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		closeFDs(fds)
		return nil, errors.New("receive message: truncated")
	}
	if err := json.Unmarshal(buf[:n], v); err != nil {
		closeFDs(fds)
		return nil, fmt.Errorf("decode message: %w", err)
	}
	return fds, nil
}

func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var fds []int
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			closeFDs(fds)
			return nil, fmt.Errorf("parse descriptors: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // descriptors of a message that is dropped
	}
}

// memoryFile returns a memory file that holds v as JSON.
func memoryFile(name string, v any) (*os.File, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", name, err)
	}
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(b, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", name, err), f.Close())
	}
	return f, nil
}

// maxProcSpec bounds a procSpec: the kernel allows about 6 MB of arguments and
// environment (execve(2)).
const maxProcSpec = 32 << 20

// readMemoryFile decodes what memoryFile wrote.
func readMemoryFile(f *os.File, v any) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > maxProcSpec {
		return fmt.Errorf("%d bytes are too many", st.Size())
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
