package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/pid1"
)

// ended is the end of a process of the pod, by its number there.
type ended struct {
	pid    int
	status unix.WaitStatus
}

// process is a process that pod-init started. The pidfd stays valid after the
// end of the process; close it.
type process struct {
	outer int      // number as the supervisor's /proc has it
	inner int      // number in the pod
	pidfd *os.File // close-on-exec
}

// initClient is the supervisor's side of pod-init. Safe for concurrent use.
type initClient struct {
	cmd   *exec.Cmd
	peer  *pid1.Client
	exits chan ended    // closed when pod-init is gone
	gone  chan struct{} // closed when pod-init has been reaped
}

// initArgs are the arguments of the program that make it pod-init.
func initArgs() []string { return []string{"podinit"} }

// visibleID is the owner as the ranks shall see it.
type visibleID struct{ uid, gid int }

// startInit starts pod-init in new namespaces and returns when they are
// complete. log takes its output. The process is killed when ctx ends, and by
// the kernel when this process does.
func startInit(ctx context.Context, conf initConf, id visibleID, log *os.File) (*initClient, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("pod-init: socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "podinit")
	defer func() { _ = theirs.Close() }() // pod-init has its copy
	file, err := pid1.MemoryFile("conf", conf)
	if err != nil {
		return nil, errors.Join(err, unix.Close(pair[0]))
	}
	defer func() { _ = file.Close() }() // pod-init has its copy
	cmd := exec.CommandContext(ctx, "/proc/self/exe", initArgs()...)
	cmd.Env = []string{"GOMAXPROCS=2", "HOME=/", "PATH=/usr/local/bin:/usr/bin:/bin"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs, file} // numbers initSock, initConfFD
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: id.uid, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: id.gid, HostID: 0, Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP, unix.CAP_CHECKPOINT_RESTORE, unix.CAP_SYS_PTRACE},
		Pdeathsig:   unix.SIGKILL,
		Setsid:      true,
	}
	c := &initClient{cmd: cmd, peer: pid1.NewClient(pair[0]), exits: make(chan ended, 64), gone: make(chan struct{})}
	if err := c.launch(); err != nil {
		c.peer.Close()
		return nil, fmt.Errorf("pod-init: %w", err)
	}
	go c.receive() // ends with pod-init
	if err := theirs.Close(); err != nil {
		return nil, errors.Join(err, c.kill(nil))
	}
	if err := c.peer.Ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("pod-init did not start: %w (see %s)", err, log.Name()), c.kill(nil))
	}
	return c, nil
}

// launch starts the command from a thread of its own, which lives as long as
// pod-init: the death signal is sent when the parent *thread* ends (prctl(2),
// PR_SET_PDEATHSIG). The thread also waits for pod-init.
func (c *initClient) launch() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := c.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = c.cmd.Wait() // its status says nothing: it is killed
		close(c.gone)
	}()
	return <-started
}

// receive takes what pod-init says until it is gone.
func (c *initClient) receive() {
	defer close(c.exits)
	c.peer.Receive(func(pid int, status unix.WaitStatus) { c.exits <- ended{pid: pid, status: status} })
	<-c.gone
	c.peer.Close()
}

// errInitGone says that pod-init, and so the pod, has ended.
var errInitGone = errors.New("pod-init is gone")

// start starts a process with descriptors fds as its 0, 1, 2, ... When a
// thread has the wanted number, the next ones are tried: what counts is that
// the number is high and known.
//
// Expected errors: errInitGone; ctx.Err(); *pid1.Error with what pod-init said.
func (c *initClient) start(ctx context.Context, spec pid1.Spec, fds ...*os.File) (process, error) {
	spec.Nearby, spec.Umask = true, defaultUmask
	p, err := c.peer.Start(ctx, spec, fds...)
	if err != nil {
		return process{}, initFailure(err)
	}
	return process{outer: p.Outer, inner: p.Inner, pidfd: p.Pidfd}, nil
}

// defaultUmask is the umask of ranks; a job does not carry one.
const defaultUmask = 0o022

// signal sends a signal to every process of the pod but pod-init.
func (c *initClient) signal(ctx context.Context, sig unix.Signal) error {
	return initFailure(c.peer.Signal(ctx, sig))
}

// initFailure words an error of the client; what pod-init itself says stays as
// it is.
func initFailure(err error) error {
	var said *pid1.Error
	switch {
	case err == nil, errors.As(err, &said):
		return err
	case errors.Is(err, pid1.ErrGone):
		return errInitGone
	}
	return fmt.Errorf("pod-init: %w", err)
}

// initGone bounds the end of a killed pod-init: the kernel first ends every
// process of its pid namespace.
const initGone = 8 * time.Second

// kill ends pod-init and with it every process of the pod; letGo is called in
// between. It returns when they are gone. The order matters: processes that
// are traced when they are killed do not run again, and they count as gone
// when their tracer has let go of them.
func (c *initClient) kill(letGo func() error) error {
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill pod-init: %w", err)
	}
	var err error
	if letGo != nil {
		err = letGo()
	}
	t := time.NewTimer(initGone)
	defer t.Stop()
	select {
	case <-c.gone:
		return err
	case <-t.C:
		return errors.Join(fmt.Errorf("pod-init %d does not end", c.cmd.Process.Pid), err)
	}
}
