package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/mpirun"
)

// jobCommands are the commands about jobs.
func jobCommands(a *App) []*cobra.Command {
	return []*cobra.Command{
		newRun(a), newAttach(a), newJobs(a), newJob(a), newEvents(a), newCheckpoint(a), newRestart(a),
		newSuspend(a), newResume(a), newVacate(a), newKill(a), newDemo(a),
	}
}

// process is this process as mpirun sees it. Signals go to the job from now
// on; release ends that.
func (a *App) process(name string) (p mpirun.Process, release func(), err error) {
	p, release, err = mpirun.OSProcess(name)
	if err != nil {
		return p, nil, err
	}
	p.Stdin, p.Stdout, p.Stderr = a.Stdin, a.Stdout, a.Stderr
	p.Version = BuildVersion().String()
	if p.Dirs, err = a.Dirs(); err != nil {
		release()
		return p, nil, err
	}
	return p, release, nil
}

func newRun(a *App) *cobra.Command {
	return &cobra.Command{
		Use:                "run [OPTIONS] PROGRAM [ARGUMENTS]",
		Short:              "Run an MPI program (the same as mpirun)",
		Long:               mpirun.Usage("lam run"),
		DisableFlagParsing: true, // MPI users write -np and -genv A B
		RunE: func(cmd *cobra.Command, args []string) error {
			p, release, err := a.process("lam run")
			if err != nil {
				return err
			}
			defer release()
			// The first Ctrl-C is the job's to handle: it must not cancel us.
			return ended(mpirun.Main(context.WithoutCancel(cmd.Context()), p, args))
		},
	}
}

func newAttach(a *App) *cobra.Command {
	var o mpirun.AttachOptions
	cmd := &cobra.Command{
		Use:   "attach JOB",
		Short: "Take over the output and the signals of a running job",
		Long: `Go on where the mpirun of a job stopped: print its output from there, pass
signals to it, and end with its exit code. The job's standard input is not taken
over.`,
		Args: exactly("JOB"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := jobArg(args[0])
			if err != nil {
				return err
			}
			return a.attach(cmd.Context(), id, o)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.Label, "label", "l", false, `begin every line with "[RANK] "`)
	f.StringVar(&o.OutputFile, "output-filename", "", "write the output to NAME.RANK.out and NAME.RANK.err")
	f.BoolVar(&o.FromStart, "from-start", false, "print all the output, not only what nobody has read")
	return cmd
}

// attach follows a job to its end. ctx gives values only: signals are the
// job's.
func (a *App) attach(ctx context.Context, id job.ID, o mpirun.AttachOptions) error {
	p, release, err := a.process("lam attach")
	if err != nil {
		return err
	}
	defer release()
	return ended(mpirun.Attach(context.WithoutCancel(ctx), p, id, o))
}

// ended turns the exit code of a job into the end of the command: what there
// is to say has been said.
func ended(code int) error {
	if code == 0 {
		return nil
	}
	return WithExit(code, nil)
}
