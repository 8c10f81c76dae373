package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

// haltLimit is how long a cluster may take to end in order.
const haltLimit = 20 * time.Second

// Halted is what Halt did.
type Halted struct {
	Nodes     int    // nodes that were ended, 0 when the cluster had died before
	KeptState string // state directory with images that was kept, or empty
}

// Halt ends the cluster in d and everything that runs on it, and removes its
// runtime files; also those of a cluster that died. The state directory is
// removed when it holds no images or purge is set. It returns when nothing is
// left.
//
// Expected errors: ErrNoCluster (as *Refused) when there is nothing to end.
func Halt(ctx context.Context, d paths.Dirs, purge bool) (*Halted, error) {
	c, err := readCluster(d)
	if errors.Is(err, fs.ErrNotExist) {
		return haltNothing(d, purge)
	}
	if err != nil {
		return nil, refuse(job.ExitConfig, "%w", err)
	}
	res := &Halted{}
	if holderAlive(c) {
		res.Nodes = len(c.Nodes)
		if err := endHolder(ctx, d, c); err != nil {
			return nil, err
		}
	}
	if err := clearAfter(ctx, d, c); err != nil {
		return nil, err
	}
	kept, err := releaseState(c.Dirs, purge)
	if err != nil {
		return nil, refuse(job.ExitInternal, "%w", err)
	}
	if kept {
		res.KeptState = c.State
	}
	return res, nil
}

// haltNothing is Halt without a cluster: with purge, the state of an earlier
// one is still there to be removed.
func haltNothing(d paths.Dirs, purge bool) (*Halted, error) {
	if purge {
		if _, err := releaseState(d, true); err != nil {
			return nil, refuse(job.ExitInternal, "%w", err)
		}
		return &Halted{}, nil
	}
	return nil, &Refused{Exit: job.ExitNoNodes, Err: fmt.Errorf("%w in %s; set LAM_RUNTIME_DIR if yours is elsewhere", ErrNoCluster, d.Runtime)}
}

// endHolder asks the holder to end, and kills it when it does not.
func endHolder(ctx context.Context, d paths.Dirs, c *Cluster) error {
	if err := askHolder(ctx, d, http.MethodPost, "/v1/halt", nil); err != nil {
		var r *Refused
		var e *control.Error
		if (errors.As(err, &r) && r.Exit == job.ExitPermission) || (errors.As(err, &e) && e.Exit == job.ExitPermission) {
			return err
		}
	} else if awaitGone(ctx, c, haltLimit) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return refuse(job.ExitInternal, "halt interrupted: %w", context.Cause(ctx))
	}
	return killHolder(ctx, c)
}

// killHolder ends a cluster by force: the kernel takes everything down with
// the holder.
func killHolder(ctx context.Context, c *Cluster) error {
	fd, ok := openHolder(c)
	if !ok {
		return nil
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return refuse(job.ExitPermission, "cannot end the holder (pid %d): %w", c.HolderPID, err)
	}
	if err := awaitGone(ctx, c, haltLimit); err != nil {
		return refuse(job.ExitInternal, "%w", err)
	}
	return nil
}

// clearAfter removes the files that a dead holder left.
func clearAfter(ctx context.Context, d paths.Dirs, c *Cluster) error {
	if _, err := readCluster(d); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	l, err := lockFile(d.ClusterLock())
	if err != nil {
		return usedError(d, d.Runtime, err)
	}
	defer func() { _ = l.Close() }()
	if err := awaitGone(ctx, c, haltLimit); err != nil {
		return refuse(job.ExitInternal, "%w", err)
	}
	if err := sweep(c); err != nil {
		return refuse(job.ExitPermission, "remove runtime files: %w", err)
	}
	unclaim(d, c.MadeRuntime)
	return nil
}
