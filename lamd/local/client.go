package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

// requestLimit bounds one request to the holder: fail and revive wait for a
// node's processes.
const requestLimit = 45 * time.Second

// maxBody bounds an answer of the holder or of lamd's list of nodes, in bytes.
const maxBody = 4 << 20

// unixClient returns an HTTP client that speaks to one unix socket and keeps
// no connection.
func unixClient(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
}

// ask sends one request over the socket and decodes the answer into out,
// unless that is nil.
//
// Expected errors: *control.Error from the other side; that of the dial.
func ask(ctx context.Context, socket, method, path string, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://lam"+path, nil)
	if err != nil {
		return err
	}
	resp, err := unixClient(socket).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body := io.LimitReader(resp.Body, maxBody)
	if resp.StatusCode/100 != 2 {
		e := &control.Error{Status: resp.StatusCode}
		if err := json.NewDecoder(body).Decode(e); err != nil || e.Message == "" {
			return fmt.Errorf("%s %s: %s", method, path, resp.Status)
		}
		return e
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// askHolder is ask for the holder of the cluster in d.
func askHolder(ctx context.Context, d paths.Dirs, method, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	err := ask(ctx, d.ClusterSocket(), method, path, out)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &Refused{Exit: job.ExitNoNodes, Err: fmt.Errorf("%w in %s; start one with `lam boot --local 4`, or set LAM_RUNTIME_DIR", ErrNoCluster, d.Runtime)}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &Refused{Exit: job.ExitConfig, Err: fmt.Errorf("%w in %s: it died; `lam halt` removes what it left", ErrNoCluster, d.Runtime)}
	case errors.Is(err, fs.ErrPermission):
		return &Refused{Exit: job.ExitPermission, Err: fmt.Errorf("the local cluster in %s belongs to another user: %w", d.Runtime, err)}
	}
	return err
}

// Find returns the local cluster that runs in d, as its holder describes it.
//
// Expected errors: ErrNoCluster (as *Refused); *control.Error.
func Find(ctx context.Context, d paths.Dirs) (*Cluster, error) {
	var c Cluster
	if err := askHolder(ctx, d, http.MethodGet, "/v1/cluster", &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// Fail takes the power of a node away, link first, and returns when every
// process of it is dead.
//
// Expected errors: as Find; *control.Error for an unknown node or one that is
// down.
func Fail(ctx context.Context, d paths.Dirs, id job.NodeID) (*Cluster, error) {
	return power(ctx, d, id, "fail")
}

// Revive boots a node that is down, with its next boot number. It does not
// wait for the node to join; AwaitNodes does.
//
// Expected errors: as Fail.
func Revive(ctx context.Context, d paths.Dirs, id job.NodeID) (*Cluster, error) {
	return power(ctx, d, id, "revive")
}

func power(ctx context.Context, d paths.Dirs, id job.NodeID, verb string) (*Cluster, error) {
	if !job.ValidNode(id) {
		return nil, refuse(job.ExitUsage, "%q is no name of a node", id)
	}
	var c Cluster
	if err := askHolder(ctx, d, http.MethodPost, "/v1/nodes/"+string(id)+"/"+verb, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// anyDaemon reports a node whose lamd answers beneath d.Runtime.
func anyDaemon(d paths.Dirs) (job.NodeID, bool) {
	for _, n := range d.Nodes() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		c, err := new(net.Dialer).DialContext(ctx, "unix", d.NodeSocket(n))
		cancel()
		if err == nil {
			_ = c.Close()
			return n, true
		}
	}
	return "", false
}
