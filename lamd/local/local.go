// Package local is the embedded cluster: a handful of nodes on this machine,
// each a set of namespaces with an address of its own and a real lamd, for an
// ordinary user as well as for root.
//
// # Mechanism
//
// `lam boot --local` starts one detached process, the holder (`lamd local`).
// It is pid 1 of a pid namespace inside a user namespace U, in which the
// caller's uid is 0 (root maps the whole range of ids), and it owns a network
// namespace with the link that all nodes hang on. Per node it starts a node-init (`lamd node`), pid 1
// of a nested pid namespace with its own net, mnt, uts and ipc namespaces,
// which runs `lamd run` and starts it again when it ends. So:
//
//   - When the holder dies, however it dies, the kernel kills everything in
//     its pid namespace, and links, mounts and namespaces go with the last
//     process. Nothing is pinned by a file.
//   - When a node-init dies, its node is without power in the same way.
//
// Nodes share the file tree of the host; private are /proc, /dev/shm, /sys and
// $TMPDIR.
//
// # Who owns what
//
// The runtime directory belongs to the process that holds the lock on
// cluster.lock (flock(2)): the booting command at first, then the holder, which
// inherits the locked descriptor. A free lock proves that the holder is dead.
// The package starts no goroutine that outlives the call that started it.
package local

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

// Version of cluster.json and of the holder's control protocol.
const Version = 1

// Limits of one local cluster. The last octet pair of a node's address is its
// number + 10.
const (
	MaxNodes     = 64
	firstAddress = 10
	prefixBits   = 16
	roleCompute  = "compute"
	roleSpare    = "spare"
	switchName   = "lam0"
	nodeLinkName = "eth0"
)

// DefaultSubnet is where nodes (10.77.0.11 and up) live; the pods of jobs take
// higher addresses of the same network.
func DefaultSubnet() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, 0}), prefixBits)
}

// States of a node as the holder knows them: with power or without. Whether
// its lamd is a member is for the membership to say.
const (
	NodeUp   = "up"
	NodeDown = "down"
)

// Cluster is cluster.json and the answer of GET /v1/cluster. All pids are as
// the host sees them; 0 means not known.
type Cluster struct {
	Version int `json:"version"`
	paths.Dirs
	Subnet      netip.Prefix `json:"subnet"`
	HolderPID   int          `json:"holder_pid"`
	HolderStart uint64       `json:"holder_start"` // clock ticks after boot, /proc/PID/stat field 22
	BootID      string       `json:"boot_id"`      // of the kernel; another one proves that all is gone
	UID         int          `json:"uid"`          // owner
	Created     time.Time    `json:"created"`      // wall clock, for people only
	MadeRuntime bool         `json:"made_runtime"` // the runtime directory did not exist before
	Nodes       []Node       `json:"nodes"`
}

// Node is one node of a Cluster.
type Node struct {
	Node      job.NodeID `json:"node"`
	Addr      netip.Addr `json:"addr"`
	Role      string     `json:"role"`  // compute spare
	State     string     `json:"state"` // up down
	Boot      job.Boot   `json:"boot"`
	Session   uint64     `json:"session"`
	InitPID   int        `json:"init_pid"`
	DaemonPID int        `json:"daemon_pid"`
}

// Find returns the node of that name.
func (c *Cluster) Find(id job.NodeID) (Node, bool) {
	for _, n := range c.Nodes {
		if n.Node == id {
			return n, true
		}
	}
	return Node{}, false
}

// names returns the node names of a cluster of that size, the spares last.
func names(nodes, spares int) []job.NodeID {
	ids := make([]job.NodeID, 0, nodes+spares)
	for i := range nodes + spares {
		ids = append(ids, job.NodeID(fmt.Sprintf("n%d", i+1)))
	}
	return ids
}

// address returns the address of node i, counted from 0.
func address(subnet netip.Prefix, i int) netip.Addr {
	b := subnet.Masked().Addr().As4()
	b[2] += byte((firstAddress + 1 + i) >> 8)
	b[3] += byte(firstAddress + 1 + i)
	return netip.AddrFrom4(b)
}

// Refused is an error that carries the exit code the command should end with.
type Refused struct {
	Exit int // job.Exit*
	Err  error
}

// Error implements error.
func (r *Refused) Error() string { return r.Err.Error() }

// Unwrap returns the cause.
func (r *Refused) Unwrap() error { return r.Err }

// ExitCode returns Exit.
func (r *Refused) ExitCode() int { return r.Exit }

func refuse(exit int, format string, args ...any) error {
	return &Refused{Exit: exit, Err: fmt.Errorf(format, args...)}
}

// ErrNoCluster says that no local cluster runs in a runtime directory.
var ErrNoCluster = errors.New("no local cluster is running")
