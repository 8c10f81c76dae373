// Package memnet is a network in memory for memberlist, for tests in virtual
// time (testing/synctest): packets and streams between addresses, with delays,
// loss, partitions, nodes that fall silent and nodes that freeze.
//
// Nothing blocks but streams: a packet that finds a full queue is lost, as with
// UDP. Waiting happens on channels and timers only, so that a synctest bubble can
// advance its clock. All methods are safe for concurrent use; Network.mu is a
// leaf lock.
package memnet

import (
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

// queueLen is the number of packets that wait at a node; more are lost.
const queueLen = 4096

// Network connects the transports made by Attach.
type Network struct {
	mu     sync.Mutex
	nodes  map[string]*Transport // by ip:port
	side   map[string]int        // partition; addresses on different sides cannot talk
	mute   map[string]bool       // powered off: nothing in, nothing out, no refusal
	frozen map[string]bool       // stopped: the kernel accepts, nobody answers
	delay  map[string]time.Duration
	drop   func(from, to string) bool
}

// New returns a network without nodes, delays or faults.
func New() *Network {
	return &Network{
		nodes:  make(map[string]*Transport),
		side:   make(map[string]int),
		mute:   make(map[string]bool),
		frozen: make(map[string]bool),
		delay:  make(map[string]time.Duration),
	}
}

// Attach adds a node at addr ("10.0.0.1:7946"). A node that was shut down may
// be attached again.
func (n *Network) Attach(addr string) *Transport {
	t := &Transport{
		net:     n,
		addr:    addr,
		packets: make(chan *memberlist.Packet, queueLen),
		streams: make(chan net.Conn, 64),
		done:    make(chan struct{}),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[addr] = t
	return t
}

// Mute cuts a node off as a power failure does: silence.
func (n *Network) Mute(addr string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mute[addr] = on
}

// Freeze stops a node as SIGSTOP does: what is sent to it waits, dials are
// accepted and never served, what it sends is lost. Thawing delivers what
// waits.
func (n *Network) Freeze(addr string, on bool) {
	n.mu.Lock()
	t := n.nodes[addr]
	n.frozen[addr] = on
	n.mu.Unlock()
	if !on && t != nil {
		t.thaw()
	}
}

// Partition puts the addresses on a side; all others are on side 0.
func (n *Network) Partition(side int, addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range addrs {
		n.side[a] = side
	}
}

// Delay makes a node slow: d passes on each way, in and out.
func (n *Network) Delay(addr string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay[addr] = d
}

// Drop installs f, which is asked about every packet (not streams); nil removes
// it. f runs under no lock and must be safe for concurrent use.
func (n *Network) Drop(f func(from, to string) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop = f
}

// cut reports whether nothing passes between two addresses. n.mu is held.
func (n *Network) cut(from, to string) bool {
	return n.mute[from] || n.mute[to] || n.frozen[from] || n.side[from] != n.side[to]
}

// passes is cut, negated, for callers without the lock.
func (n *Network) passes(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cut(from, to)
}

// send carries one packet; it never fails and never blocks, as UDP.
func (n *Network) send(b []byte, from, to string) {
	n.mu.Lock()
	t, cut, drop, d := n.nodes[to], n.cut(from, to), n.drop, n.delay[from]+n.delay[to]
	n.mu.Unlock()
	if t == nil || cut || (drop != nil && drop(from, to)) {
		return
	}
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: netAddr(from)}
	if d == 0 {
		t.deliver(p)
		return
	}
	time.AfterFunc(d, func() { t.deliver(p) })
}

// dial makes a stream. The error of a cut or muted way comes only after the
// timeout, as in life.
func (n *Network) dial(from, to string, timeout time.Duration) (net.Conn, error) {
	n.mu.Lock()
	t, cut, frozen, d := n.nodes[to], n.cut(from, to), n.frozen[to], n.delay[from]+n.delay[to]
	muted := n.mute[to]
	n.mu.Unlock()
	switch rtt := 2 * d; {
	case muted || cut || rtt > timeout:
		time.Sleep(timeout)
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: netAddr(to), Err: syscall.ETIMEDOUT}
	case t == nil || t.closed():
		time.Sleep(rtt)
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: netAddr(to), Err: syscall.ECONNREFUSED}
	default:
		time.Sleep(rtt)
	}
	near, far := net.Pipe()
	if frozen {
		return &conn{Conn: near, other: far, net: n, from: from, to: to}, nil
	}
	select {
	case t.streams <- &conn{Conn: far, net: n, from: to, to: from, delay: d}:
		if t.closed() {
			t.refuse()
		}
		return &conn{Conn: near, net: n, from: from, to: to, delay: d}, nil
	case <-t.done:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: netAddr(to), Err: syscall.ECONNREFUSED}
	}
}

// conn is one end of a stream. What is written into a cut way is lost; readers
// notice by their deadlines.
type conn struct {
	net.Conn
	other    net.Conn // the end that nobody serves, of a frozen node
	net      *Network
	from, to string
	delay    time.Duration
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	if c.other != nil || !c.net.passes(c.from, c.to) {
		return len(b), nil
	}
	time.Sleep(c.delay)
	n, err := c.Conn.Write(b)
	if err != nil {
		return n, fmt.Errorf("memnet: %s to %s: %w", c.from, c.to, err)
	}
	return n, nil
}

// Close implements net.Conn.
func (c *conn) Close() error {
	if c.other != nil {
		_ = c.other.Close() // a pipe end closes without error
	}
	return c.Conn.Close()
}

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return netAddr(c.to) }

// netAddr is an ip:port as net.Addr.
type netAddr string

// Network implements net.Addr.
func (netAddr) Network() string { return "mem" }

// String implements net.Addr.
func (a netAddr) String() string { return string(a) }
