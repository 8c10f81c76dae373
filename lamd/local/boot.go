package local

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

// Options of Boot. The zero value of each field but the first three means the
// default.
type Options struct {
	Dirs   paths.Dirs // with the state directory of paths.Dirs.Local
	Nodes  int        // compute nodes, 1 or more
	Spares int        // nodes that run no ranks until one is needed

	Slots  int          // ranks per node, default the number of cores
	Lamd   string       // the lamd program
	Daemon []string     // program and first arguments of a node's daemon, default Lamd run
	Subnet netip.Prefix // a /16, default DefaultSubnet
	MTU    int          // of all links in bytes, default defaultMTU
	Wait   time.Duration
}

// DefaultWait is how long Boot waits for all nodes to be alive.
const DefaultWait = 30 * time.Second

// defaultMTU is nearly what the loopback link has. Between pods of two nodes,
// 1 MB messages moved at 5 GB/s with it and at 2.4 GB/s with 1500, on a 4-core
// VM; the links are memory, so there is no real wire to fit.
const defaultMTU = 65520

// Booted is what Boot returns.
type Booted struct {
	Cluster *Cluster
	Nodes   []control.Node // as the first node's lamd lists them
	Note    string         // something the user should know, may be empty
}

func (o *Options) complete() error {
	switch {
	case o.Nodes < 1:
		return refuse(job.ExitUsage, "%d nodes: a local cluster needs at least 1", o.Nodes)
	case o.Spares < 0:
		return refuse(job.ExitUsage, "%d spares: must not be negative", o.Spares)
	case o.Nodes+o.Spares > MaxNodes:
		return refuse(job.ExitUsage, "%d nodes: a local cluster has at most %d", o.Nodes+o.Spares, MaxNodes)
	case o.Slots < 0:
		return refuse(job.ExitUsage, "%d slots: must not be negative", o.Slots)
	}
	if !o.Subnet.IsValid() {
		o.Subnet = DefaultSubnet()
	}
	if !o.Subnet.Addr().Is4() || o.Subnet.Bits() != prefixBits {
		return refuse(job.ExitUsage, "subnet %v: must be an IPv4 /%d", o.Subnet, prefixBits)
	}
	o.Subnet = o.Subnet.Masked()
	if o.MTU == 0 {
		o.MTU = defaultMTU
	}
	if o.Wait == 0 {
		o.Wait = DefaultWait
	}
	if len(o.Daemon) == 0 {
		o.Daemon = []string{o.Lamd, "run"}
	}
	all := names(o.Nodes, o.Spares)
	if err := o.Dirs.CheckSockets(all[len(all)-1]); err != nil {
		return &Refused{Exit: job.ExitConfig, Err: err}
	}
	return nil
}

// Boot starts a local cluster and returns when every node is alive in the view
// of every lamd. When it fails, or ctx ends first, nothing is left behind but
// the state directory.
//
// Expected errors: *Refused.
func Boot(ctx context.Context, o Options) (*Booted, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	l, err := claim(ctx, o.Dirs)
	if err != nil {
		return nil, err
	}
	defer l.close()
	h, err := startHolder(ctx, o, l)
	if err != nil {
		undoBoot(o.Dirs, l)
		return nil, err
	}
	b := &Booted{Note: l.note}
	if err := h.awaitReady(ctx, o); err != nil {
		h.kill()
		h.wait(10 * time.Second)
		undoBoot(o.Dirs, l)
		return nil, err
	}
	l.close() // the holder has them now
	if b.Cluster, err = Find(ctx, o.Dirs); err == nil {
		b.Nodes, err = AwaitNodes(ctx, b.Cluster, o.Wait)
	}
	if err != nil {
		err = explain(err, b.Cluster)
		h.kill()
		h.wait(10 * time.Second) // its locks are free when it is gone
		if relock, lerr := lockFile(o.Dirs.ClusterLock()); lerr == nil {
			undoBoot(o.Dirs, locks{runtime: relock, made: l.made})
			_ = relock.Close()
		}
		return nil, err
	}
	return b, nil
}

// undoBoot removes what a failed boot made. The caller has the lock, and the
// holder is gone.
func undoBoot(d paths.Dirs, l locks) {
	if c, err := readCluster(d); err == nil {
		_ = sweep(c)
	}
	_ = os.Remove(d.HolderLog())
	unclaim(d, l.made)
	if l.state != nil {
		_ = l.state.Close()
	}
	_, _ = releaseState(d, false)
}

// holderProcess is the holder while the booting command still is its parent.
type holderProcess struct {
	cmd     *exec.Cmd
	reports *os.File
}

// startHolder starts the holder in its namespaces and configures it.
//
// Expected errors: *Refused, with job.ExitPermission when the kernel does not
// let this user make the namespaces.
func startHolder(ctx context.Context, o Options, l locks) (*holderProcess, error) {
	log, err := os.OpenFile(o.Dirs.HolderLog(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, refuse(job.ExitPermission, "cannot write %w", err)
	}
	defer func() { _ = log.Close() }()
	cfgR, cfgW, err := os.Pipe()
	if err != nil {
		return nil, refuse(job.ExitInternal, "pipe: %w", err)
	}
	defer func() { _, _ = cfgR.Close(), cfgW.Close() }()
	repR, repW, err := os.Pipe()
	if err != nil {
		return nil, refuse(job.ExitInternal, "pipe: %w", err)
	}
	defer func() { _ = repW.Close() }()
	// Descriptors that our caller left open must not live on in the cluster.
	_ = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	cmd := exec.CommandContext(context.WithoutCancel(ctx), o.Lamd, "local")
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{cfgR, repW, l.runtime, l.state}
	cmd.SysProcAttr = namespaces()
	if err := cmd.Start(); err != nil {
		_ = repR.Close()
		return nil, startError(o.Lamd, err)
	}
	h := &holderProcess{cmd: cmd, reports: repR}
	err = json.NewEncoder(cfgW).Encode(holderConfig{
		Dirs: o.Dirs, Subnet: o.Subnet, Nodes: o.Nodes, Spares: o.Spares, Slots: o.Slots,
		MTU: o.MTU, Daemon: o.Daemon, UID: os.Getuid(), Made: l.made,
	})
	if err != nil {
		h.kill()
		h.wait(10 * time.Second)
		return nil, refuse(job.ExitInternal, "configure the holder: %w", err)
	}
	return h, nil
}

// namespaces describes the holder: U, in which an ordinary caller is 0 alone
// and root has every id (user_namespaces(7)), and what belongs to U.
func namespaces() *syscall.SysProcAttr {
	size := 1
	if os.Geteuid() == 0 {
		size = 1<<32 - 1
	}
	return &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
			unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: size}},
		GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: size}},
		GidMappingsEnableSetgroups: os.Geteuid() == 0,
	}
}

// startError words a holder that could not even be started.
func startError(lamd string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse(job.ExitConfig, "no lamd at %s; it belongs next to lam", lamd)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EINVAL):
		return refuse(job.ExitPermission, "the kernel does not let you make the namespaces of a local cluster (%w); `lam doctor` tells why and what to do", err)
	}
	return refuse(job.ExitInternal, "start %s: %w", lamd, err)
}

// awaitReady waits for the holder's word that all nodes have power.
func (h *holderProcess) awaitReady(ctx context.Context, o Options) error {
	defer func() { _ = h.reports.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = h.reports.SetReadDeadline(time.Now()) })
	defer stop()
	_ = h.reports.SetReadDeadline(time.Now().Add(powerOnLimit + 5*time.Second))
	lines := bufio.NewScanner(h.reports)
	if !lines.Scan() {
		if ctx.Err() != nil {
			return refuse(job.ExitInternal, "boot interrupted: %w", context.Cause(ctx))
		}
		return refuse(job.ExitInternal, "the holder of the cluster %w%s", errors.Join(lines.Err(), errEnded), tail(o.Dirs.HolderLog()))
	}
	var r report
	if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
		return refuse(job.ExitInternal, "the holder of the cluster: %w", err)
	}
	if r.Kind != reportReady {
		return refuse(r.Exit, "%s", r.Text)
	}
	return nil
}

func (h *holderProcess) kill() { _ = h.cmd.Process.Kill() }

// wait reaps the killed holder. It takes as long as the kernel needs to end
// the processes of its pid namespace; beyond limit it is given up.
func (h *holderProcess) wait(limit time.Duration) {
	fd, err := unix.PidfdOpen(h.cmd.Process.Pid, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	if ended(fd, limit) {
		_ = h.cmd.Wait()
	}
}
