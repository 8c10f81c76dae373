package pod

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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
	sock  int
	exits chan ended    // closed when pod-init is gone
	gone  chan struct{} // closed when pod-init has been reaped

	mu      sync.Mutex // guards below, and sending
	next    uint64
	waiting map[uint64]chan answer
	closed  bool
}

type answer struct {
	msg initMessage
	fds []int
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
	file, err := memoryFile("conf", conf)
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
	c := &initClient{cmd: cmd, sock: pair[0], exits: make(chan ended, 64), gone: make(chan struct{}), waiting: map[uint64]chan answer{}}
	if err := c.launch(); err != nil {
		return nil, errors.Join(fmt.Errorf("pod-init: %w", err), unix.Close(pair[0]))
	}
	if err := theirs.Close(); err != nil {
		return nil, errors.Join(err, c.kill(nil))
	}
	var first initMessage
	if _, err := recvPacket(c.sock, &first); err != nil || !first.Ready {
		return nil, errors.Join(fmt.Errorf("pod-init did not start: %s (see %s)", first.Error, log.Name()), err, c.kill(nil))
	}
	go c.receive() // ends with pod-init
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
	for {
		var m initMessage
		fds, err := recvPacket(c.sock, &m)
		if err != nil {
			break
		}
		if m.ID == 0 {
			closeFDs(fds)
			if m.Exit {
				c.exits <- ended{pid: m.PID, status: unix.WaitStatus(m.Status)}
			}
			continue
		}
		c.mu.Lock()
		ch := c.waiting[m.ID]
		delete(c.waiting, m.ID)
		c.mu.Unlock()
		if ch == nil {
			closeFDs(fds) // the caller gave up
			continue
		}
		ch <- answer{m, fds}
	}
	<-c.gone
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, ch := range c.waiting {
		close(ch)
	}
	c.waiting = nil
	_ = unix.Close(c.sock) // both ends are done
}

// errInitGone says that pod-init, and so the pod, has ended.
var errInitGone = errors.New("pod-init is gone")

// call sends a request and waits for the answer.
//
// Expected errors: errInitGone; ctx.Err(); initError with what pod-init said.
func (c *initClient) call(ctx context.Context, req initRequest, fds ...int) (answer, error) {
	ch := make(chan answer, 1)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return answer{}, errInitGone
	}
	c.next++
	req.ID = c.next
	c.waiting[req.ID] = ch
	err := sendPacket(c.sock, req, fds...)
	if err != nil {
		delete(c.waiting, req.ID)
	}
	c.mu.Unlock()
	if err != nil {
		return answer{}, fmt.Errorf("pod-init: %w", err)
	}
	select {
	case a, ok := <-ch:
		if !ok {
			return a, errInitGone
		}
		if a.msg.Error != "" {
			closeFDs(a.fds)
			return answer{}, &initError{text: a.msg.Error, errno: syscall.Errno(a.msg.Errno)}
		}
		return a, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, req.ID)
		c.mu.Unlock()
		return answer{}, fmt.Errorf("pod-init: %w", ctx.Err())
	}
}

// initError is an error that happened in pod-init.
type initError struct {
	text  string
	errno syscall.Errno
}

// Error implements error.
func (e *initError) Error() string { return e.text }

// Unwrap returns the kernel's error, for errors.Is.
func (e *initError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// start starts a process with descriptors fds as its 0, 1, 2, ...
func (c *initClient) start(ctx context.Context, spec procSpec, fds []*os.File) (process, error) {
	file, err := memoryFile("procspec", spec)
	if err != nil {
		return process{}, err
	}
	defer func() { _ = file.Close() }() // pod-init has its copy
	nums := []int{int(file.Fd())}
	for _, f := range fds {
		nums = append(nums, fdOf(f))
	}
	a, err := c.call(ctx, initRequest{Op: opStart}, nums...)
	runtime.KeepAlive(fds)
	if err != nil {
		return process{}, err
	}
	if len(a.fds) != 1 {
		closeFDs(a.fds)
		return process{}, errors.New("pod-init: answer without a pidfd")
	}
	p := process{inner: a.msg.PID, pidfd: os.NewFile(uintptr(a.fds[0]), "pidfd")}
	p.outer, err = pidOf(a.fds[0])
	return p, err
}

// fdOf returns the number of f without making it blocking, which f.Fd does
// (os.File.Fd).
func fdOf(f *os.File) int {
	n := -1
	raw, err := f.SyscallConn()
	if err != nil {
		return n
	}
	_ = raw.Control(func(fd uintptr) { n = int(fd) }) // fails for a closed file: -1
	return n
}

// pidOf returns the number of a pidfd's process in this process's /proc, -1
// when it has ended (fdinfo of a pidfd, proc_pid_fdinfo(5)).
func pidOf(pidfd int) (int, error) {
	f, err := os.Open("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0, fmt.Errorf("pidfd: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, errors.Join(errors.New("pidfd: no Pid line in fdinfo"), lines.Err())
}

// signal sends a signal to every process of the pod but pod-init.
func (c *initClient) signal(ctx context.Context, sig unix.Signal) error {
	_, err := c.call(ctx, initRequest{Op: opSignal, Signal: int(sig)})
	return err
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
