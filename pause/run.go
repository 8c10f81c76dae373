package pause

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/stream"
)

// args are what a step needs beside its event.
type args struct {
	peers      []podapi.Mark
	generation uint64
	reader     *image.Reader
	record     *stream.Record
	stopped    bool // of a release
}

// do asks the state machine and carries its actions out. A step that was done
// before answers what it answered then.
func (p *Pod) do(ctx context.Context, e Event, a args) (*Report, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.state
	if e.Op == podapi.OpStop && at.Phase != Stopped && !p.group.holds() {
		at.Phase = Running // a step that let the ranks go failed afterwards: they run
	}
	next, acts, err := step(at, e)
	if err != nil {
		return nil, fmt.Errorf("pause: %w", err)
	}
	if len(acts) == 0 {
		if r := p.reports[e.Op]; r != nil {
			p.state = next
			return r, nil
		}
	}
	r := newReport()
	var failed error
	for _, act := range acts {
		begin := time.Now()
		err := p.perform(ctx, act, e, a, r)
		r.TimesMS[string(act)] = ms(time.Since(begin))
		if err == nil {
			continue
		}
		failed = errors.Join(failed, fmt.Errorf("pause: %s: %w", act, err))
		if e.Op != podapi.OpAbandon {
			return r, failed
		}
		// What could be let go runs, and the epoch is given up all the same: a
		// pod that did not abandon it could never begin another.
	}
	p.state = next
	if failed == nil {
		p.reports[e.Op] = r
	}
	return r, failed
}

func newReport() *Report { return &Report{TimesMS: map[string]float64{}} }

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// perform carries one action out. Actions whose effect outlives a failure of a
// later one note it in the state themselves.
func (p *Pod) perform(ctx context.Context, act Action, e Event, a args, r *Report) error {
	switch act {
	case ActFreeze:
		return p.freeze(ctx, e, r)
	case ActThaw:
		p.group.leaveStopped = a.stopped
		defer func() { p.group.leaveStopped = false }()
		return p.thaw(ctx, e, a, r)
	case ActCaptureSend:
		return p.captureSend(ctx, r)
	case ActCaptureRecv:
		return p.captureRecv(ctx, r)
	case ActRollback:
		return p.rollback(ctx, a, r)
	case ActRelease:
		p.group.leaveStopped = a.stopped
		defer func() { p.group.leaveStopped = false }()
		return p.release(ctx, r)
	case ActAdopt:
		return p.adopt(a)
	case ActDropDraft:
		p.dropDraft()
	case ActPromote:
		p.promote()
	default:
		return fmt.Errorf("unknown action %q", act)
	}
	return nil
}

// merge adds times of the parts of a step to r; of processes that are worked on
// in parallel the longest time counts.
func (r *Report) merge(times map[string]float64) {
	for k, v := range times {
		r.TimesMS[k] = max(r.TimesMS[k], v)
	}
}
