package local

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

// Descriptors that a holder and a node-init are started with.
const (
	fdConfig = 3 // read end of a pipe: one JSON document, then EOF
	fdReport = 4 // write end of a pipe: JSON lines
	fdLocks  = 5 // holder only: the locks on runtime and state directory
)

// holderConfig is what the booting command tells the holder.
type holderConfig struct {
	paths.Dirs
	Subnet netip.Prefix `json:"subnet"`
	Nodes  int          `json:"nodes"`
	Spares int          `json:"spares"`
	Slots  int          `json:"slots"` // ranks per node, 0 = number of cores
	MTU    int          `json:"mtu"`
	Daemon []string     `json:"daemon"` // program and first arguments of a node's daemon
	UID    int          `json:"uid"`    // of the caller, on the host
	Made   bool         `json:"made"`
}

// nodeConfig is what the holder tells a node-init, once the node's link is in
// its network namespace.
type nodeConfig struct {
	Node    job.NodeID   `json:"node"`
	Addr    netip.Prefix `json:"addr"`
	Daemon  []string     `json:"daemon"` // complete but for --session
	TmpDir  string       `json:"tmp_dir"`
	Session uint64       `json:"session"` // of the first daemon
}

// report is a line that a holder or node-init writes to fdReport.
type report struct {
	Kind    string `json:"kind"` // ready error daemon
	HostPID int    `json:"host_pid,omitempty"`
	PID     int    `json:"pid,omitempty"`     // daemon: in the node's pid namespace
	Session uint64 `json:"session,omitempty"` // daemon
	Text    string `json:"text,omitempty"`    // error
	Exit    int    `json:"exit,omitempty"`    // error: job.Exit*
}

const (
	reportReady  = "ready"
	reportError  = "error"
	reportDaemon = "daemon"
)

// configTimeout bounds the wait for the document on fdConfig.
const configTimeout = 30 * time.Second

// inherited wraps a pipe this process was started with. Anything else under
// that number belongs to somebody else, the Go runtime for one.
func inherited(fd int, name string) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, fmt.Errorf("descriptor %d (%s) is missing: this command is started by lam boot, not by hand", fd, name)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// readConfig reads one JSON document from fdConfig.
func readConfig(into any) error {
	f, err := inherited(fdConfig, "config")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_ = f.SetReadDeadline(time.Now().Add(configTimeout)) // not every pipe can: then EOF ends it
	if err := json.NewDecoder(f).Decode(into); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return nil
}
