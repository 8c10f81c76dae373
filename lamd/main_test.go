package lamd

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/lampause/lampause/job"
)

// deafSocket names, in the environment, the socket on which this binary
// listens, without ever answering, instead of running tests.
const deafSocket = "LAMD_TEST_DEAF_SOCKET"

func TestMain(m *testing.M) {
	if path := os.Getenv(deafSocket); path != "" {
		beDeaf(path)
		return
	}
	goleak.VerifyTestMain(m)
}

// beDeaf is a supervisor that hangs. It ends when its stdin does.
func beDeaf(path string) {
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", path)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("listening")
	_, _ = os.Stdin.Read(make([]byte, 1))
	_ = ln.Close()
}

// patience bounds every wait of these tests; a healthy run needs far less.
const patience = 30 * time.Second

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func testLog(t *testing.T) zerolog.Logger {
	t.Helper()
	return zerolog.New(zerolog.NewTestWriter(t))
}

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lamd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// nodes are daemons' node APIs, each an httptest server.
type nodes map[job.NodeID]http.Handler

// peersOf returns a caller of the node API that reaches these nodes. A node
// whose handler is nil has an address at which nobody listens.
func peersOf(t *testing.T, all nodes) *peers {
	t.Helper()
	addr := map[job.NodeID]netip.Addr{}
	real := map[string]string{} // by the address that peers dials
	for id, h := range all {
		a := netip.AddrFrom4([4]byte{10, 77, 0, byte(len(addr) + 1)})
		addr[id] = a
		if h == nil {
			continue
		}
		srv := httptest.NewServer(h)
		t.Cleanup(srv.Close)
		real[fmt.Sprintf("%s:%d", a, HTTPPort)] = srv.Listener.Addr().String()
	}
	p := newPeers(func(id job.NodeID) (netip.Addr, bool) {
		a, ok := addr[id]
		return a, ok
	})
	tr, ok := p.client.Transport.(*http.Transport)
	if !ok {
		t.Fatalf("transport of type %T", p.client.Transport)
	}
	tr.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		to, ok := real[address]
		if !ok {
			return nil, &net.OpError{Op: "dial", Err: fmt.Errorf("nobody at %s", address)}
		}
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}
	t.Cleanup(p.close)
	return p
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := testContext(t)
	for !ok() {
		if ctx.Err() != nil {
			t.Fatalf("never: %s", what)
		}
		pause(ctx, time.Millisecond)
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustParse(t *testing.T, raw []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatal(err)
	}
}
