package lamd

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/lampause/lampause/job"
)

// Ports of a node, on its own address.
const (
	GossipPort = 7946
	RaftPort   = 7947
	HTTPPort   = 7948
)

// Config is what a daemon is started with. It is read only after New.
type Config struct {
	Node    job.NodeID
	Addr    netip.Addr
	Boot    job.Boot // rises when the node really started anew
	Session uint64   // rises at every start of the daemon
	Spare   bool     // role wanted: spare instead of compute
	Slots   int      // ranks that fit, 0 = number of cores

	// Peers are the nodes of the cluster as known at boot, this one included.
	// They are where gossip starts, and the first three or five of them are
	// the first raft voters.
	Peers []Peer

	RuntimeDir string // sockets, pods: RUNTIME/NODE
	StateDir   string // raft log, images: STATE/NODE
	Exe        string // binary that supervisors are started from, default /proc/self/exe
}

// Peer is a node known at boot.
type Peer struct {
	Node job.NodeID
	Addr netip.Addr
}

// Validate reports the first thing wrong with c.
//
// Expected errors: one that names the field.
func (c *Config) Validate() error {
	switch {
	case !job.ValidNode(c.Node):
		return fmt.Errorf("node name %q: want 1 to %d letters, digits, '.', '-' or '_'", c.Node, job.MaxNameLen)
	case !c.Addr.IsValid():
		return fmt.Errorf("node %s: no address given", c.Node)
	case c.Boot < 1:
		return fmt.Errorf("node %s: boot %d: must be at least 1", c.Node, c.Boot)
	case !filepath.IsAbs(c.RuntimeDir):
		return fmt.Errorf("runtime directory %q: not an absolute path", c.RuntimeDir)
	case !filepath.IsAbs(c.StateDir):
		return fmt.Errorf("state directory %q: not an absolute path", c.StateDir)
	case c.Slots < 0:
		return fmt.Errorf("slots %d: negative", c.Slots)
	}
	self := false
	for _, p := range c.Peers {
		if !job.ValidNode(p.Node) || !p.Addr.IsValid() {
			return fmt.Errorf("peer %q=%v: not NODE=ADDRESS", p.Node, p.Addr)
		}
		self = self || p.Node == c.Node
	}
	if !self {
		return fmt.Errorf("node %s: not among its own peers", c.Node)
	}
	return nil
}

func (c *Config) podsDir() string   { return filepath.Join(c.RuntimeDir, "pods") }
func (c *Config) imagesDir() string { return filepath.Join(c.StateDir, "jobs") }
func (c *Config) raftDir() string   { return filepath.Join(c.StateDir, "raft") }
