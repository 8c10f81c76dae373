package memnet

import (
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Transport is the attachment of one node. It implements
// memberlist.NodeAwareTransport.
type Transport struct {
	net     *Network
	addr    string
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once

	mu   sync.Mutex
	held []*memberlist.Packet // while frozen
}

var _ memberlist.NodeAwareTransport = (*Transport)(nil)

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	a, err := net.ResolveTCPAddr("tcp", t.addr)
	if err != nil {
		return nil, 0, err
	}
	return a.IP.To4(), a.Port, nil
}

// WriteTo implements memberlist.Transport.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	if !t.closed() {
		t.net.send(b, t.addr, addr)
	}
	return time.Now(), nil
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *Transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// PacketCh implements memberlist.Transport.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialTimeout implements memberlist.Transport.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.net.dial(t.addr, addr, timeout)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *Transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// StreamCh implements memberlist.Transport.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport: later dials are refused.
func (t *Transport) Shutdown() error {
	t.once.Do(func() { close(t.done) })
	t.refuse()
	return nil
}

// refuse closes the streams that nobody accepted: who writes into one would
// wait for a reader for ever.
func (t *Transport) refuse() {
	for {
		select {
		case c := <-t.streams:
			_ = c.Close()
		default:
			return
		}
	}
}

func (t *Transport) closed() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

// deliver queues a packet, or keeps it while the node is frozen.
func (t *Transport) deliver(p *memberlist.Packet) {
	t.net.mu.Lock()
	frozen, mute := t.net.frozen[t.addr], t.net.mute[t.addr]
	t.net.mu.Unlock()
	if t.closed() || mute {
		return
	}
	p.Timestamp = time.Now()
	if frozen {
		t.mu.Lock()
		defer t.mu.Unlock()
		if len(t.held) < queueLen {
			t.held = append(t.held, p)
		}
		return
	}
	select {
	case t.packets <- p:
	default: // full: lost
	}
}

// thaw delivers what was held.
func (t *Transport) thaw() {
	t.mu.Lock()
	held := t.held
	t.held = nil
	t.mu.Unlock()
	for _, p := range held {
		t.deliver(p)
	}
}
