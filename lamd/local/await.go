package local

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// pollEvery is the pace at which AwaitNodes asks.
const pollEvery = 50 * time.Millisecond

// AwaitNodes returns when the lamd of every node that has power answers and
// lists all of them as alive, in their present boot. The result is the list of
// the last one asked.
//
// Expected errors: *Refused with job.ExitNoNodes that says which node is
// missing after limit; context errors.
func AwaitNodes(ctx context.Context, c *Cluster, limit time.Duration) ([]control.Node, error) {
	deadline := time.Now().Add(limit)
	var list []control.Node
	for {
		missing := ""
		for _, n := range c.Nodes {
			if n.State != NodeUp {
				continue
			}
			var err error
			if list, err = askNodes(ctx, c, n.Node); err != nil {
				missing = fmt.Sprintf("the lamd of node %s does not answer: %v", n.Node, err)
			} else {
				missing = notAlive(c, n.Node, list)
			}
			if missing != "" {
				break
			}
		}
		switch {
		case missing == "":
			return list, nil
		case ctx.Err() != nil:
			return nil, refuse(job.ExitInternal, "interrupted while waiting for nodes: %w", context.Cause(ctx))
		case time.Now().After(deadline):
			return nil, refuse(job.ExitNoNodes, "not all nodes are alive after %v: %s", limit, missing)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollEvery):
		}
	}
}

func askNodes(ctx context.Context, c *Cluster, id job.NodeID) ([]control.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var list []control.Node
	err := ask(ctx, c.NodeSocket(id), http.MethodGet, "/v1/nodes", &list)
	return list, err
}

// notAlive names the first node with power that is not alive in list, as asked
// of node from; empty for none.
func notAlive(c *Cluster, from job.NodeID, list []control.Node) string {
	for _, n := range c.Nodes {
		if n.State != NodeUp {
			continue
		}
		state := "unknown"
		for _, l := range list {
			if l.Node == n.Node && l.Boot >= n.Boot { // its lamd raises it when it was declared dead
				state = l.State
			}
		}
		if state != "alive" {
			return fmt.Sprintf("node %s is %s to node %s", n.Node, state, from)
		}
	}
	return ""
}

// explain adds the last words of the daemons to a failed boot.
func explain(err error, c *Cluster) error {
	var r *Refused
	if c == nil || !errors.As(err, &r) || r.Exit != job.ExitNoNodes {
		return err
	}
	for _, n := range c.Nodes {
		if t := tail(c.NodeLog(n.Node)); t != "" {
			return refuse(r.Exit, "%w%s", r.Err, t)
		}
	}
	return err
}

// tail returns the last lines of a log, indented below a heading that names
// it; empty when there are none.
func tail(path string) string {
	const lines, maxBytes = 5, 16 << 10
	raw, err := os.ReadFile(path)
	if err != nil || len(raw) == 0 {
		return ""
	}
	raw = raw[max(0, len(raw)-maxBytes):]
	all := strings.Split(strings.TrimSpace(string(raw)), "\n")
	all = all[max(0, len(all)-lines):]
	return fmt.Sprintf("\n  last lines of %s:\n    %s", path, strings.Join(all, "\n    "))
}
