package proctool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/nsinit"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/migrate"
)

// Restart is what `restart -o json` prints, on stderr unless --detach. Times
// are in milliseconds.
type Restart struct {
	PID       int                `json:"pid"`
	Epoch     job.Epoch          `json:"epoch"`
	RestoreMS float64            `json:"restore_ms"`
	Bytes     int64              `json:"bytes"`
	TimesMS   map[string]float64 `json:"times_ms"`
	Notes     []string           `json:"notes,omitempty"`
}

func newRestart() *cobra.Command {
	var detach bool
	var o restartOptions
	cmd := &cobra.Command{
		Use:   "restart DIR[@EPOCH]",
		Short: "Rebuild processes that are gone, from their image",
		Long: `Rebuild the processes of an image with their old pids, in private pid
namespaces, and let them go on. lam stays as their parent: it forwards signals
and ends with the program's exit code. Standard input, output and error are
lam's own unless they were files.`,
		Args: oneArg("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := filesWord(o.files); err != nil {
				return err
			}
			if detach {
				return detached(cmd, args[0], &o)
			}
			reported := false
			err := restart(context.WithoutCancel(cmd.Context()), args[0], &o, func(r *Restart) error {
				reported = true
				if o.reportFD > 0 {
					return reportTo(o.reportFD, r)
				}
				if !wantsJSON(cmd) {
					return warn(cmd, r.Notes)
				}
				return printJSON(cmd.ErrOrStderr(), r)
			})
			if err != nil && !reported && o.reportFD > 0 {
				return errors.Join(tell(o.reportFD, err), &exitError{code: codeOf(err)})
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&detach, "detach", false, "return when the processes run; they go on without a terminal")
	f.StringVar(&o.files, "files", "truncate", "open files: truncate (offset and length back), seek, verify, save")
	f.StringVar(&o.pidFile, "pid-file", "", "file to write the program's pid to")
	f.StringArrayVar(&o.extra, "extra-file", nil, "what replaces a descriptor that came from outside: `FD=PATH`, or FD=&N for lam's own (repeatable)")
	f.IntVar(&o.reportFD, "report-fd", 0, "descriptor to write the report to, as JSON")
	_ = f.MarkHidden("report-fd") //nolint:errcheck // the flag exists
	return cmd
}

// restartOptions are the flags of restart.
type restartOptions struct {
	files, pidFile string
	extra          []string
	reportFD       int // of the command that runs us detached
}

// reportTo prints the report for the command that runs us and closes its pipe.
func reportTo(fd int, r *Restart) error {
	f := os.NewFile(uintptr(fd), "report")
	return errors.Join(printJSON(f, r), f.Close())
}

// tell hands an error to the command that runs us, instead of a report.
func tell(fd int, err error) error {
	f := os.NewFile(uintptr(fd), "report")
	_, werr := fmt.Fprintln(f, err)
	return errors.Join(werr, f.Close())
}

// codeOf returns the exit code that goes with err.
func codeOf(err error) int {
	var coded *exitError
	if errors.As(err, &coded) {
		return coded.code
	}
	return job.ExitInternal
}

// restart rebuilds, tells started, and attends the processes until the end.
func restart(ctx context.Context, arg string, o *restartOptions, started func(*Restart) error) (err error) {
	extra, err := parseExtras(o.extra)
	if err != nil {
		return err
	}
	defer extra.close()
	signals := takeSignals()
	defer signal.Stop(signals)
	img, err := openImage(arg)
	if err != nil {
		return err
	}
	closeImage := func() error {
		if img == nil {
			return nil
		}
		err := img.Close()
		img = nil
		return err
	}
	defer func() { err = errors.Join(err, closeImage()) }()
	n, err := startNamespace(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	begin := time.Now()
	built, err := rebuild(ctx, n, img, o.files, extra)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, built.close()) }()
	m := img.Manifest()
	root := m.Ranks[0]
	r := &Restart{PID: built.PIDs()[root], Epoch: m.Epoch, Bytes: built.Bytes, Notes: built.Notes, TimesMS: map[string]float64{}}
	for name, d := range built.Times {
		r.TimesMS[name] = rounded(float64(d.Microseconds()) / 1000)
	}
	back, resized := terminal(m)
	defer back()
	front := foregroundOf(m, built.PIDs(), root)
	defer foreground(front)() // before anybody may read from the terminal
	if err := errors.Join(closeImage(), built.release(ctx)); err != nil {
		return err
	}
	if resized {
		_ = unix.Kill(front, unix.SIGWINCH) //nolint:errcheck // it may have ended
	}
	r.RestoreMS = rounded(msSince(begin))
	if err := errors.Join(writePID(o.pidFile, r.PID), started(r)); err != nil {
		return err
	}
	return attend(ctx, n, root, r.PID, signals)
}

// rebuilt are the processes with their connections, all of them still frozen.
type rebuilt struct {
	*migrate.Restored
	sockets *stream.Restored
}

// release lets everything go on.
func (r *rebuilt) release(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	if err := r.sockets.Release(limit); err != nil {
		return err
	}
	return errors.Join(r.close(), r.Restored.Release(ctx))
}

// close gives our duplicates of the sockets back.
func (r *rebuilt) close() error {
	return r.sockets.Close()
}

// rebuild restores the image with a seed in n.
func rebuild(ctx context.Context, n *nsinit.Namespace, img *image.Reader, files string, extra *extras) (_ *rebuilt, err error) {
	host, err := image.LocalHost()
	if err != nil {
		return nil, err
	}
	seed, done, err := startSeed(ctx, n, max(firstPID, img.Manifest().LastPID()+1))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	sys := kernel.New(nil)
	record := stream.FromDescriptions(img.Manifest().Descriptions)
	sockets, err := stream.NewTree(sys, logTo()).Restore(ctx, record, nil, 0)
	if err != nil {
		return nil, err
	}
	built, err := migrate.Restore(ctx, migrate.Config{
		Sys: sys, Log: logTo(), Seeds: []migrate.Seed{seed}, Sources: outside{sockets, extra},
		Files: migrate.FilePolicy(files), Workers: workers, Owner: &host,
	}, img)
	if err != nil {
		return nil, errors.Join(err, sockets.Close())
	}
	return &rebuilt{built, sockets}, nil
}

// startSeed starts a seed; done ends it. Processes that the program starts later
// are numbered from pid on, so that none has the number of a thread of init,
// which the next restart could not give it again.
func startSeed(ctx context.Context, n *nsinit.Namespace, pid int) (_ migrate.Seed, done func() error, err error) {
	program, err := migrate.SeedFile()
	if err != nil {
		return migrate.Seed{}, nil, err
	}
	ours, theirs, err := migrate.SeedSocket()
	if err != nil {
		return migrate.Seed{}, nil, errors.Join(err, program.Close())
	}
	p, err := n.Spawn(ctx, nsinit.Spec{PID: pid, Path: migrate.SeedPath, Argv: []string{"lam-seed"}, Dir: "/"}, program, theirs)
	if err = errors.Join(err, program.Close(), theirs.Close()); err != nil {
		return migrate.Seed{}, nil, errors.Join(err, ours.Close())
	}
	return migrate.Seed{PID: p.PID, Sock: ours}, func() error {
		return errors.Join(syscall.Kill(p.PID, syscall.SIGKILL), p.Pidfd.Close(), ours.Close())
	}, nil
}

// outside gives our own standard streams to the processes, and the connections
// that were made for them.
type outside struct {
	sockets *stream.Restored
	extra   *extras
}

// Descriptor implements migrate.Sources.
func (o outside) Descriptor(_ context.Context, _ int, d *image.Description) (int, error) {
	if d.TCP != nil {
		if fd, ok := o.sockets.Socket(d.TCP.Cookie); ok {
			return fd, nil
		}
	}
	for i, name := range stdioNames() {
		if d.External == name {
			return i, nil
		}
	}
	if d.Kind == image.FDTTY {
		return o.extra.open(d.Path, d.Flags)
	}
	if fd, ok, err := o.extra.get(d.External, d.Flags); ok {
		return fd, err
	}
	return -1, fmt.Errorf("%w: %s %s has its other end outside of the image", image.ErrMismatch, d.Kind, d.External+d.Path)
}

// detached runs `restart` as a daemon of its own session and waits for its
// report.
func detached(cmd *cobra.Command, arg string, o *restartOptions) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // read only
	const reportFD = 3
	args := []string{"proc", "restart", "--files", o.files, "--pid-file", o.pidFile, "--report-fd", strconv.Itoa(reportFD)}
	for _, e := range o.extra {
		if strings.Contains(e, "=&") {
			return errors.Join(usage("--extra-file %s: a detached restart has no descriptors of its caller; name a path", e), w.Close())
		}
		args = append(args, "--extra-file", e)
	}
	c := exec.CommandContext(context.WithoutCancel(cmd.Context()), exe, append(args, arg)...)
	if keepsOutput(os.Stdout, wantsJSON(cmd)) {
		c.Stdout = os.Stdout
	}
	if keepsOutput(os.Stderr, wantsJSON(cmd)) {
		c.Stderr = os.Stderr
	}
	c.ExtraFiles = []*os.File{w}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = c.Start()
	if err = errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	text, got, err := firstDocument(r)
	if err != nil {
		return endedEarly(c, text, err)
	}
	if err := c.Process.Release(); err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	return report(cmd, got, strconv.Itoa(got.PID))
}

// endedEarly turns the end of a detached restart that did not report into an
// error; it sends its own as text instead of a report.
func endedEarly(c *exec.Cmd, text string, err error) error {
	waitErr := c.Wait()
	var exit *exec.ExitError
	if errors.As(waitErr, &exit) && exit.ExitCode() > 0 {
		return &exitError{exit.ExitCode(), errors.New(strings.TrimSpace(text))}
	}
	return fmt.Errorf("restart: %w", err)
}

// keepsOutput reports whether a detached program goes on writing to f, which
// is our standard output or error: not to a terminal, and not to a pipe whose
// reader wants a report and then its end.
func keepsOutput(f *os.File, report bool) bool {
	if st, err := f.Stat(); err != nil || report && !st.Mode().IsRegular() {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err != nil
}
