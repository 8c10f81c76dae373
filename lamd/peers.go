package lamd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/membership"
)

// Bounds of one request between daemons. Ranks may spin on every core, so a
// healthy daemon can take a while to answer; a dead node is found by gossip,
// not by these.
const (
	dialTimeout = 2 * time.Second
	maxBody     = 64 << 20 // JSON bodies: socket marks of a large job, PMI exchanges
)

// errUnknownNode says that a node's address is not known (yet).
var errUnknownNode = errors.New("address of node not known")

// peers calls the node API of other daemons. It is safe for concurrent use.
type peers struct {
	addr      func(job.NodeID) (netip.Addr, bool)
	client    *http.Client
	onFailure func(membership.Evidence) // told of connections that fail; nil: nobody is. Set before use
}

// newPeers returns a caller that resolves nodes with addr.
func newPeers(addr func(job.NodeID) (netip.Addr, bool)) *peers {
	d := &net.Dialer{Timeout: dialTimeout, ControlContext: userTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3,
	}}
	return &peers{
		addr: addr,
		client: &http.Client{Transport: &http.Transport{
			DialContext:         d.DialContext,
			MaxIdleConnsPerHost: 16,
			IdleConnTimeout:     30 * time.Second,
			WriteBufferSize:     1 << 20,
			ReadBufferSize:      64 << 10, // a body of an image is read past it, in larger pieces
			DisableCompression:  true,
		}},
	}
}

// unackedMax bounds how long a connection may wait for an acknowledgement: the
// kernel gives up a node without power after that, not after a quarter of an
// hour (TCP_USER_TIMEOUT, tcp(7)).
const unackedMax = 5 * time.Second

func userTimeout(_ context.Context, _, _ string, c syscall.RawConn) error {
	var serr error
	if err := c.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedMax.Milliseconds()))
	}); err != nil {
		return err
	}
	return serr
}

// close drops idle connections.
func (p *peers) close() { p.client.CloseIdleConnections() }

// url returns the address of path on node's node API.
//
// Expected errors: errUnknownNode.
func (p *peers) url(node job.NodeID, path string) (string, error) {
	a, ok := p.addr(node)
	if !ok {
		return "", fmt.Errorf("node %s: %w", node, errUnknownNode)
	}
	return "http://" + net.JoinHostPort(a.String(), strconv.Itoa(HTTPPort)) + path, nil
}

// call sends in as JSON (nothing when nil) and decodes the answer into out
// (nothing when nil).
//
// Expected errors: *control.Error for an answer that is not 2xx; transport
// errors, wrapped; the context's.
func (p *peers) call(ctx context.Context, node job.NodeID, method, path string, in, out any) error {
	url, err := p.url(node, path)
	if err != nil {
		return err
	}
	err = callJSON(ctx, p.client, method, url, in, out)
	p.accuse(node, err)
	return err
}

// open starts a streaming GET and returns its body, which the caller closes.
func (p *peers) open(ctx context.Context, node job.NodeID, path string) (io.ReadCloser, error) {
	url, err := p.url(node, path)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		p.accuse(node, err)
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	if resp.StatusCode/100 != 2 {
		defer func() { _ = resp.Body.Close() }()
		return nil, decodeError(resp)
	}
	return resp.Body, nil
}

// callJSON is one request and answer with JSON bodies.
func callJSON(ctx context.Context, c *http.Client, method, url string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return decodeError(resp)
	}
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
		return err
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(out); err != nil {
		return fmt.Errorf("decode answer of %s: %w", req.URL.Path, err)
	}
	return nil
}

// decodeError turns an answer that is not 2xx into a *control.Error.
func decodeError(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read error answer: %w", err)
	}
	e := &control.Error{Status: resp.StatusCode, Exit: job.ExitInternal}
	if json.Unmarshal(b, e) != nil || e.Message == "" {
		e.Message = fmt.Sprintf("%s: %s", resp.Status, bytes.TrimSpace(b))
	}
	e.Status = resp.StatusCode
	return e
}

// sendRaw posts bytes as they are, and decodes the answer into out if it has a
// body.
func (p *peers) sendRaw(ctx context.Context, node job.NodeID, path string, data []byte, out any) error {
	url, err := p.url(node, path)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return decodeError(resp)
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(out)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("decode answer of %s: %w", req.URL.Path, err)
	}
	return nil
}
