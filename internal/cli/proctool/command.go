package proctool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/nsinit"
	"github.com/lampause/lampause/job"
)

// Command returns the command `proc` with its subcommands. It prints JSON when
// the flag "output" of the command tree says "json". Errors that ask for an
// exit code have a method ExitCode() int.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "proc",
		Short: "Checkpoint, roll back and restart a single program",
		Long: `Checkpoint, roll back and restart the processes of any program, without a
cluster and without privilege. The program is neither recompiled nor preloaded.

  lam proc run ./simulate &
  lam proc checkpoint --pid $(pgrep simulate) --out ckpt
  lam proc rollback --pid $(pgrep simulate) ckpt
  lam proc restart ckpt

A program that shall be restarted with its pids is started by "lam proc run".`,
	}
	cmd.AddCommand(newRun(), newCheckpoint(), newRollback(), newRestart(), newInspect(), newCheck(), newInit())
	return cmd
}

// newInit is pid 1 of the namespaces of run and restart.
func newInit() *cobra.Command {
	return &cobra.Command{
		Use: "init", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return nsinit.Serve(cmd.Context()) },
	}
}

// exitError gives an error, or silence when err is nil, an exit code.
type exitError struct {
	code int
	err  error
}

// Error implements error.
func (e *exitError) Error() string {
	if e.err == nil {
		return "exit status " + strconv.Itoa(e.code)
	}
	return e.err.Error()
}

// Unwrap returns the cause.
func (e *exitError) Unwrap() error { return e.err }

// ExitCode returns the code that lam should end with.
func (e *exitError) ExitCode() int { return e.code }

// Silent reports that there is nothing to print.
func (e *exitError) Silent() bool { return e.err == nil }

func usage(format string, args ...any) error {
	return &exitError{job.ExitUsage, fmt.Errorf(format, args...)}
}

// oneArg wants exactly one argument, called word.
func oneArg(word string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usage("%s: want %s and nothing else", cmd.CommandPath(), word)
		}
		return nil
	}
}

// noArgs wants none.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("unexpected argument %q: %s", args[0], cmd.CommandPath())
	}
	return nil
}

// wantsJSON reports whether -o json was given.
func wantsJSON(cmd *cobra.Command) bool {
	f := cmd.Flag("output")
	return f != nil && f.Value.String() == "json"
}

// report prints v as JSON, or else the lines.
func report(cmd *cobra.Command, v any, lines ...string) error {
	w := cmd.OutOrStdout()
	if !wantsJSON(cmd) {
		for _, l := range lines {
			if _, err := fmt.Fprintln(w, l); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
		return nil
	}
	return printJSON(w, v)
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// theJob is the job number in images of `lam proc`: there is but one.
const theJob job.ID = 1

// openDir opens a directory of images; with create it is made if needed.
func openDir(path string, create bool) (*image.JobDir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if create {
		if err := os.Mkdir(abs, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
	}
	return image.OpenJob(abs, theJob)
}

// openImage opens the image that "DIR" (the newest) or "DIR@EPOCH" names.
//
// Expected errors: those of image.JobDir.Open; one that says that DIR is empty.
func openImage(arg string) (*image.Reader, error) {
	path, number, given := arg, "", false
	if i := strings.LastIndexByte(arg, '@'); i > 0 {
		if _, err := os.Stat(arg); err != nil {
			path, number, given = arg[:i], arg[i+1:], true
		}
	}
	d, err := openDir(path, false)
	if err != nil {
		return nil, err
	}
	defer d.Close() //nolint:errcheck // readers have files of their own
	var epoch job.Epoch
	if given {
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil || n == 0 {
			return nil, usage("epoch %q: not a positive number", number)
		}
		epoch = job.Epoch(n)
	} else {
		all, err := d.Epochs()
		if err != nil {
			return nil, err
		}
		for _, e := range all {
			if len(e.Pods) > 0 {
				epoch = e.Epoch
			}
		}
		if epoch == 0 {
			return nil, fmt.Errorf("%s: no image in it: %w", path, image.ErrIncomplete)
		}
	}
	return d.Open(epoch, 0)
}

// rounded is for reports: milliseconds with microseconds.
func rounded(ms float64) float64 { return float64(int64(ms*1000+0.5)) / 1000 }
