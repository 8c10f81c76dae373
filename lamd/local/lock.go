package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

// errLocked says that somebody else holds a lock.
var errLocked = errors.New("locked")

// lockFile opens path, creating it, and takes an exclusive flock on it without
// waiting. The lock lives as long as any duplicate of the returned file is
// open, in whatever process.
//
// Expected errors: errLocked; those of open(2).
func lockFile(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("%s: %w", path, errLocked)
			}
			return nil, fmt.Errorf("flock %s: %w", path, err)
		}
		// The previous owner may have removed the file between open and flock;
		// a lock on a nameless file excludes nobody.
		mine, err1 := f.Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, named) {
			return f, nil
		}
		_ = f.Close()
		if err1 != nil {
			return nil, err1
		}
	}
}

// locks are the claims of a cluster on its two directories.
type locks struct {
	runtime, state *os.File
	made           bool   // the runtime directory is ours to remove
	madeState      bool   // so is the state directory
	note           string // what was cleaned up, empty for nothing
}

// undo gives the directories back as they were found.
func (l *locks) undo(d paths.Dirs) {
	if l.runtime != nil {
		unclaim(d, l.made)
	}
	if l.state != nil {
		_ = os.Remove(l.state.Name())
	}
	if l.madeState {
		_ = os.Remove(d.State)
	}
	l.close()
}

// absent reports whether nothing has this name.
func absent(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func (l *locks) close() {
	for _, f := range []*os.File{l.runtime, l.state} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// claim takes the runtime and the state directory for a new cluster. What a
// dead cluster left behind is removed.
//
// Expected errors: *Refused with job.ExitConfig when a cluster or a daemon is
// alive there or when the leftovers cannot be judged; with job.ExitPermission
// when a directory cannot be used.
func claim(ctx context.Context, d paths.Dirs) (l locks, err error) {
	l.made, l.madeState = absent(d.Runtime), absent(d.State)
	for _, dir := range []string{d.Runtime, d.State} {
		if err := paths.EnsurePrivate(dir); err != nil {
			return l, refuse(job.ExitPermission, "cannot use directory: %w", err)
		}
	}
	defer func() {
		if err != nil {
			l.undo(d)
			l = locks{}
		}
	}()
	if l.runtime, err = lockRuntime(ctx, d); err != nil {
		return l, usedError(d, d.Runtime, err)
	}
	dead, err := clearStale(ctx, d)
	if err != nil {
		return l, err
	}
	if dead != nil {
		l.made = l.made || dead.MadeRuntime
		l.note = fmt.Sprintf("removed the remains of a local cluster that died (holder pid %d)", dead.HolderPID)
	}
	if l.state, err = lockFile(filepath.Join(d.State, "cluster.lock")); err != nil {
		return l, usedError(d, d.State, err)
	}
	return l, nil
}

// lockRuntime locks the runtime directory. A holder that has been killed but
// still is dying has the lock, yet does not answer; it is given a moment.
func lockRuntime(ctx context.Context, d paths.Dirs) (*os.File, error) {
	const moment = 5 * time.Second
	deadline := time.Now().Add(moment)
	for {
		f, err := lockFile(d.ClusterLock())
		if !errors.Is(err, errLocked) || ctx.Err() != nil || time.Now().After(deadline) {
			return f, err
		}
		asking, cancel := context.WithTimeout(ctx, time.Second)
		var e *control.Error
		if _, ferr := Find(asking, d); ferr == nil || errors.As(ferr, &e) {
			cancel()
			return nil, err
		}
		cancel()
		select {
		case <-ctx.Done():
		case <-time.After(pollEvery):
		}
	}
}

// usedError words a failure to lock dir.
func usedError(d paths.Dirs, dir string, err error) error {
	if !errors.Is(err, errLocked) {
		return refuse(job.ExitPermission, "cannot use directory %s: %w", dir, err)
	}
	what, way := "another local cluster", "LAM_STATE_DIR"
	if dir == d.Runtime {
		way = "LAM_RUNTIME_DIR"
		if c, cerr := readCluster(d); cerr == nil {
			what = fmt.Sprintf("a local cluster of %d nodes (holder pid %d, since %s)",
				len(c.Nodes), c.HolderPID, c.Created.Format(time.DateTime))
		}
	}
	return refuse(job.ExitConfig, "%s uses %s; end it with `lam halt`, or set %s to another directory", what, dir, way)
}

// clearStale removes what a dead cluster left in the runtime directory. The
// caller holds its lock, so the cluster's holder is dead or about to be: its
// descriptors are closed a moment before the kernel has killed its nodes.
func clearStale(ctx context.Context, d paths.Dirs) (dead *Cluster, err error) {
	c, err := readCluster(d)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if n, alive := anyDaemon(d); alive {
			return nil, refuse(job.ExitConfig, "a lamd (%s) is running in %s; end it first, or set LAM_RUNTIME_DIR to another directory", n, d.Runtime)
		}
		return nil, nil
	case err != nil:
		return nil, refuse(job.ExitConfig, "stale runtime directory %s: %w; remove it, or set LAM_RUNTIME_DIR to another one", d.Runtime, err)
	}
	if err := awaitGone(ctx, c, 10*time.Second); err != nil {
		return nil, refuse(job.ExitConfig, "stale runtime directory %s: %w", d.Runtime, err)
	}
	if err := sweep(c); err != nil {
		return nil, refuse(job.ExitConfig, "stale runtime directory %s: %w", d.Runtime, err)
	}
	return c, nil
}

// readCluster reads cluster.json and checks that it speaks of this directory.
//
// Expected errors: fs.ErrNotExist; one for content that is not ours.
func readCluster(d paths.Dirs) (*Cluster, error) {
	raw, err := os.ReadFile(d.ClusterFile())
	if err != nil {
		return nil, err
	}
	var c Cluster
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("%s: not readable: %w", d.ClusterFile(), err)
	}
	if c.Version != Version {
		return nil, fmt.Errorf("%s: version %d, this program knows %d", d.ClusterFile(), c.Version, Version)
	}
	if c.Runtime != d.Runtime {
		return nil, fmt.Errorf("%s: speaks of %s", d.ClusterFile(), c.Runtime)
	}
	for _, n := range c.Nodes { // they become paths that sweep removes
		if !job.ValidNode(n.Node) {
			return nil, fmt.Errorf("%s: node name %q", d.ClusterFile(), n.Node)
		}
	}
	return &c, nil
}

// writeCluster replaces cluster.json.
func writeCluster(c *Cluster) error {
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("write cluster.json: %w", err)
	}
	tmp := c.ClusterFile() + ".new"
	if err := os.WriteFile(tmp, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write cluster.json: %w", err)
	}
	if err := os.Rename(tmp, c.ClusterFile()); err != nil {
		return fmt.Errorf("write cluster.json: %w", err)
	}
	return nil
}

// sweep removes the runtime files of c, by name; cluster.json goes last, so
// that an interrupted sweep is found and finished. The lock and the state stay.
func sweep(c *Cluster) error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, os.RemoveAll(c.Dirs.Node(n.Node)))
	}
	errs = append(errs, os.RemoveAll(c.Clients())) // of clients that were killed
	for _, f := range []string{c.ClusterSocket(), c.HolderLog(), c.ClusterFile() + ".new", c.ClusterFile()} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// unclaim removes the lock file, which the caller has locked, and the runtime
// directory if made by a cluster and empty.
func unclaim(d paths.Dirs, made bool) {
	_ = os.Remove(d.ClusterLock())
	if made {
		_ = os.Remove(d.Runtime) // fails when somebody put something there: theirs to keep
	}
}

// holderAlive reports whether the very process that c names still runs.
func holderAlive(c *Cluster) bool {
	fd, ok := openHolder(c)
	if !ok {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// openHolder returns a pidfd of the holder that c names, if it still runs; the
// caller closes it.
func openHolder(c *Cluster) (fd int, ok bool) {
	if id, err := bootID(); c.HolderPID <= 0 || (err == nil && id != c.BootID) {
		return -1, false
	}
	fd, err := unix.PidfdOpen(c.HolderPID, 0)
	if err != nil {
		return -1, false
	}
	// Compared after the open: the pid cannot change hands under the fd.
	start, err := startTime(c.HolderPID)
	if err != nil || start != c.HolderStart || ended(fd, 0) {
		_ = unix.Close(fd)
		return -1, false
	}
	return fd, true
}

// ended reports whether the process of a pidfd has ended, all threads of it,
// waiting at most that long. The state in /proc does not tell: the first
// thread of a holder is a zombie while another one still ends the processes of
// the pid namespace.
func ended(fd int, wait time.Duration) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait.Milliseconds()))
	return err == nil && n > 0
}

// awaitGone waits until the holder is gone, and with it, by the end of its pid
// namespace, every process of the cluster.
//
// Expected errors: one that names the pid when the time is over.
func awaitGone(ctx context.Context, c *Cluster, limit time.Duration) error {
	if fd, ok := openHolder(c); ok {
		defer func() { _ = unix.Close(fd) }()
		for deadline := time.Now().Add(limit); !ended(fd, 100*time.Millisecond); {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("holder %d is still there after %v", c.HolderPID, limit)
			}
		}
	}
	// In case this very process booted it, nobody else collects it.
	if c.HolderPID > 0 {
		_, _ = unix.Wait4(c.HolderPID, nil, unix.WNOHANG, nil)
	}
	return nil
}

// bootID identifies this run of the kernel (random(4)).
func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw)), err
}

// startTime returns field 22 of /proc/PID/stat, in clock ticks after boot
// (proc_pid_stat(5)); with the pid it names a process for good.
func startTime(pid int) (uint64, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	return parseStartTime(string(raw))
}

func parseStartTime(stat string) (uint64, error) {
	// The second field, the name in parentheses, may hold anything.
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, fmt.Errorf("stat %q: no name", stat)
	}
	f := strings.Fields(stat[end+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("stat %q: too short", stat)
	}
	return strconv.ParseUint(f[19], 10, 64)
}
