package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/job"
)

// Pace of a node-init. A daemon that ends is back within a second.
const (
	restartDelay = 200 * time.Millisecond
	restartMax   = 900 * time.Millisecond // for a daemon that keeps ending at once
	steadyAfter  = 5 * time.Second        // a daemon that lived longer restarts without the growing delay
	stopGrace    = 3 * time.Second        // from SIGTERM to SIGKILL of the daemon
)

// NodeMain is `lamd node`: pid 1 of a node of a local cluster. It finishes the
// node's namespaces, runs the daemon, starts it again when it ends, and reaps
// every process that loses its parent. SIGTERM ends daemon and node.
//
// Precondition: started by a holder, with descriptors 3 and 4.
func NodeMain(ctx context.Context, log zerolog.Logger) int {
	rep, err := inherited(fdReport, "report")
	if err != nil {
		log.Error().Err(err).Msg("node-init cannot start")
		return job.ExitUsage
	}
	syscall.CloseOnExec(fdConfig)
	syscall.CloseOnExec(fdReport)
	n := &nodeInit{log: log, rep: json.NewEncoder(rep), delay: restartDelay}
	if err := n.setUp(); err != nil {
		n.log.Error().Err(err).Msg("node cannot start")
		n.report(report{Kind: reportError, Text: err.Error()})
		return job.ExitInternal
	}
	return n.run(ctx)
}

// nodeInit is driven by one goroutine, which alone starts and reaps processes.
type nodeInit struct {
	log zerolog.Logger
	rep *json.Encoder
	cfg nodeConfig

	session uint64
	pid     int // of the daemon, 0 when none runs
	started time.Time
	delay   time.Duration
}

func (n *nodeInit) setUp() error {
	// The config arrives when the link is in place; before that there is
	// nothing to do but to learn our pid while /proc is still the host's.
	pid, err := hostPID()
	if err != nil {
		return err
	}
	if err := readConfig(&n.cfg); err != nil {
		return err
	}
	n.log = n.log.With().Str("node", string(n.cfg.Node)).Logger()
	n.session = n.cfg.Session
	if err := unix.Sethostname([]byte(n.cfg.Node)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	warn := func(what string, err error) { n.log.Warn().Err(err).Msgf("node without %s", what) }
	if err := privateMounts(warn); err != nil {
		return err
	}
	if err := configureNodeNet(n.cfg.Addr); err != nil {
		return err
	}
	if err := os.MkdirAll(n.cfg.TmpDir, 0o700); err != nil {
		return fmt.Errorf("temporary directory: %w", err)
	}
	n.report(report{Kind: reportReady, HostPID: pid})
	return nil
}

// run supervises the daemon until ctx or SIGTERM ends the node.
func (n *nodeInit) run(ctx context.Context) int {
	sigs := make(chan os.Signal, 64)
	signal.Notify(sigs, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(sigs)
	start := time.NewTimer(0)
	defer start.Stop()
	stop := make(<-chan time.Time)
	stopping := false
	end := func() {
		stopping = true
		start.Stop()
		stop = time.After(stopGrace)
		n.kill(unix.SIGTERM)
	}
	for {
		select {
		case <-ctx.Done():
			return 0
		case <-start.C:
			if err := n.startDaemon(); err != nil {
				n.log.Error().Err(err).Msg("cannot start the daemon")
				start.Reset(n.nextDelay())
			}
		case <-stop:
			n.kill(unix.SIGKILL)
			return 0
		case s := <-sigs:
			if s != unix.SIGCHLD && !stopping {
				end()
			}
			died := n.reap()
			switch {
			case stopping && n.pid == 0:
				return 0
			case died && !stopping:
				start.Reset(n.nextDelay())
			}
		}
	}
}

// nextDelay is the time to wait before the next start of the daemon.
func (n *nodeInit) nextDelay() time.Duration {
	if time.Since(n.started) > steadyAfter {
		n.delay = restartDelay
	}
	d := n.delay
	n.delay = min(2*n.delay, restartMax)
	return d
}

func (n *nodeInit) startDaemon() error {
	args := append(append([]string{}, n.cfg.Daemon[1:]...), "--session", strconv.FormatUint(n.session, 10))
	// Not bound to a context: the daemon is ended by signals, and reaped by
	// reap together with everybody else's orphans.
	cmd := exec.CommandContext(context.Background(), n.cfg.Daemon[0], args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+n.cfg.TmpDir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	n.started = time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.cfg.Daemon[0], err)
	}
	n.pid = cmd.Process.Pid
	_ = cmd.Process.Release()
	n.log.Info().Int("pid", n.pid).Uint64("session", n.session).Msg("daemon started")
	n.report(report{Kind: reportDaemon, PID: n.pid, Session: n.session})
	n.session++
	return nil
}

func (n *nodeInit) kill(sig unix.Signal) {
	if n.pid > 0 { // not reaped yet, so the pid is still the daemon's
		_ = unix.Kill(n.pid, sig)
	}
}

// reap collects every dead child, and reports whether one was the daemon.
func (n *nodeInit) reap() (daemonDied bool) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return daemonDied
		}
		if pid == n.pid {
			n.log.Warn().Int("pid", pid).Int("code", ws.ExitStatus()).Stringer("signal", ws.Signal()).Msg("daemon ended")
			n.pid, daemonDied = 0, true
		}
	}
}

// report tells the holder; when the holder is gone, so are we in a moment.
func (n *nodeInit) report(r report) { _ = n.rep.Encode(r) }
