package mpirun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/lampause/lampause/internal/config"
	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

// Process is what a client takes from the process that it runs in. Tests make
// their own.
type Process struct {
	Name    string // of the command, in front of messages: "mpirun"
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Environ []string
	Dir     string // working directory, absolute
	Dirs    paths.Dirs
	Presets *config.Settings // of options, nil: none
	Signals <-chan os.Signal // nil: none are handled
	Stop    func()           // stops the process, as SIGSTOP does
	Version string           // printed by --version
}

// OSProcess returns this process as seen by a command called name. Signals are
// caught from now on; release lets them have their usual effect again.
//
// Expected errors: *Error with job.ExitConfig, or no working directory.
func OSProcess(name string) (p Process, release func(), err error) {
	presets, err := config.Load(os.Getenv)
	if err != nil {
		return Process{}, nil, &Error{Exit: job.ExitConfig, Err: err}
	}
	where := paths.OSEnv()
	where.Get = presets.Get
	dirs, err := paths.Resolve(where)
	if err != nil {
		return Process{}, nil, &Error{Exit: job.ExitConfig, Err: err}
	}
	dir, err := os.Getwd()
	if err != nil {
		return Process{}, nil, fail(job.ExitUsage, "working directory: %w", err)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded()...)
	return Process{
		Name: name, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Environ: os.Environ(), Dir: dir, Dirs: dirs, Presets: presets, Signals: signals, Stop: stopSelf,
	}, func() { signal.Stop(signals) }, nil
}

// client returns a client of the cluster in p's runtime directory.
func (p Process) client() *control.Client {
	return control.NewClient(func() []string {
		var all []string
		for _, n := range p.Dirs.Nodes() {
			all = append(all, p.Dirs.NodeSocket(n))
		}
		return all
	}, p.Dirs.Runtime)
}

// Main runs one MPI command line (without the command's name) to the end of
// its job and returns the exit code. Errors are printed to p.Stderr.
func Main(ctx context.Context, p Process, args []string) int {
	o, err := parse(args, p.Presets)
	switch {
	case err != nil:
		return p.complain(err)
	case o.help:
		return p.print(Usage(p.Name))
	case o.version:
		return p.print(p.Version + "\n")
	}
	spec, err := buildSpec(o, p.Environ, p.Dir)
	if err != nil {
		return p.complain(err)
	}
	client := p.client()
	if err := p.suit(ctx, client, o, &spec); err != nil {
		return p.complain(err)
	}
	id, err := client.Submit(ctx, spec)
	if err != nil {
		return p.complain(err)
	}
	s := &session{p: p, client: client, id: id, label: o.label, files: o.outputFile, quiet: o.quiet}
	s.stdin = p.Stdin
	if o.noStdin {
		s.stdin = strings.NewReader("") // an end at once, else who reads would wait
	}
	if o.verbose {
		s.note(fmt.Sprintf("job %v", id))
	}
	return s.run(ctx)
}

// enoughNodes is how many nodes it takes to agree on the loss of one.
const enoughNodes = 3

// suit fits what the user left open to the cluster: on fewer than three nodes
// no loss can be agreed upon, so a job there runs unprotected unless
// --on-failure says otherwise; -oversubscribe becomes a number per node.
//
// Expected errors: *control.Error.
func (p Process) suit(ctx context.Context, client *control.Client, o options, spec *job.Spec) error {
	if o.onFailureSet && !o.oversubscr {
		return nil
	}
	nodes, err := client.Nodes(ctx)
	if err != nil {
		return err
	}
	alive, compute, named := 0, 0, 0
	for _, n := range nodes {
		if n.State == "alive" {
			alive++
			if n.Role == "compute" {
				compute++
			}
		}
	}
	for _, h := range spec.Hosts {
		if !h.Spare {
			named++
		}
	}
	if named > 0 {
		compute = named
	}
	if o.oversubscr && compute > 0 {
		spec.PPN = (spec.Ranks + compute - 1) / compute
	}
	if !o.onFailureSet && alive < enoughNodes {
		spec.OnFailure = job.OnFailureAbort
		if o.ckptSet && spec.CkptInterval > 0 {
			_, _ = fmt.Fprintf(p.Stderr, "%s: %d nodes cannot agree on the loss of one: the job ends if one dies (3 nodes are needed)\n", p.Name, alive)
		}
	}
	return nil
}

// AttachOptions are the flags of `lam attach`.
type AttachOptions struct {
	Label      bool   // begin every line with its rank
	OutputFile string // as mpirun's --output-filename
	FromStart  bool   // print the whole output, not only what nobody has read
}

// Attach takes over the output and the signals of a running job, where the
// client before it stopped, and returns the job's exit code at its end. stdin
// is not taken over.
func Attach(ctx context.Context, p Process, id job.ID, o AttachOptions) int {
	client := p.client()
	if _, err := client.Job(ctx, id); err != nil {
		return p.complain(err)
	}
	s := &session{p: p, client: client, id: id, label: o.Label, files: o.OutputFile, resume: !o.FromStart}
	return s.run(ctx)
}

func (p Process) print(text string) int {
	if _, err := io.WriteString(p.Stdout, text); err != nil {
		return p.complain(err)
	}
	return 0
}

// complain prints err as one line and returns its exit code.
func (p Process) complain(err error) int {
	_, _ = fmt.Fprintf(p.Stderr, "%s: %v\n", p.Name, err) // nowhere to report it
	return ExitCode(err)
}

// ExitCode returns the exit code that err leads to: that of an *Error, else
// what the control client says.
func ExitCode(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Exit
	}
	return control.ExitCode(err)
}
