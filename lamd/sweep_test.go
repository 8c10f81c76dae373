package lamd

import (
	"slices"
	"testing"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

func TestForgottenImages(t *testing.T) {
	running := func() *scheduler.Job {
		return &scheduler.Job{
			ID: 7, State: job.Running, LastEpoch: 6, Epochs: []scheduler.Epoch{{Epoch: 3}, {Epoch: 5}}, Open: &scheduler.OpenEpoch{Epoch: 6},
		}
	}
	have := []job.Epoch{1, 3, 4, 5, 6, 7}
	for name, c := range map[string]struct {
		change func(*scheduler.Job)
		other  bool
		want   []job.Epoch
	}{
		"running":             {want: []job.Epoch{1, 4}},
		"no round":            {change: func(j *scheduler.Job) { j.Open = nil }, want: []job.Epoch{1, 4, 6}},
		"recovering":          {change: func(j *scheduler.Job) { j.State = job.Recovering }, want: []job.Epoch{1, 4}},
		"an older state":      {change: func(j *scheduler.Job) { j.LastEpoch, j.Epochs, j.Open = 0, nil, nil }},
		"ended, not put away": {change: func(j *scheduler.Job) { j.State, j.Epochs = job.Done, nil }},
		"ended":               {change: func(j *scheduler.Job) { j.State, j.Epochs, j.Retired = job.Done, nil, true }, want: []job.Epoch{0}},
		"kept for a restart": {change: func(j *scheduler.Job) {
			j.State, j.Retired, j.KeepImages, j.Open = job.Failed, true, true, nil
		}, want: []job.Epoch{1, 4, 6}},
		"unknown to the log": {other: true},
	} {
		j := running()
		if c.change != nil {
			c.change(j)
		}
		st := &scheduler.State{Jobs: map[job.ID]*scheduler.Job{7: j}}
		id := job.ID(7)
		if c.other {
			id = 8
		}
		if got := forgotten(st, id, have); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if forgotten(nil, 7, have) != nil {
		t.Error("without a state nothing is known")
	}
}

// What a node missed is swept; what the log counts on stays.
func TestSweep(t *testing.T) {
	n, _ := testNode(t, "n1")
	writeImage(t, n.store) // epoch 3
	j := &scheduler.Job{ID: 7, State: job.Running, LastEpoch: 5, Epochs: []scheduler.Epoch{{Epoch: 3}}}
	s := &sweeper{node: n, log: testLog(t), state: func() *scheduler.State {
		return &scheduler.State{Jobs: map[job.ID]*scheduler.Job{7: j}}
	}}
	s.sweep(testContext(t))
	if err := verify(t, n.store); err != nil {
		t.Fatalf("the newest epoch is gone: %v", err)
	}
	j.Epochs = []scheduler.Epoch{{Epoch: 5}}
	s.sweep(testContext(t))
	if have, err := s.stored(7); err != nil || len(have) != 0 {
		t.Errorf("stored: %v, %v", have, err)
	}
}
