package pid1

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	maxPacket = 16 << 10 // bytes of a message
	maxFDs    = 64       // descriptors beside it (SCM_MAX_FD is 253)
	maxFile   = 32 << 20 // bytes of a memory file; arguments and environment are 6 MB at most (execve(2))
)

// op is what is asked of init.
type op string

const (
	opStart  op = "start"  // memory file with a Spec, then its descriptors 0, 1, 2, ...
	opSignal op = "signal" // send Signal to every process of the namespace but init
)

// request is a message to init.
type request struct {
	ID     uint64 `json:"id"`
	Op     op     `json:"op"`
	Signal int    `json:"signal,omitempty"`
}

// message is one of init: an answer, or news (ID 0).
type message struct {
	ID     uint64 `json:"id"`
	Ready  bool   `json:"ready,omitempty"` // ID 0: the namespaces are complete
	PID    int    `json:"pid,omitempty"`   // started, or ended
	Exit   bool   `json:"exit,omitempty"`  // ID 0: PID ended with Status
	Status uint32 `json:"status,omitempty"`
	Error  string `json:"error,omitempty"` // with ID 0: why init gives up
	Errno  int    `json:"errno,omitempty"`
}

// ErrGone says that the other end of the socketpair is closed.
var ErrGone = errors.New("the other end is gone")

// send sends one message with descriptors.
func send(sock int, v any, fds ...int) error {
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
		if err := unix.Sendmsg(sock, b, oob, nil, unix.MSG_NOSIGNAL); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receive receives one message; the descriptors are the caller's and have
// close-on-exec set.
//
// Expected errors: ErrGone.
func receive(sock int, v any) ([]int, error) {
	buf, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(maxFDs*4))
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
	fds, err := rights(oob[:oobn])
	switch {
	case err != nil:
	case n == 0:
		err = ErrGone
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("receive message: truncated")
	default:
		if err = json.Unmarshal(buf[:n], v); err != nil {
			err = fmt.Errorf("decode message: %w", err)
		}
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	return fds, nil
}

// rights returns the descriptors of a control message, also beside an error.
func rights(oob []byte) ([]int, error) {
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
			return fds, fmt.Errorf("parse descriptors: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // descriptors of a message that is dropped
	}
}

// MemoryFile returns a memory file that holds v as JSON, for ReadMemoryFile in
// a process that inherits it. The caller closes it.
//
// Source: memfd_create(2).
func MemoryFile(name string, v any) (*os.File, error) {
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

// ReadMemoryFile decodes what MemoryFile wrote; f stays open.
//
// Expected errors: a file that is no memory file, too large, or not of v's kind.
func ReadMemoryFile(f *os.File, v any) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > maxFile {
		return fmt.Errorf("%d bytes are too many", st.Size())
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
