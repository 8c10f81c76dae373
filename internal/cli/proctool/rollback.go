package proctool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/pause"
)

// Rollback is what `rollback -o json` prints. Times are in milliseconds.
type Rollback struct {
	PID           int       `json:"pid"`
	Epoch         job.Epoch `json:"epoch"`
	RollbackMS    float64   `json:"rollback_ms"`
	RestoredBytes int64     `json:"restored_bytes"`
	Notes         []string  `json:"notes,omitempty"` // files that are not as they were
}

func newRollback() *cobra.Command {
	var pid int
	var files string
	var extra []string
	cmd := &cobra.Command{
		Use:   "rollback --pid P DIR[@EPOCH]",
		Short: "Put live processes back to an image of theirs",
		Long: `Put a process and its descendants back to an image that was made of them: the
same processes, still running, with memory, threads, descriptors and files as
they were. The image is verified before anything is touched.`,
		Args: oneArg("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if pid <= 1 {
				return usage("--pid is needed")
			}
			if err := filesWord(files); err != nil {
				return err
			}
			nums, err := extraNumbers(extra)
			if err != nil {
				return err
			}
			r, err := rollback(cmd.Context(), pid, args[0], files, nums)
			if err != nil {
				return err
			}
			if !wantsJSON(cmd) {
				if err := warn(cmd, r.Notes); err != nil {
					return err
				}
			}
			return report(cmd, r, fmt.Sprintf("process %d is back at epoch %d: %d bytes in %.1f ms", pid, r.Epoch, r.RestoredBytes, r.RollbackMS))
		},
	}
	cmd.Flags().IntVar(&pid, "pid", 0, "the process")
	cmd.Flags().StringVar(&files, "files", "truncate", "open files: truncate (offset and length back), seek, verify, save (contents back)")
	cmd.Flags().StringArrayVar(&extra, "extra-file", nil, "`FD` comes from outside and stays as it is (repeatable)")
	return cmd
}

// filesWord checks the value of --files.
func filesWord(word string) error {
	switch word {
	case "truncate", "seek", "verify", "save":
		return nil
	}
	return usage("--files %q: not one of truncate, seek, verify, save", word)
}

// warn prints notes for people.
func warn(cmd *cobra.Command, notes []string) error {
	for _, n := range notes {
		if _, err := fmt.Fprintln(cmd.ErrOrStderr(), "lam: "+n); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

// killTree kills a process with its descendants.
func killTree(pid int) error {
	pids, err := tree(pid)
	return errors.Join(err, signalAll(pids, unix.SIGKILL))
}

func rollback(ctx context.Context, pid int, arg, files string, extra []int) (_ *Rollback, err error) {
	img, err := openImage(arg)
	if err != nil {
		return nil, err
	}
	m := img.Manifest()
	if err := img.Verify(ctx, workers); err != nil {
		return nil, errors.Join(err, img.Close())
	}
	pod, err := newPod(logTo(), pid, files, extra)
	if err != nil {
		return nil, errors.Join(err, img.Close())
	}
	defer func() { err = errors.Join(err, pod.Close()) }()
	// A look at the processes makes the pod know all of them.
	// What descriptors it has by now does not matter: they go.
	if r, err := pod.Preflight(ctx); err != nil || len(r.Unfit) > 0 {
		if err == nil {
			err = explain(&pause.Refusal{Obstacles: r.Unfit})
		}
		return nil, errors.Join(err, img.Close())
	}
	if err := pod.Adopt(ctx, img, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("process %d: %w (only the processes that the image was made of go back in place, and none of them may have ended; lam proc restart rebuilds them)", pid, err), img.Close())
	}
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	begin := time.Now()
	if _, err := pod.Stop(ctx); err != nil {
		return nil, err
	}
	r, err := pod.Rollback(ctx, m.Epoch, uint64(time.Now().UnixNano())) //nolint:gosec // any number that was not used
	var refusal *pause.Refusal
	if errors.As(err, &refusal) { // nothing was touched
		_, releaseErr := pod.Release(context.WithoutCancel(ctx))
		return nil, errors.Join(explain(err), releaseErr)
	}
	if err == nil {
		_, err = pod.Release(ctx)
	}
	if err != nil { // neither what it was nor what it is to be: it must not run on
		return nil, errors.Join(fmt.Errorf("process %d is lost; restart it from the image: %w", pid, err), killTree(pid))
	}
	return &Rollback{PID: pid, Epoch: m.Epoch, RollbackMS: rounded(msSince(begin)), RestoredBytes: r.Bytes, Notes: r.Notes}, nil
}
