package local

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/job"
)

// Deadlines of a node's power switch.
const (
	powerOnLimit  = 30 * time.Second
	shutDownLimit = stopGrace + 2*time.Second
)

// machine is the hardware of one node: its power switch and its cable.
// powerOn, powerOff and shutDown are called with holder.op held, or before the
// holder serves.
type machine struct {
	h     *holder
	index int
	id    job.NodeID

	init *exec.Cmd     // nil without power
	gone chan struct{} // closed when init has been reaped

	network atomic.Pointer[os.File] // of init, from when it is ready until it has been reaped
}

// powerOn boots the node anew: next boot number, nothing left of the previous
// one but its state directory. It returns when the node-init has finished its
// namespaces; the daemon is starting then.
func (m *machine) powerOn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, powerOnLimit)
	defer cancel()
	boot, err := m.prepare()
	if err != nil {
		return fmt.Errorf("node %s: %w", m.id, err)
	}
	reports, cfg, err := m.start(ctx)
	if err != nil {
		return fmt.Errorf("node %s: %w", m.id, err)
	}
	if err := m.connect(ctx, boot, cfg, reports); err != nil {
		_ = reports.Close()
		return errors.Join(fmt.Errorf("node %s: %w", m.id, err), m.powerOff())
	}
	return nil
}

// prepare makes the node's directories and takes the next boot number.
func (m *machine) prepare() (job.Boot, error) {
	d := m.h.cfg.Dirs
	for _, dir := range []string{d.Pods(m.id), d.NodeTmp(m.id)} {
		if err := os.RemoveAll(dir); err != nil {
			return 0, err
		}
	}
	for _, dir := range []string{d.Node(m.id), d.Pods(m.id), d.NodeTmp(m.id), d.NodeState(m.id)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return 0, err
		}
	}
	if err := os.Remove(d.NodeSocket(m.id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	return nextBoot(d.NodeState(m.id))
}

// start starts the node-init, which waits for its configuration.
func (m *machine) start(ctx context.Context) (reports, cfg *os.File, err error) {
	log, err := os.OpenFile(m.h.cfg.NodeLog(m.id), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = log.Close() }()
	cfgR, cfgW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = cfgR.Close() }()
	repR, repW, err := os.Pipe()
	if err != nil {
		_ = cfgW.Close()
		return nil, nil, err
	}
	defer func() { _ = repW.Close() }()
	// The node outlives this call: only its power switch ends it.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), ownProgram(), "node")
	cmd.Args[0] = "lamd"
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{cfgR, repW}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if err := cmd.Start(); err != nil {
		_, _ = cfgW.Close(), repR.Close()
		return nil, nil, fmt.Errorf("start node-init: %w", err)
	}
	gone := make(chan struct{})
	m.init, m.gone = cmd, gone
	go m.watch(cmd, gone)
	return repR, cfgW, nil
}

// ownProgram is the path of this program. The name of a node-init comes from
// it; the magic link does as well when the file has been replaced.
func ownProgram() string {
	const link = "/proc/self/exe"
	exe, err := os.Readlink(link)
	if err != nil {
		return link
	}
	named, err1 := os.Stat(exe)
	running, err2 := os.Stat(link)
	if err1 != nil || err2 != nil || !os.SameFile(named, running) {
		return link
	}
	return exe
}

// watch reaps the node-init and takes its link away, whose hardware address the
// next boot has again; the kernel would do so some time later. It ends with the
// node.
func (m *machine) watch(cmd *exec.Cmd, gone chan struct{}) {
	err := cmd.Wait()
	m.h.log.Info().Str("node", string(m.id)).AnErr("status", err).Msg("node without power")
	if network := m.network.Swap(nil); network != nil {
		if err := errors.Join(removeLink(network), network.Close()); err != nil {
			m.h.log.Warn().Err(err).Str("node", string(m.id)).Msg("link of the node may be left")
		}
	}
	m.h.update(m.index, func(n *Node) { // who sees it down can revive it
		n.State, n.InitPID, n.DaemonPID = NodeDown, 0, 0
		close(gone)
	})
	if err := m.h.saveCluster(); err != nil {
		m.h.log.Warn().Err(err).Str("node", string(m.id)).Msg("describe cluster")
	}
}

// connect plugs the cable in, hands over the configuration and waits until the
// node-init is ready. cfg is closed; reports is owned by a reader afterwards.
func (m *machine) connect(ctx context.Context, boot job.Boot, cfg, reports *os.File) error {
	defer func() { _ = cfg.Close() }()
	if err := addNodeLink(m.index, m.init.Process.Pid, m.h.cfg.MTU); err != nil {
		return err
	}
	n := m.h.snapshot().Nodes[m.index]
	err := json.NewEncoder(cfg).Encode(nodeConfig{
		Node:    m.id,
		Addr:    netip.PrefixFrom(n.Addr, m.h.cfg.Subnet.Bits()),
		Daemon:  m.daemonArgs(n, boot),
		TmpDir:  m.h.cfg.NodeTmp(m.id),
		Session: 1,
	})
	if err != nil {
		return fmt.Errorf("configure node-init: %w", err)
	}
	_ = cfg.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = reports.SetReadDeadline(deadline)
	}
	lines := bufio.NewScanner(reports)
	if !lines.Scan() {
		return fmt.Errorf("node-init said nothing (see %s): %w", m.h.cfg.NodeLog(m.id), errors.Join(lines.Err(), errEnded))
	}
	var r report
	if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
		return fmt.Errorf("node-init: %w", err)
	}
	if r.Kind != reportReady {
		return errors.New(r.Text)
	}
	_ = reports.SetReadDeadline(time.Time{})
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", r.HostPID))
	if err != nil {
		return fmt.Errorf("node-init: %w", err)
	}
	m.network.Store(network)
	m.h.update(m.index, func(n *Node) {
		n.State, n.Boot, n.InitPID = NodeUp, boot, r.HostPID
	})
	go m.follow(lines, reports, r.HostPID)
	return nil
}

// errEnded is the cause when a report pipe closes without a word.
var errEnded = errors.New("ended early")

// follow notes every start of the node's daemon. It ends with the node.
func (m *machine) follow(lines *bufio.Scanner, reports *os.File, initPID int) {
	defer func() { _ = reports.Close() }()
	for lines.Scan() {
		var r report
		if json.Unmarshal(lines.Bytes(), &r) != nil || r.Kind != reportDaemon {
			continue
		}
		pid := hostPIDOf(initPID, r.PID)
		m.h.update(m.index, func(n *Node) {
			if n.InitPID == initPID {
				n.Session, n.DaemonPID = r.Session, pid
			}
		})
		if err := m.h.saveCluster(); err != nil {
			m.h.log.Warn().Err(err).Msg("describe cluster")
		}
	}
}

// daemonArgs is the command line of the node's lamd, but for --session.
func (m *machine) daemonArgs(n Node, boot job.Boot) []string {
	c := m.h.cfg
	args := append([]string{}, c.Daemon...)
	args = append(args,
		"--node", string(m.id),
		"--addr", n.Addr.String(),
		"--runtime-dir", c.Dirs.Node(m.id),
		"--state-dir", c.NodeState(m.id),
		"--peers", m.h.peers(),
		"--boot", strconv.FormatUint(uint64(boot), 10),
		"--slots", strconv.Itoa(c.Slots))
	if n.Role == roleSpare {
		args = append(args, "--spare")
	}
	return args
}

// alive reports whether the node has power.
func (m *machine) alive() bool {
	if m.gone == nil {
		return false
	}
	select {
	case <-m.gone:
		return false
	default:
		return true
	}
}

// powerOff pulls the cable, then kills every process of the node: the kernel
// does so when pid 1 of its pid namespace dies. Without power it does nothing.
//
// Expected errors: a node that does not die within powerOnLimit.
func (m *machine) powerOff() error {
	if !m.alive() {
		return nil
	}
	// Before the node is ready nothing speaks there, and the number is 0.
	networks, err := namespacesBelow(m.h.snapshot().Nodes[m.index].InitPID)
	linkErr := errors.Join(err, unplug(networks))
	if err := m.init.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errors.Join(linkErr, fmt.Errorf("kill node-init: %w", err))
	}
	select {
	case <-m.gone:
	case <-time.After(powerOnLimit):
		return errors.Join(linkErr, fmt.Errorf("processes are still there after %v", powerOnLimit))
	}
	if err := forgetConnections(networks, m.h.log); err != nil {
		m.h.log.Warn().Err(err).Str("node", string(m.id)).Msg("connections of the node may live on for a while")
	}
	// What a host's /run would have lost as well. Logs stay to be read.
	_ = os.Remove(m.h.cfg.NodeSocket(m.id))
	return linkErr
}

// shutDown asks the node to end and turns the power off when it does not.
func (m *machine) shutDown() {
	if !m.alive() {
		return
	}
	if err := m.init.Process.Signal(unix.SIGTERM); err == nil {
		select {
		case <-m.gone:
		case <-time.After(shutDownLimit):
		}
	}
	if err := m.powerOff(); err != nil {
		m.h.log.Warn().Err(err).Str("node", string(m.id)).Msg("power off")
	}
}

// The boot number of a node survives the cluster, in its state directory: its
// gossip name NODE#BOOT must never come back.
const bootFile = "boot"

func lastBoot(stateDir string) (job.Boot, error) {
	raw, err := os.ReadFile(filepath.Join(stateDir, bootFile))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("boot number: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("boot number in %s: %w", stateDir, err)
	}
	return job.Boot(n), nil
}

func nextBoot(stateDir string) (job.Boot, error) {
	last, err := lastBoot(stateDir)
	if err != nil {
		return 0, err
	}
	path := filepath.Join(stateDir, bootFile)
	if err := os.WriteFile(path+".new", []byte(strconv.FormatUint(uint64(last+1), 10)+"\n"), 0o600); err != nil {
		return 0, fmt.Errorf("boot number: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return 0, fmt.Errorf("boot number: %w", err)
	}
	return last + 1, nil
}
