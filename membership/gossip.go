package membership

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/lampause/lampause/job"
)

// delegate is what memberlist calls. Every method may run under memberlist's
// node lock and must not block.
type delegate struct {
	c       *Cluster
	leaving atomic.Bool
	queue   memberlist.TransmitLimitedQueue // what we tell all others
}

// newDelegate makes the delegate of c; size is the number of members, roughly.
func newDelegate(c *Cluster) *delegate {
	d := &delegate{c: c}
	d.queue.NumNodes = func() int { return max(1, len(c.Members())) }
	d.queue.RetransmitMult = retransmitMult
	return d
}

// word is what members tell each other: From cannot reach Node.
type word struct {
	From job.NodeID `json:"f"`
	Node job.NodeID `json:"n"`
	Boot job.Boot   `json:"b"`
}

// Invalidates implements memberlist.Broadcast: a repetition replaces the word.
func (w word) Invalidates(o memberlist.Broadcast) bool {
	x, ok := o.(word)
	return ok && x == w
}

// Message implements memberlist.Broadcast.
func (w word) Message() []byte {
	b, err := json.Marshal(w)
	if err != nil {
		return nil // strings and numbers always marshal
	}
	return b
}

// Finished implements memberlist.Broadcast.
func (word) Finished() {}

// NodeMeta implements memberlist.Delegate. The size was checked by New; with
// Leaving it grows by 9 bytes, which New has counted too.
func (d *delegate) NodeMeta(limit int) []byte {
	m := d.c.cfg.meta()
	m.Leaving = d.leaving.Load()
	b, err := m.encode()
	if err != nil || len(b) > limit {
		return nil // New refuses such a meta
	}
	return b
}

// NotifyMsg implements memberlist.Delegate: a word of another member. Messages of
// other kinds are of a newer version and none of our business.
func (d *delegate) NotifyMsg(b []byte) {
	var w word
	if err := json.Unmarshal(b, &w); err != nil || w.From == "" || w.Node == "" {
		return
	}
	d.c.box.put(func(t *table) { t.told(d.c.now(), w) })
}

// GetBroadcasts implements memberlist.Delegate.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.queue.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate.
func (d *delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (d *delegate) MergeRemoteState([]byte, bool) {}

// NotifyAlive implements memberlist.AliveDelegate: members that cannot be
// understood are not taken in.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	_, err := decodeMeta(n.Name, n.Meta)
	return err
}

// NotifyJoin implements memberlist.EventDelegate: new, or refuted.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.seen(n) }

// NotifyUpdate implements memberlist.EventDelegate: a new meta.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.seen(n) }

func (d *delegate) seen(n *memberlist.Node) {
	m, err := decodeMeta(n.Name, n.Meta)
	if err != nil {
		return // NotifyAlive said so already
	}
	addr := nodeAddr(n)
	d.c.box.put(func(t *table) { t.seen(d.c.now(), m, addr) })
}

// NotifyLeave implements memberlist.EventDelegate: dead, or gone by its word.
func (d *delegate) NotifyLeave(n *memberlist.Node) {
	m, err := decodeMeta(n.Name, n.Meta)
	if err != nil {
		return
	}
	d.c.box.put(func(t *table) { t.gone(d.c.now(), m.Node, m.Boot, m.Leaving) })
}

// AckPayload implements memberlist.PingDelegate.
func (d *delegate) AckPayload() []byte { return nil }

// NotifyPingComplete implements memberlist.PingDelegate: proof of life.
func (d *delegate) NotifyPingComplete(n *memberlist.Node, _ time.Duration, _ []byte) {
	node, boot, err := parseName(n.Name)
	if err != nil {
		return
	}
	d.c.box.put(func(t *table) { t.acked(d.c.now(), node, boot) })
}

// NotifyConflict implements memberlist.ConflictDelegate: two lamds claim the
// same node and boot, a fault of configuration.
func (d *delegate) NotifyConflict(have, other *memberlist.Node) {
	d.c.log.Error().Str("member", have.Name).
		Str("addr", have.Address()).Str("other_addr", other.Address()).
		Msg("two members claim the same name; the second is ignored")
}

// nodeAddr is the gossip address of n.
func nodeAddr(n *memberlist.Node) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(ip.Unmap(), n.Port)
}

// ping sends one gossip ping and waits for the ack, at most ProbeTimeout.
func ping(ml *memberlist.Memberlist, g target) error {
	_, err := ml.Ping(gossipName(g.node, g.boot), net.UDPAddrFromAddrPort(g.addr))
	if err != nil {
		return fmt.Errorf("membership: ping %s: %w", gossipName(g.node, g.boot), err)
	}
	return nil
}
