package proctool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/nsinit"
	"github.com/lampause/lampause/job"
)

// workers is how many goroutines read or store memory.
const workers = 4

// firstPID is the pid inside of a program that run starts: high, so that
// nothing else in a namespace is ever given it.
const firstPID = 2000

func newRun() *cobra.Command {
	var pidFile string
	cmd := &cobra.Command{
		Use:   "run CMD [ARG]...",
		Short: "Run a program so that it can be restarted",
		Long: `Run a program in private pid namespaces, so that "lam proc restart" can give it
its pids again. Signals are forwarded; the exit code is the program's, 128 + n
when signal n ended it.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("missing CMD: %s CMD [ARG]...", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return run(context.WithoutCancel(cmd.Context()), args, pidFile)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVar(&pidFile, "pid-file", "", "file to write the program's pid to")
	return cmd
}

func run(ctx context.Context, argv []string, pidFile string) (err error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return notFound(argv[0], err)
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	signals := takeSignals()
	defer signal.Stop(signals)
	n, err := startNamespace(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	p, err := n.Spawn(ctx, nsinit.Spec{PID: firstPID, Path: path, Argv: argv, Env: os.Environ(), Dir: dir, Stopped: true}, os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		return notFound(argv[0], err)
	}
	defer p.Pidfd.Close()     //nolint:errcheck // a pidfd
	defer foreground(p.PID)() // before the program may read from the terminal
	if err := errors.Join(signalAll([]int{p.PID}, unix.SIGCONT), writePID(pidFile, p.PID)); err != nil {
		return err
	}
	return attend(ctx, n, p.Inner, p.PID, signals)
}

func writePID(file string, pid int) error {
	if file == "" {
		return nil
	}
	return os.WriteFile(file, []byte(strconv.Itoa(pid)+"\n"), 0o644) //nolint:gosec // no secret
}

// notFound gives the errors of starting a program their exit codes.
func notFound(name string, err error) error {
	code := job.ExitInternal
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		code = job.ExitUsage
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.ENOEXEC):
		code = job.ExitPermission
	}
	var look *exec.Error // names the program itself
	if errors.As(err, &look) {
		err = look.Err
	}
	return &exitError{code, fmt.Errorf("%s: %w", name, err)}
}

// startNamespace runs ourselves as init of new namespaces.
func startNamespace(ctx context.Context) (*nsinit.Namespace, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	n, err := nsinit.Start(ctx, []string{exe, "proc", "init"}, os.Environ())
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOSPC) {
		return nil, &exitError{job.ExitPermission, fmt.Errorf("user namespaces are not permitted here (lam doctor tells more): %w", err)}
	}
	return n, err
}

// takeSignals collects the signals that a program may want instead of us.
func takeSignals() chan os.Signal {
	c := make(chan os.Signal, 16)
	signal.Notify(c, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGALRM, unix.SIGWINCH, unix.SIGCONT, unix.SIGTSTP)
	return c
}

// attend forwards signals to process pid until the process that is called
// inner inside has ended, and turns its status into our exit code.
func attend(ctx context.Context, n *nsinit.Namespace, inner, pid int, signals <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case s := <-signals:
				if no, ok := s.(unix.Signal); ok {
					_ = unix.Kill(pid, no) //nolint:errcheck // it may have ended
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	ws, err := n.Wait(ctx, inner)
	cancel()
	<-done
	if err != nil {
		return err
	}
	if code := exitCode(ws); code != 0 {
		return &exitError{code: code}
	}
	return nil
}

func exitCode(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// foreground makes the process group of pid the terminal's, when we are on one
// and in its foreground, and returns what undoes that.
// Source: tcsetpgrp(3), credentials(7).
func foreground(pid int) func() {
	tty := int(os.Stdin.Fd())
	ours, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	if err != nil || ours != unix.Getpgrp() {
		return func() {}
	}
	group, err := unix.Getpgid(pid)
	if err != nil || group == ours {
		return func() {}
	}
	signal.Ignore(unix.SIGTTOU) // we are in the background when we take it back
	if err := unix.IoctlSetPointerInt(tty, unix.TIOCSPGRP, group); err != nil {
		return func() {}
	}
	return func() { _ = unix.IoctlSetPointerInt(tty, unix.TIOCSPGRP, ours) } //nolint:errcheck // the terminal may be gone
}
