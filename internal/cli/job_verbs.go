package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/mpirun"
)

func newCheckpoint(a *App) *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint JOB",
		Short: "Take a checkpoint of a job now",
		Long:  "Take a checkpoint now, whatever the job's interval. Returns once the epoch is committed.",
		Args:  exactly("JOB"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withJob(args[0], func(c *control.Client, id job.ID) error {
				done, err := c.Checkpoint(cmd.Context(), id)
				if err != nil {
					return err
				}
				if a.Format == formatJSON {
					return a.emitJSON(done)
				}
				return a.say("job %v: epoch %d committed, %s, stall %.1f ms", id, done.Epoch, sizeText(done.Bytes), done.StallMS)
			})
		},
	}
}

func newRestart(a *App) *cobra.Command {
	var attach bool
	cmd := &cobra.Command{
		Use:   "restart JOB[@EPOCH]",
		Short: "Start an ended or vacated job again from its images",
		Long: `Start a job that has ended again from the images of its newest committed epoch,
or of EPOCH, on any nodes that there are; also on a cluster that has never seen
the job, as long as its nodes hold the images. "lam attach JOB" shows its output.`,
		Example: "  lam restart 3\n  lam restart 3@12",
		Args:    exactly("JOB[@EPOCH]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, epoch, err := epochArg(args[0])
			if err != nil {
				return err
			}
			c, err := a.Client()
			if err != nil {
				return err
			}
			started, err := c.Restart(cmd.Context(), id, epoch)
			switch {
			case err != nil:
				return err
			case attach:
				return a.attach(cmd.Context(), started, mpirun.AttachOptions{})
			case a.Format == formatJSON:
				return a.emitJSON(control.Submitted{Job: started})
			}
			return a.say("job %v: restarting", started)
		},
	}
	cmd.Flags().BoolVar(&attach, "attach", false, "show the job's output and end with its exit code, as mpirun does")
	return cmd
}

// withJob calls do with a client and the job that the command line names.
//
// Expected errors: a usage error of the name; those of Client and of do.
func (a *App) withJob(name string, do func(*control.Client, job.ID) error) error {
	id, err := jobArg(name)
	if err != nil {
		return err
	}
	c, err := a.Client()
	if err != nil {
		return err
	}
	return do(c, id)
}

// epochArg reads JOB or JOB@EPOCH; epoch 0 stands for the newest.
func epochArg(text string) (job.ID, job.Epoch, error) {
	name, number, given := strings.Cut(text, "@")
	id, err := jobArg(name)
	if err != nil || !given {
		return id, 0, err
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || n == 0 {
		return 0, 0, usage("epoch %q: not a positive number (lam job %v lists them)", number, id)
	}
	return id, job.Epoch(n), nil
}

func newSuspend(a *App) *cobra.Command {
	return a.verb(control.Suspend, "Stop the ranks of a job where they are",
		`Stop the ranks of a job where they are, without an image. They keep their memory;
"lam resume" lets them go on.`)
}

func newResume(a *App) *cobra.Command {
	return a.verb(control.Resume, "Let a suspended job go on", `Let the ranks of a suspended job go on.`)
}

func newVacate(a *App) *cobra.Command {
	return a.verb(control.Vacate, "Checkpoint a job and free its nodes",
		`Take a checkpoint, end the ranks and free the nodes. The images stay; "lam restart"
starts the job again. The job's mpirun ends with exit code 75.`)
}

func newKill(a *App) *cobra.Command {
	return a.verb(control.Kill, "End a job at once", `Kill all ranks of a job and remove its images.`)
}

// verb makes a command that gives an order to a job and prints nothing.
func (a *App) verb(v control.Verb, short, long string) *cobra.Command {
	return &cobra.Command{
		Use:   string(v) + " JOB",
		Short: short,
		Long:  long,
		Args:  exactly("JOB"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withJob(args[0], func(c *control.Client, id job.ID) error { return c.Do(cmd.Context(), id, v) })
		},
	}
}

// say prints one line on stdout.
func (a *App) say(format string, args ...any) error {
	if _, err := fmt.Fprintf(a.Stdout, format+"\n", args...); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
