package lamd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// leaveMax bounds a node's good-bye.
const leaveMax = 10 * time.Second

// errLeft ends a daemon whose node has left.
var errLeft = errors.New("the node has left the cluster")

// leaveNode is POST /v1/leave on the unix socket: the node takes its leave, in
// the log and in gossip, and the daemon ends. It is for a planned halt of one
// node. A daemon that only ends (SIGTERM) does not leave: it may be back in a
// moment, and its pods run on; nor does a cluster that is halted as a whole,
// which would lose its voters one by one. A node that joins again later is taken
// in as it was.
func (d *Daemon) leaveNode(w http.ResponseWriter, r *http.Request) {
	c, ok := callerOf(r.Context())
	if !ok || int(c.uid) != os.Getuid() {
		writeError(w, forbidden("only the user who runs the daemons may make a node leave"))
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), leaveMax)
	defer cancel()
	if err := d.leave(ctx); err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, struct{}{})
	_ = http.NewResponseController(w).Flush() // the daemon ends
	d.left()
}

// leave takes the node out of the log, then out of gossip.
//
// Expected errors: *control.Error when it has pods, or holds the only image of
// some ranks, or there is no leader.
func (d *Daemon) leave(ctx context.Context) error {
	d.leaving.Store(true)
	_, err := d.agent.toLeader(ctx, "/v1/leave", scheduler.NodeRef{Node: d.cfg.Node, Boot: d.cfg.Boot}, nil)
	if err != nil {
		d.leaving.Store(false)
		return err
	}
	if err := d.members.Leave(ctx); err != nil {
		// The log has it; gossip will find out in its own way.
		d.log.Warn().Err(err).Msg("no good-bye to the members")
	}
	return nil
}

// leave is a node's request to the leader.
func (a *leaderAPI) leave(ctx context.Context, ref scheduler.NodeRef) error {
	n, ok := a.state().Nodes[ref.Node]
	if !ok || n.Boot != ref.Boot {
		return &control.Error{Message: fmt.Sprintf("no boot %d of node %s here", ref.Boot, ref.Node), Exit: job.ExitUsage, Status: http.StatusConflict}
	}
	if err := a.apply(ctx, scheduler.Command{Leave: &scheduler.Leave{Node: ref.Node}}); err != nil {
		return refusalError(err)
	}
	return nil
}
