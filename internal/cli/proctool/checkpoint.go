package proctool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/pause"
)

// opLimit bounds the stall of a checkpoint, and a rollback.
const opLimit = 60 * time.Second

// Checkpoint is what `checkpoint -o json` prints. Times are in milliseconds.
type Checkpoint struct {
	PID      int       `json:"pid"`
	Dir      string    `json:"dir"`
	Epoch    job.Epoch `json:"epoch"`
	FreezeMS float64   `json:"freeze_ms"` // until every thread stood still
	StallMS  float64   `json:"stall_ms"`  // from the first stop until it ran again
	CopyMS   float64   `json:"copy_ms"`   // part of the stall that waited for memory
	WriteMS  float64   `json:"write_ms"`  // while it ran
	Bytes    int64     `json:"bytes"`     // memory copied

	hold    bool // leave the processes stopped
	stopped bool // they are
}

func newCheckpoint() *cobra.Command {
	var pid int
	var out string
	var kill, stop, goOn bool
	var o image.Options
	var compress, files string
	var extra []string
	cmd := &cobra.Command{
		Use:   "checkpoint --pid P --out DIR",
		Short: "Store the state of a process and its descendants",
		Long: `Store the state of a process and its descendants as the next image in DIR. They
are stopped only while memory is copied, and go on as if nothing had happened.
What cannot be stored is named, and nothing is changed then.`,
		Example: "  lam proc checkpoint --pid 4242 --out ckpt",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case pid <= 1 || out == "":
				return usage("--pid and --out are needed")
			case kill && stop || kill && goOn || stop && goOn:
				return usage("--kill, --stop and --continue exclude each other")
			}
			switch compress {
			case "none":
			case "s2":
				o.Compression = image.CompressS2
			case "zstd":
				o.Compression = image.CompressZstd
			default:
				return usage("--compress %q: not one of none, s2, zstd", compress)
			}
			if err := filesWord(files); err != nil {
				return err
			}
			nums, err := extraNumbers(extra)
			if err != nil {
				return err
			}
			c, err := checkpoint(cmd.Context(), pid, out, files, nums, o, kill, stop)
			if err != nil {
				return err
			}
			return report(cmd, c, fmt.Sprintf("%s@%d: %d bytes, stopped for %.1f ms", out, c.Epoch, c.Bytes, c.StallMS))
		},
	}
	f := cmd.Flags()
	f.IntVar(&pid, "pid", 0, "the process")
	f.StringVar(&out, "out", "", "directory of images, made if needed")
	f.BoolVar(&kill, "kill", false, "kill the processes when the image is durable; they do not run on")
	f.BoolVar(&stop, "stop", false, "leave them stopped (SIGCONT lets them go on)")
	f.BoolVar(&goOn, "continue", false, "let them go on (default)")
	f.StringVar(&compress, "compress", "none", "none, s2 or zstd")
	f.StringVar(&files, "files", "truncate", "save keeps the contents of files open for writing in the image; else truncate, seek, verify")
	f.StringArrayVar(&extra, "extra-file", nil, "`FD` comes from outside: restart is told what replaces it (repeatable)")
	f.BoolVar(&o.Direct, "direct", true, "write past the page cache where possible")
	return cmd
}

// checkpoint stores one image. With stop or kill the processes are left
// stopped at its very moment, so that they do nothing that it does not know.
func checkpoint(ctx context.Context, pid int, out, files string, extra []int, o image.Options, kill, stop bool) (_ *Checkpoint, err error) {
	pod, err := newPod(logTo(), pid, files, extra)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pod.Close()) }()
	d, err := openDir(out, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	epoch, err := d.Next()
	if err != nil {
		return nil, err
	}
	c := &Checkpoint{PID: pid, Dir: out, Epoch: epoch}
	c.hold = kill || stop
	for begin := time.Now(); ; c.Epoch++ { // a round that was given up has burnt its number
		err := store(ctx, pod, d, c, extra, o)
		if err == nil {
			break
		}
		err = errors.Join(explain(err), c.signal(unix.SIGCONT))
		if !passing(err) || time.Since(begin) > passLimit {
			return nil, err
		}
		c.stopped = false
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(passSlice):
		}
	}
	if kill {
		forgetful(ctx, pid)
		return c, c.signal(unix.SIGKILL)
	}
	return c, nil
}

// forgetful lets the connections of stopped processes, which are about to be
// killed, leave no trace in the kernel: a restart wants their addresses. Where
// that fails it has to wait for them.
func forgetful(ctx context.Context, pid int) {
	pids, err := tree(pid)
	if err != nil {
		return
	}
	var procs []stream.Process
	for _, p := range pids {
		procs = append(procs, stream.Process{PID: p})
	}
	set, err := stream.NewTree(kernel.New(nil), logTo()).Scan(ctx, procs)
	if err != nil {
		return
	}
	_ = errors.Join(set.ResetOnClose(), set.Close()) //nolint:errcheck // see above
}

// Obstacles that pass, such as a connection being set up, are waited for.
const (
	passLimit = 3 * time.Second
	passSlice = 15 * time.Millisecond
)

// passing reports whether err is a refusal that may be gone soon.
func passing(err error) bool {
	var r *pause.Refusal
	return errors.As(err, &r) && r.Retry
}

// store captures and writes the image.
func store(ctx context.Context, pod *pause.Pod, d *image.JobDir, c *Checkpoint, extra []int, o image.Options) error {
	if err := capture(ctx, pod, c, extra); err != nil {
		return err
	}
	begin := time.Now()
	written, err := pod.Write(ctx, c.Epoch, d, o, pause.Extra{})
	c.WriteMS = rounded(msSince(begin))
	if err == nil {
		err = markCommitted(d, c.Epoch, written)
	}
	if err == nil {
		err = pod.Commit(ctx, c.Epoch)
	}
	return err
}

// capture carries out the stall. On an error the processes go on as before.
func capture(ctx context.Context, pod *pause.Pod, c *Checkpoint, extra []int) error {
	stall, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	begin := time.Now()
	if err := freezeAll(stall, pod, c.PID, extra, c.Epoch); err != nil {
		return err
	}
	c.FreezeMS = rounded(msSince(begin))
	_, err := pod.CaptureSend(stall, c.Epoch)
	var r *pause.Report
	if err == nil {
		r, err = pod.CaptureRecv(stall, c.Epoch)
	}
	if err == nil {
		c.CopyMS, c.Bytes = rounded(r.TimesMS["copy"]), r.Bytes
		err = c.resume(stall, pod)
	}
	if err != nil {
		return errors.Join(err, pod.Abandon(context.WithoutCancel(ctx), c.Epoch))
	}
	c.StallMS = rounded(msSince(begin))
	return nil
}

// resume lets the processes go on, or leaves them stopped.
func (c *Checkpoint) resume(ctx context.Context, pod *pause.Pod) error {
	if !c.hold {
		_, err := pod.Resume(ctx, c.Epoch, nil)
		return err
	}
	_, err := pod.ResumeStopped(ctx, c.Epoch, nil)
	c.stopped = true // some may be, whatever the error
	return err
}

// signal sends sig to all processes when they were left stopped.
func (c *Checkpoint) signal(sig unix.Signal) error {
	if !c.stopped {
		return nil
	}
	pids, err := trees(c.PID)
	if err != nil {
		return err
	}
	return signalAll(pids, sig)
}

// markCommitted notes that the image is whole: there is nobody else to ask.
func markCommitted(d *image.JobDir, epoch job.Epoch, w *podapi.Written) error {
	pods := map[job.PodIndex]string{0: w.Digest}
	return d.MarkCommitted(image.Commit{Job: theJob, Epoch: epoch, SetDigest: image.SetDigest(pods), Pods: pods, Record: []byte("{}")})
}

func msSince(t time.Time) float64 { return float64(time.Since(t).Microseconds()) / 1000 }

// obstacles is a refusal in full.
type obstacles struct {
	text    string
	refusal *pause.Refusal
}

// Error lists all of them.
func (o *obstacles) Error() string { return o.text }

// Unwrap returns the refusal.
func (o *obstacles) Unwrap() error { return o.refusal }

// explain lists all obstacles of a refusal, one per line.
func explain(err error) error {
	var r *pause.Refusal
	if !errors.As(err, &r) {
		return err
	}
	text := "there are obstacles:"
	for _, o := range r.Obstacles {
		text += "\n  " + o
	}
	return &exitError{job.ExitInternal, &obstacles{text, r}}
}

// Obstacles is what `check -o json` prints.
type Obstacles struct {
	PID       int      `json:"pid"`
	OK        bool     `json:"ok"`
	Obstacles []string `json:"obstacles"`
}

func newCheck() *cobra.Command {
	var pid int
	var extra []string
	cmd := &cobra.Command{
		Use:   "check --pid P",
		Short: "Name every obstacle to a checkpoint",
		Long: `Name everything about a process and its descendants that keeps them from being
checkpointed. Exit code 0 when there is nothing, 1 otherwise.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if pid <= 1 {
				return usage("--pid is needed")
			}
			nums, err := extraNumbers(extra)
			if err != nil {
				return err
			}
			r, err := check(cmd.Context(), pid, nums)
			if err != nil {
				return err
			}
			lines := r.Obstacles
			if r.OK {
				lines = []string{"no obstacles"}
			}
			if err := report(cmd, r, lines...); err != nil || r.OK {
				return err
			}
			return &exitError{code: 1}
		},
	}
	cmd.Flags().IntVar(&pid, "pid", 0, "the process")
	cmd.Flags().StringArrayVar(&extra, "extra-file", nil, "`FD` comes from outside and is no obstacle (repeatable)")
	return cmd
}

func check(ctx context.Context, pid int, extra []int) (_ *Obstacles, err error) {
	pod, err := newPod(logTo(), pid, "", extra)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pod.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	r, err := pod.Preflight(ctx)
	var refusal *pause.Refusal
	if errors.As(err, &refusal) {
		r, err = &pause.Report{Obstacles: refusal.Obstacles}, nil
	}
	if err != nil {
		return nil, err
	}
	return &Obstacles{PID: pid, OK: len(r.Obstacles) == 0, Obstacles: append([]string{}, r.Obstacles...)}, nil
}
