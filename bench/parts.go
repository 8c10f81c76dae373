package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// Settings of the overhead part: a run lasts for a little more than two
// intervals, so that it has two checkpoints.
const (
	overheadInterval = 30.0 // seconds
	overheadRuns     = 2.15 // intervals
	overheadDirtyMB  = 64   // per rank and interval
	overheadPairs    = 2
)

// overhead compares runs of the ballast with and without checkpoints, in turns.
func (s *Suite) overhead(ctx context.Context) error {
	perSecond, err := s.stepsPerSecond(ctx)
	if err != nil {
		return err
	}
	perInterval := perSecond * overheadInterval
	// The dirty memory of an interval is spread over its steps, at least 1 KB in each.
	dirtyKB := max(1, int(overheadDirtyMB*1024/perInterval))
	args := s.ballastArgs(dirtyKB, int(perInterval*overheadRuns))
	after, err := s.cluster.LastEvent(ctx)
	if err != nil {
		return err
	}
	var with, without []float64
	for pair := range overheadPairs {
		runs := []func() error{
			func() error {
				o, err := s.runLam(ctx, "off", args...)
				return appendSeconds(&without, o, err)
			},
			func() error {
				o, err := s.runLam(ctx, fmt.Sprintf("%.0fs", overheadInterval), args...)
				return appendSeconds(&with, o, err)
			},
		}
		if pair%2 == 1 {
			slices.Reverse(runs)
		}
		for _, run := range runs {
			if err := run(); err != nil {
				return err
			}
		}
	}
	epochs, err := s.eventsAfter(ctx, after, "checkpoint.committed")
	if err != nil {
		return err
	}
	s.result.Overhead = &Overhead{
		IntervalS: overheadInterval, DirtyMB: overheadDirtyMB, WithS: Summarize(with), WithoutS: Summarize(without),
		RatioOf: Summarize(Ratios(with, without)), Epochs: len(epochs),
	}
	return nil
}

// stepsPerSecond finds how fast the ballast runs, with steps of 1 KB.
func (s *Suite) stepsPerSecond(ctx context.Context) (float64, error) {
	const enough = 2.0 // seconds
	for steps := 4000; ; steps *= 4 {
		o, err := s.runLam(ctx, "off", s.ballastArgs(1, steps)...)
		if err != nil {
			return 0, err
		}
		took, ok := o.Seconds()
		switch {
		case !ok:
			return 0, errors.New("the program tells no time")
		case took >= enough:
			return float64(steps) / took, nil
		case steps > endless/4:
			return 0, fmt.Errorf("%d steps take %.3f s only", steps, took)
		}
	}
}

func (s *Suite) eventsAfter(ctx context.Context, after uint64, name string) ([]control.Event, error) {
	var out []control.Event
	err := s.cluster.client.Events(ctx, control.EventFilter{After: after}, func(e control.Event) error {
		if e.Event == name {
			out = append(out, e)
		}
		return nil
	})
	return out, err
}

// stall takes checkpoints by command and reads their parts from the events.
func (s *Suite) stall(ctx context.Context) error {
	id, _, kill, err := s.background(ctx, "off")
	if err != nil {
		return err
	}
	defer kill()
	after, err := s.cluster.LastEvent(ctx)
	if err != nil {
		return err
	}
	for range s.Rounds * 2 {
		if _, err := s.checkpoint(ctx, id); err != nil {
			return err
		}
	}
	events, err := s.eventsAfter(ctx, after, "checkpoint.committed")
	if err != nil {
		return err
	}
	values := map[string][]float64{}
	for _, e := range events {
		for key, v := range e.Data {
			if ms, ok := v.(float64); ok && strings.HasSuffix(key, "_ms") {
				values[key] = append(values[key], ms)
			}
		}
	}
	s.result.Stall = &Stall{MB: s.MB, Parts: summarizeAll(values)}
	return nil
}

// retryAfter is how long a refused checkpoint is left alone.
const retryAfter = 250 * time.Millisecond

// checkpoint takes one, with some patience: right after the start a job may
// not be ready for it.
func (s *Suite) checkpoint(ctx context.Context, id job.ID) (control.Checkpointed, error) {
	for attempt := 0; ; attempt++ {
		done, err := s.cluster.client.Checkpoint(ctx, id)
		if err == nil || attempt == 20 {
			return done, err
		}
		if err := pause(ctx, retryAfter); err != nil {
			return done, err
		}
	}
}

func summarizeAll(values map[string][]float64) map[string]Sample {
	out := make(map[string]Sample, len(values))
	for key, v := range values {
		out[key] = Summarize(v)
	}
	return out
}

// recovery fails the node of one rank after another and compares the digest
// with an undisturbed run's.
func (s *Suite) recovery(ctx context.Context) error {
	id, r, kill, err := s.background(ctx, "off")
	if err != nil {
		return err
	}
	defer kill()
	for round := range s.Rounds {
		if err := s.loseOne(ctx, id, round); err != nil {
			return err
		}
	}
	d, err := s.cluster.client.Job(ctx, id)
	if err != nil {
		return err
	}
	values := map[string][]float64{}
	var pauses []float64
	for _, b := range d.Bills {
		for key, ms := range b.MS {
			values[key] = append(values[key], ms)
		}
		pauses = append(pauses, PauseMS(b.MS))
	}
	kill()
	equal, err := s.sameDigests(ctx, r)
	if err != nil {
		return err
	}
	s.result.Recovery = &Recovery{MB: s.MB, Parts: summarizeAll(values), PauseMS: Summarize(pauses), Equal: equal}
	return nil
}

// loseOne takes a checkpoint, fails the node of one rank, waits for the
// recovery and boots the node again, which becomes the next spare.
func (s *Suite) loseOne(ctx context.Context, id job.ID, round int) error {
	if _, err := s.checkpoint(ctx, id); err != nil {
		return err
	}
	d, err := s.cluster.client.Job(ctx, id)
	if err != nil {
		return err
	}
	lost := d.Placement[round%len(d.Placement)].Node
	after, err := s.cluster.LastEvent(ctx)
	if err != nil {
		return err
	}
	if err := s.cluster.Fail(ctx, lost); err != nil {
		return err
	}
	e, err := s.cluster.AwaitEvent(ctx, after, func(e control.Event) bool {
		return e.Job == id && (e.Event == "recovery.done" || e.Event == "job.ended")
	})
	if err != nil {
		return err
	}
	if e.Event == "job.ended" {
		return fmt.Errorf("the job ended when %s was lost: %v", lost, e.Data["reason"])
	}
	return s.cluster.Revive(ctx, lost)
}

// sameDigests compares the digests printed so far with those of an undisturbed
// run of as many steps.
func (s *Suite) sameDigests(ctx context.Context, r *Run) (bool, error) {
	seen := digests(r.out.String())
	last := slices.Max(append(slices.Collect(maps.Keys(seen)), 0))
	if last == 0 {
		return false, errors.New("the job printed no digest")
	}
	o, err := s.runLoop(ctx, s.Ranks, timed, s.ballastArgs(64, last)...)
	if err != nil {
		return false, err
	}
	want := digests(o.Stdout)
	for step, digest := range seen {
		if want[step] != digest {
			s.Log.Error().Int("step", step).Str("got", digest).Str("want", want[step]).Msg("digests differ")
			return false, nil
		}
	}
	return true, nil
}

// digests collects the lines "step N digest X".
func digests(text string) map[int]string {
	out := map[int]string{}
	for line := range strings.Lines(text) {
		var step int
		var digest string
		if n, err := fmt.Sscanf(line, "step %d digest %s", &step, &digest); n == 2 && err == nil {
			out[step] = digest
		}
	}
	return out
}

// restart restarts the whole job from images of the same size, with the
// runtime booted anew.
func (s *Suite) restart(ctx context.Context) error {
	var restarts, reboots []float64
	for range max(1, s.Rounds/2) {
		id, r, kill, err := s.background(ctx, "off")
		if err != nil {
			return err
		}
		if _, err := s.checkpoint(ctx, id); err != nil {
			kill()
			return err
		}
		t, err := s.cluster.MeasureRestart(ctx, id, r)
		if err != nil {
			return err
		}
		restarts, reboots = append(restarts, t.RestartMS), append(reboots, t.RebootMS)
		if err := s.cluster.client.Do(ctx, id, control.Kill); err != nil {
			return err
		}
	}
	res := &Restart{RestartMS: Summarize(restarts), RebootMS: Summarize(reboots)}
	if rec := s.result.Recovery; rec != nil && res.RestartMS.Median > 0 {
		res.PauseToRestart = rec.PauseMS.Median / res.RestartMS.Median
		res.PauseToReboot = rec.PauseMS.Median / (res.RestartMS.Median + res.RebootMS.Median)
	}
	s.result.Restart = res
	return nil
}
