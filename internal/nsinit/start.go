package nsinit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startLimit bounds the wait for init to be ready, and for it to end.
const startLimit = 20 * time.Second

// Namespace is a running init with its programs.
type Namespace struct {
	cmd  *exec.Cmd
	sock *os.File

	mu     sync.Mutex
	last   uint64
	waits  map[uint64]chan reply
	exits  map[int]uint32
	exited chan struct{} // closed and renewed at every exit
	err    error         // why no more will come
	done   chan struct{} // closed when the reader ends
}

type reply struct {
	m   message
	fds []int
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
	ours, theirs := os.NewFile(uintptr(fds[0]), "nsinit"), os.NewFile(uintptr(fds[1]), "init")
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...)
	cmd.Env, cmd.Stderr, cmd.ExtraFiles = env, os.Stderr, []*os.File{theirs}
	cmd.SysProcAttr = attributes()
	err = cmd.Start()
	err = errors.Join(err, theirs.Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("nsinit: start in new namespaces: %w", err), ours.Close())
	}
	n := &Namespace{
		cmd: cmd, sock: ours, waits: map[uint64]chan reply{}, exits: map[int]uint32{},
		exited: make(chan struct{}), done: make(chan struct{}),
	}
	ready := n.expect()
	go n.read()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if _, err := n.wait(ctx, ready); err != nil {
		return nil, errors.Join(fmt.Errorf("nsinit: start: %w", err), n.Close())
	}
	return n, nil
}

// attributes asks for new namespaces; root needs no user namespace. The
// kernel kills init when its parent thread ends, so none is named here: the
// socket tells init.
func attributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Setpgid: true}
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

// expect makes room for the answer to the next message.
func (n *Namespace) expect() (id uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last++
	n.waits[n.last] = make(chan reply, 1)
	return n.last
}

func (n *Namespace) wait(ctx context.Context, id uint64) (reply, error) {
	n.mu.Lock()
	ch := n.waits[id]
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.waits, id)
		n.mu.Unlock()
	}()
	select {
	case r := <-ch:
		if r.m.Error != "" {
			closeAll(r.fds)
			if r.m.Errno != 0 {
				return r, fmt.Errorf("%s: %w", strings.TrimSuffix(r.m.Error, ": "+syscall.Errno(r.m.Errno).Error()), syscall.Errno(r.m.Errno))
			}
			return r, errors.New(r.m.Error)
		}
		return r, nil
	case <-n.done:
		return reply{}, n.err
	case <-ctx.Done():
		return reply{}, ctx.Err()
	}
}

// read takes answers and exits until init is gone.
func (n *Namespace) read() {
	defer close(n.done)
	for {
		m, fds, err := receive(int(n.sock.Fd()))
		n.mu.Lock()
		if err != nil {
			n.err = err
			close(n.exited)
			n.mu.Unlock()
			return
		}
		if m.Exit {
			n.exits[m.PID] = m.Status
			close(n.exited)
			n.exited = make(chan struct{})
		} else if ch, ok := n.waits[m.ID]; ok {
			ch <- reply{m, fds}
			fds = nil
		}
		n.mu.Unlock()
		closeAll(fds)
	}
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
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	id := n.expect()
	if err := send(int(n.sock.Fd()), message{ID: id, Spec: &s}, fds...); err != nil {
		return nil, fmt.Errorf("nsinit: spawn %s: %w", s.Path, err)
	}
	r, err := n.wait(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("nsinit: spawn %s: %w", s.Path, err)
	}
	if len(r.fds) != 1 {
		closeAll(r.fds)
		return nil, fmt.Errorf("nsinit: spawn %s: no pidfd", s.Path)
	}
	p := &Program{Inner: r.m.PID, Pidfd: os.NewFile(uintptr(r.fds[0]), "pidfd")}
	if p.PID, err = pidOf(r.fds[0]); err != nil {
		return nil, fmt.Errorf("nsinit: spawn %s: %w", s.Path, errors.Join(err, p.Pidfd.Close()))
	}
	return p, nil
}

// pidOf returns the pid that a pidfd stands for, in our pid namespace.
// Source: pidfd_open(2), the Pid field of fdinfo.
func pidOf(pidfd int) (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, errors.New("pidfd names no process")
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
		changed, err := n.exited, n.err
		if ok {
			delete(n.exits, inner)
		}
		n.mu.Unlock()
		if ok {
			return unix.WaitStatus(status), nil
		}
		if err != nil {
			return 0, err
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
	return errors.Join(err, n.sock.Close())
}
