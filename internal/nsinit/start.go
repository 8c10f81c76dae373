package nsinit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/pid1"
)

// startLimit bounds the wait for init to be ready, and for it to end.
const startLimit = 20 * time.Second

// Namespace is a running init with its programs.
type Namespace struct {
	cmd    *exec.Cmd
	client *pid1.Client

	mu     sync.Mutex
	exits  map[int]unix.WaitStatus
	exited chan struct{} // closed and renewed at every exit
	gone   bool          // no more will come
	done   chan struct{} // closed when the reader ends
}

// Start makes namespaces and runs argv in them as init: a command that calls
// Serve, usually the running program itself under a hidden name. Its stderr is
// the caller's.
//
// Expected errors: EPERM and the like where user namespaces are forbidden.
func Start(ctx context.Context, argv, env []string) (*Namespace, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("nsinit: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "init")
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...)
	cmd.Env, cmd.Stderr, cmd.ExtraFiles = env, os.Stderr, []*os.File{theirs}
	cmd.SysProcAttr = attributes()
	err = cmd.Start()
	err = errors.Join(err, theirs.Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("nsinit: start in new namespaces: %w", err), unix.Close(fds[0]))
	}
	n := &Namespace{
		cmd: cmd, client: pid1.NewClient(fds[0]), exits: map[int]unix.WaitStatus{},
		exited: make(chan struct{}), done: make(chan struct{}),
	}
	go n.read()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := n.client.Ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("nsinit: start: %w", err), n.Close())
	}
	return n, nil
}

// attributes asks for new namespaces; root needs no user namespace. The
// kernel kills init when its parent thread ends, so none is named here: the
// socket tells init.
func attributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC, Setpgid: true}
	uid, gid := os.Geteuid(), os.Getegid()
	if uid == 0 {
		return a
	}
	a.Cloneflags |= unix.CLONE_NEWUSER
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
	a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_CHECKPOINT_RESTORE, unix.CAP_SYS_PTRACE, unix.CAP_SETPCAP}
	return a
}

// read takes what init says until it is gone.
func (n *Namespace) read() {
	defer close(n.done)
	n.client.Receive(func(pid int, status unix.WaitStatus) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.exits[pid] = status
		close(n.exited)
		n.exited = make(chan struct{})
	})
	n.client.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gone = true
	close(n.exited)
}

// Spec is a program to start. Its descriptors are those that go with it,
// numbered from 0; it has no others.
type Spec struct {
	PID     int // wanted inside, 0 = any; the next free one when a thread has it
	Path    string
	Argv    []string
	Env     []string
	Dir     string
	Stopped bool // before its first instruction, as by SIGSTOP
}

// Program is a process that Spawn started.
type Program struct {
	Inner int // pid inside
	PID   int // pid as the caller sees it
	Pidfd *os.File
}

// Spawn starts a program with the given descriptors as 0, 1, 2, ...; the
// files stay the caller's, who also closes Pidfd.
//
// Expected errors: an errno of execve (ENOENT, EACCES, ...), wrapped.
func (n *Namespace) Spawn(ctx context.Context, s Spec, files ...*os.File) (*Program, error) {
	p, err := n.client.Start(ctx, pid1.Spec{PID: s.PID, Nearby: true, Path: s.Path, Argv: s.Argv, Env: s.Env, Dir: s.Dir, Umask: -1, Stopped: s.Stopped}, files...)
	if err != nil {
		return nil, fmt.Errorf("nsinit: spawn %s: %w", s.Path, err)
	}
	return &Program{Inner: p.Inner, PID: p.Outer, Pidfd: p.Pidfd}, nil
}

// Wait waits until the process with the given pid inside has ended, and
// returns its wait status. It also knows processes that were cloned into the
// namespace as children of init.
//
// Expected errors: ctx's; one that says that init is gone.
func (n *Namespace) Wait(ctx context.Context, inner int) (unix.WaitStatus, error) {
	for {
		n.mu.Lock()
		status, ok := n.exits[inner]
		changed, gone := n.exited, n.gone
		if ok {
			delete(n.exits, inner)
		}
		n.mu.Unlock()
		if ok {
			return status, nil
		}
		if gone {
			return 0, fmt.Errorf("nsinit: %w", pid1.ErrGone)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// PID returns init's pid as the caller sees it.
func (n *Namespace) PID() int { return n.cmd.Process.Pid }

// Close kills everything in the namespaces and waits for init to end.
func (n *Namespace) Close() error {
	err := n.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	var exit *exec.ExitError
	if werr := n.cmd.Wait(); werr != nil && !errors.As(werr, &exit) {
		err = errors.Join(err, werr)
	}
	<-n.done // init's end of the socket is closed
	return err
}
