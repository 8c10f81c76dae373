package membership

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/hashicorp/memberlist"

	"github.com/lampause/lampause/job"
)

// Roles of a node in Meta.Role.
const (
	RoleCompute = "compute"
	RoleSpare   = "spare"
)

// Meta is what every member says about itself, carried in the gossip (at most
// memberlist.MetaMaxSize = 512 bytes of JSON; the keys are one letter each for
// that reason).
type Meta struct {
	Node     job.NodeID `json:"n"`
	Boot     job.Boot   `json:"b"`
	Session  uint64     `json:"s"` // rises at every start of lamd
	Role     string     `json:"r"` // Role*
	Addr     netip.Addr `json:"a"` // of the node
	HTTPPort int        `json:"h"` // of lamd's node API
	Slots    int        `json:"c"` // ranks it takes, 0 = unknown
	Version  string     `json:"v,omitempty"`
	Leaving  bool       `json:"l,omitempty"` // set just before a good-bye
}

// encode returns the wire form.
//
// Expected errors: a bad node name, and one that names the size when the meta
// does not fit.
func (m Meta) encode() ([]byte, error) {
	if !job.ValidNode(m.Node) {
		return nil, fmt.Errorf("membership: node name %q: not valid", m.Node)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("membership: encode meta of %s: %w", m.Node, err)
	}
	if len(b) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("membership: meta of %s: %d bytes, at most %d", m.Node, len(b), memberlist.MetaMaxSize)
	}
	return b, nil
}

// decodeMeta parses what a member with the given gossip name says about itself.
// The bytes come from the network: a name that does not fit is refused.
//
// Expected errors: one that names the member and what is wrong.
func decodeMeta(name string, b []byte) (Meta, error) {
	var m Meta
	if len(b) > memberlist.MetaMaxSize {
		return m, fmt.Errorf("membership: meta of %q: %d bytes, at most %d", name, len(b), memberlist.MetaMaxSize)
	}
	node, boot, err := parseName(name)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return Meta{}, fmt.Errorf("membership: meta of %q: %w", name, err)
	}
	switch {
	case m.Node != node || m.Boot != boot:
		return Meta{}, fmt.Errorf("membership: meta of %q speaks of %s", name, gossipName(m.Node, m.Boot))
	case m.HTTPPort < 0 || m.HTTPPort > 65535 || m.Slots < 0:
		return Meta{}, fmt.Errorf("membership: meta of %q: port %d, slots %d", name, m.HTTPPort, m.Slots)
	}
	return m, nil
}

// gossipName is the name of one boot of a node in the gossip: "n3#2".
func gossipName(n job.NodeID, b job.Boot) string {
	return string(n) + "#" + strconv.FormatUint(uint64(b), 10)
}

// parseName is the inverse of gossipName.
//
// Expected errors: one that names the text.
func parseName(s string) (job.NodeID, job.Boot, error) {
	node, boot, ok := strings.Cut(s, "#")
	b, err := strconv.ParseUint(boot, 10, 64)
	if !ok || err != nil || gossipName(job.NodeID(node), job.Boot(b)) != s || !job.ValidNode(job.NodeID(node)) {
		return "", 0, fmt.Errorf("membership: gossip name %q: not NODE#BOOT", s)
	}
	return job.NodeID(node), job.Boot(b), nil
}
