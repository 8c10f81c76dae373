package cli

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/lampause/lampause/bench"
	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// mpiArgs are the arguments of lam run for one run of the kernel.
func (d *demo) mpiArgs(interval string) []string {
	return []string{"-n", fmt.Sprint(d.ranks), "-ppn", "1", "--ckpt-interval", interval, "--on-failure", "pause", d.program}
}

// progress returns a function that tells some of the lines of the program, at
// most one in a while, and fewer the longer it runs.
func (d *demo) progress() func(string) {
	start := time.Now()
	var last time.Time
	return func(line string) {
		result := strings.Contains(line, "VERIFICATION") || strings.HasPrefix(line, "# time")
		rest := max(2*time.Second, time.Since(start)/5)
		if result || time.Since(last) > rest && !strings.HasPrefix(line, "#") {
			last = time.Now()
			d.tell("  | %s", line)
		}
	}
}

// outcome waits for a run and refuses one that did not succeed.
func (d *demo) outcome(r *bench.Run) (bench.Outcome, error) {
	o, err := r.Wait()
	if err != nil {
		return o, err
	}
	if o.Code != 0 || !strings.Contains(o.Stdout, "VERIFICATION SUCCESSFUL") {
		return o, WithExit(job.ExitInternal, fmt.Errorf("%s ended with exit code %d: %s", d.kernel, o.Code, lastLine(o.Stdout+o.Stderr)))
	}
	return o, nil
}

// undisturbed runs the kernel for its digits and its time.
func (d *demo) undisturbed(ctx context.Context) error {
	d.head("first run: %s on %d ranks, undisturbed", d.kernel, d.ranks)
	r, err := d.cluster.Start(ctx, d.progress(), d.mpiArgs("off")...)
	if err != nil {
		return err
	}
	o, err := d.outcome(r)
	if err != nil {
		return err
	}
	d.result.Undisturbed = o.Elapsed.Seconds()
	d.result.Digits = bench.Digits(o.Stdout)
	if d.interval == 0 {
		d.interval = max(time.Second, (o.Elapsed / 5).Round(time.Second))
	}
	return nil
}

// disturbed runs it with checkpoints and takes the power of a node away in the
// middle.
func (d *demo) disturbed(ctx context.Context) error {
	d.head("second run: a checkpoint every %v, and a node loses its power in the middle", d.interval)
	after, err := d.cluster.LastEvent(ctx)
	if err != nil {
		return err
	}
	r, err := d.cluster.Start(ctx, d.progress(), d.mpiArgs(d.interval.String())...)
	if err != nil {
		return err
	}
	id, err := r.Job(ctx)
	if err != nil {
		return err
	}
	stop := d.watch(ctx, after)
	defer stop()
	if err := d.strike(ctx, id); err != nil {
		return err
	}
	o, err := d.outcome(r)
	if err != nil {
		return err
	}
	stop()
	d.result.Disturbed = o.Elapsed.Seconds()
	d.result.Equal = bench.Digits(o.Stdout) == d.result.Digits
	return d.readBill(ctx, id)
}

// strike waits for the middle of the run, with at least one epoch committed,
// and fails the node of the last rank.
func (d *demo) strike(ctx context.Context, id job.ID) error {
	middle := time.After(time.Duration(d.result.Undisturbed * float64(time.Second) / 2))
	if err := d.awaitEpochs(ctx, id, 1); err != nil {
		return err
	}
	select {
	case <-middle:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	detail, err := d.cluster.Client().Job(ctx, id)
	if err != nil {
		return err
	}
	if detail.State.Final() {
		return WithExit(job.ExitInternal, fmt.Errorf("%s was over before a node could fail; choose a longer kernel with --kernel", d.kernel))
	}
	last := detail.Placement[len(detail.Placement)-1]
	d.result.Lost = last.Node
	d.head("POWER OFF: node %s, with rank %s", last.Node, ranksText(last.Ranks))
	return d.cluster.Fail(ctx, last.Node)
}

// readBill takes the figures of the recovery from the job's record.
func (d *demo) readBill(ctx context.Context, id job.ID) error {
	detail, err := d.cluster.Client().Job(ctx, id)
	if err != nil {
		return err
	}
	d.result.Recoveries = detail.Recoveries
	if len(detail.Bills) == 0 {
		return WithExit(job.ExitInternal, fmt.Errorf("job %v has no recovery on record", id))
	}
	d.result.Bill = detail.Bills[0].MS
	d.result.PauseMS = bench.PauseMS(d.result.Bill)
	return nil
}

// awaitIteration is how long the third run may take at most to print its first
// result before it is vacated anyway; that is well before its end.
const awaitIteration = 10 * time.Second

// restarted measures what the pause spares: the same kernel ended with its
// images kept and started again as a whole, with the runtime booted anew.
func (d *demo) restarted(ctx context.Context) error {
	d.head("third run: the whole job is restarted from its images instead")
	if err := d.cluster.Revive(ctx, d.result.Lost); err != nil {
		return err
	}
	computing := make(chan struct{})
	var once sync.Once
	r, err := d.cluster.Start(ctx, func(line string) {
		if strings.HasPrefix(line, "iteration") {
			once.Do(func() { close(computing) })
		}
	}, d.mpiArgs("off")...)
	if err != nil {
		return err
	}
	id, err := r.Job(ctx)
	if err != nil {
		return err
	}
	select {
	case <-computing:
	case <-time.After(min(awaitIteration, time.Duration(d.result.Undisturbed*float64(time.Second)/3))): // EP prints none before its end
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	t, err := d.cluster.MeasureRestart(ctx, id, r)
	if err != nil {
		return err
	}
	d.result.RestartMS, d.result.RestartRebootMS = t.RestartMS, t.RebootMS+t.RestartMS
	d.tell("  halt and boot %.0f ms, restart from images %.0f ms", t.RebootMS, t.RestartMS)
	return d.cluster.Client().Do(ctx, id, control.Kill)
}

// watch tells the events after a number until stop is called, which may be
// done twice.
func (d *demo) watch(ctx context.Context, after uint64) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		// It ends with stop, and a broken stream costs the story only.
		_ = d.cluster.Client().Events(ctx, control.EventFilter{After: after, Follow: true}, func(e control.Event) error {
			if e.Event == "checkpoint.committed" {
				d.result.Epochs++
			}
			if text := storyLine(e); text != "" {
				d.tell("  %s", text)
			}
			return nil
		})
	})
	return func() {
		cancel()
		done.Wait()
	}
}
