package scheduler

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// Port is the TCP port of raft on the address of a node.
const Port = 7947

// Stream carries raft between nodes: a listener that can dial. Addresses are
// those in Peer and in Node.Addr with Port. The local cluster's network needs
// no TLS; between real hosts a Stream over mutual TLS goes here.
type Stream interface {
	net.Listener
	Dial(address string, timeout time.Duration) (net.Conn, error)
}

// ListenTCP returns a Stream on a TCP address such as "10.0.0.1:7947".
func ListenTCP(ctx context.Context, address string) (Stream, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("scheduler: listen: %w", err)
	}
	return tcpStream{l}, nil
}

type tcpStream struct{ net.Listener }

func (tcpStream) Dial(address string, timeout time.Duration) (net.Conn, error) {
	return (&net.Dialer{Timeout: timeout}).Dial("tcp", address) //nolint:noctx // raft gives a time-out, no context
}

// layer makes a Stream a raft.StreamLayer.
type layer struct{ Stream }

func (l layer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return l.Stream.Dial(string(address), timeout)
}

// NodeAddress returns the raft address of a node.
func NodeAddress(n Node) string { return net.JoinHostPort(n.Addr, fmt.Sprint(Port)) }
