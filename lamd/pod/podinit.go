package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// initSock is the number under which pod-init inherits its socket, and
// initConfig that of the memory file with its initConf.
const (
	initSock   = 3
	initConfFD = 4
)

// initConf is what pod-init needs to know.
type initConf struct {
	Hostname string `json:"hostname"`
	TmpDir   string `json:"tmp_dir"` // becomes podTmp; empty for none
}

// runInit is `lamd podinit`: pid 1 of a pod. It completes the namespaces,
// starts processes as the supervisor asks, reaps everything, and returns when
// the supervisor is gone; the kernel then kills all that is left in the pid
// namespace (pid_namespaces(7)).
//
// It is one goroutine on one thread, because ptrace and the wanted process
// number belong to a thread, plus a reader of the socket.
func runInit(ctx context.Context, log zerolog.Logger) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if os.Getpid() != 1 {
		return errors.New("podinit: not pid 1 of a pid namespace; it is started by `lamd pod`")
	}
	conf := os.NewFile(initConfFD, "conf")
	var c initConf
	if err := readMemoryFile(conf, &c); err != nil {
		return fmt.Errorf("podinit: read configuration: %w", err)
	}
	if err := conf.Close(); err != nil {
		return fmt.Errorf("podinit: %w", err)
	}
	if err := completeNamespaces(c); err != nil {
		return errors.Join(err, sendPacket(initSock, initMessage{Error: err.Error()}))
	}
	p := &initProc{log: log}
	children := make(chan os.Signal, 16)
	signal.Notify(children, unix.SIGCHLD)
	others := make(chan os.Signal, 1) // taken, not ignored: ignored signals would be inherited
	signal.Notify(others, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	asks := make(chan ask)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go readAsks(ctx, asks)
	if err := sendPacket(initSock, initMessage{Ready: true}); err != nil {
		return fmt.Errorf("podinit: report: %w", err)
	}
	return p.loop(ctx, asks, children)
}

// ask is a request with its descriptors, or the end of the socket.
type ask struct {
	req initRequest
	fds []int
	err error
}

// readAsks receives requests until the supervisor is gone.
func readAsks(ctx context.Context, asks chan<- ask) {
	for {
		var a ask
		a.fds, a.err = recvPacket(initSock, &a.req)
		select {
		case asks <- a:
		case <-ctx.Done():
			return
		}
		if a.err != nil {
			return
		}
	}
}

// initProc is the state of pod-init: none but its log; what runs is the
// supervisor's to know.
type initProc struct{ log zerolog.Logger }

func (p *initProc) loop(ctx context.Context, asks <-chan ask, children <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-children:
			if err := p.reap(); err != nil {
				return err
			}
		case a := <-asks:
			if errors.Is(a.err, errPeerGone) {
				p.log.Info().Msg("supervisor is gone; the pod ends")
				return nil
			}
			if a.err != nil {
				return fmt.Errorf("podinit: %w", a.err)
			}
			m, pidfd := p.serve(a)
			m.ID = a.req.ID
			err := sendPacket(initSock, m, pidfd...)
			closeFDs(pidfd)
			if err != nil {
				return fmt.Errorf("podinit: answer: %w", err)
			}
			if err := p.reap(); err != nil {
				return err
			}
		}
	}
}

// serve carries one request out. The descriptors of the request are closed.
func (p *initProc) serve(a ask) (initMessage, []int) {
	defer closeFDs(a.fds)
	switch a.req.Op {
	case opSignal:
		err := unix.Kill(-1, unix.Signal(a.req.Signal))
		if errors.Is(err, unix.ESRCH) { // there is nobody else
			err = nil
		}
		return failure(err), nil
	case opStart:
		pid, pidfd, err := p.start(a.fds)
		if err != nil {
			return failure(err), nil
		}
		return initMessage{PID: pid}, []int{pidfd}
	}
	return initMessage{Error: "unknown request " + strconv.Quote(string(a.req.Op))}, nil
}

// failure turns err into an answer; nil is success.
func failure(err error) initMessage {
	if err == nil {
		return initMessage{}
	}
	m := initMessage{Error: err.Error()}
	var no syscall.Errno
	if errors.As(err, &no) {
		m.Errno = int(no)
	}
	return m
}

// start starts the process that the memory file fds[0] describes, with
// descriptors fds[1:]. When a thread has the wanted number, the next ones are
// tried: what counts is that the number is high and known.
func (p *initProc) start(fds []int) (pid, pidfd int, err error) {
	if len(fds) == 0 {
		return 0, -1, errors.New("start: no description")
	}
	dup, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 5)
	if err != nil {
		return 0, -1, fmt.Errorf("start: %w", err)
	}
	f := os.NewFile(uintptr(dup), "procspec")
	defer func() { _ = f.Close() }() // read only
	var spec procSpec
	if err := readMemoryFile(f, &spec); err != nil {
		return 0, -1, fmt.Errorf("start: read description: %w", err)
	}
	if st, err := os.Stat(spec.Dir); err != nil {
		return 0, -1, fmt.Errorf("working directory: %w", err)
	} else if !st.IsDir() {
		return 0, -1, fmt.Errorf("working directory %s: %w", spec.Dir, unix.ENOTDIR)
	}
	const tries = 20
	for range tries {
		pid, pidfd, err = p.startOnce(spec, fds[1:])
		if err != nil || spec.PID == 0 || pid == spec.PID {
			return pid, pidfd, err
		}
		if err := discard(pid, pidfd); err != nil {
			return 0, -1, err
		}
		spec.PID++
	}
	return 0, -1, fmt.Errorf("start: process number %d is taken", spec.PID)
}

// startOnce forks and executes once; the process is stopped before its first
// instruction until it is known to have the number that it should.
func (p *initProc) startOnce(spec procSpec, fds []int) (pid, pidfd int, err error) {
	files := make([]uintptr, len(fds))
	for i, fd := range fds {
		files[i] = uintptr(fd)
	}
	pidfd = -1
	attr := &syscall.ProcAttr{Dir: spec.Dir, Env: spec.Env, Files: files, Sys: &syscall.SysProcAttr{
		Setpgid:     true, // kill(0, sig) of a rank must not meet pod-init
		Ptrace:      true,
		PidFD:       &pidfd,
		AmbientCaps: []uintptr{unix.CAP_CHECKPOINT_RESTORE},
	}}
	old := unix.Umask(spec.Umask)
	defer unix.Umask(old)
	if spec.PID > 1 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(spec.PID-1)), 0); err != nil {
			return 0, -1, fmt.Errorf("choose process number: %w", err)
		}
	}
	pid, err = syscall.ForkExec(spec.Path, spec.Argv, attr)
	if err != nil {
		return 0, -1, &os.PathError{Op: "execute", Path: spec.Path, Err: err}
	}
	var ws unix.WaitStatus
	for {
		if _, err = unix.Wait4(pid, &ws, unix.WALL, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case err != nil:
		return 0, -1, errors.Join(fmt.Errorf("start: wait for %d: %w", pid, err), unix.Close(pidfd))
	case !ws.Stopped():
		return 0, -1, errors.Join(fmt.Errorf("start: process %d ended at once, status %#x", pid, uint32(ws)), unix.Close(pidfd))
	case spec.PID != 0 && pid != spec.PID:
		return pid, pidfd, nil // still stopped: discarded by the caller
	}
	if spec.Pending {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			return 0, -1, errors.Join(err, discard(pid, pidfd))
		}
	}
	if err := unix.PtraceDetach(pid); err != nil {
		return 0, -1, errors.Join(fmt.Errorf("start: detach from %d: %w", pid, err), discard(pid, pidfd))
	}
	return pid, pidfd, nil
}

// discard kills a child that is of no use and takes its status.
func discard(pid, pidfd int) error {
	err := unix.Kill(pid, unix.SIGKILL)
	var ws unix.WaitStatus
	for {
		if _, werr := unix.Wait4(pid, &ws, unix.WALL, nil); errors.Is(werr, unix.EINTR) || werr == nil && !ws.Exited() && !ws.Signaled() {
			continue
		}
		break
	}
	return errors.Join(err, unix.Close(pidfd))
}

// reap takes the status of every child that has ended and reports it.
func (p *initProc) reap() error {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG|unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD), err == nil && pid == 0:
			return nil
		case err != nil:
			return fmt.Errorf("podinit: wait: %w", err)
		case !ws.Exited() && !ws.Signaled():
			continue
		}
		if err := sendPacket(initSock, initMessage{PID: pid, Exit: true, Status: uint32(ws)}); err != nil {
			return fmt.Errorf("podinit: report exit: %w", err)
		}
	}
}
