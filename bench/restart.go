package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// PauseMS returns what a recovery took, in milliseconds, once the loss was
// known and without the wait for the fence: the part that a whole-job restart
// is compared with. The total of a bill counts from the decision, so detection
// is not in it; the fence is what was waited for once all ranks were whole.
func PauseMS(bill map[string]float64) float64 {
	if total, ok := bill["total"]; ok {
		return max(0, total-bill["fence"])
	}
	return bill["stop"] + max(bill["rollback"], bill["restore"]) + bill["rewire"] + bill["refill"]
}

// RestartTimes are the parts of a whole-job restart.
type RestartTimes struct {
	RebootMS  float64 `json:"reboot_ms"`  // lam halt and lam boot
	RestartMS float64 `json:"restart_ms"` // from the order to all ranks running
}

// MeasureRestart vacates a job that has committed an epoch, reboots the
// cluster and restarts the job from its images alone. r is the job's run,
// which ends by that. The restarted job is left running.
//
// Expected errors: those of the commands; the job did not come back.
func (c *Cluster) MeasureRestart(ctx context.Context, id job.ID, r *Run) (RestartTimes, error) {
	var t RestartTimes
	if err := c.client.Do(ctx, id, control.Vacate); err != nil {
		return t, fmt.Errorf("bench: vacate job %v: %w", id, err)
	}
	if _, err := r.Wait(); err != nil {
		return t, err
	}
	began := time.Now()
	if err := c.Halt(ctx); err != nil {
		return t, err
	}
	if err := c.Boot(ctx); err != nil {
		return t, err
	}
	t.RebootMS = millis(time.Since(began))
	var err error
	t.RestartMS, err = c.restart(ctx, id)
	return t, err
}

// restart orders a restart and returns after how many milliseconds the job
// runs.
func (c *Cluster) restart(ctx context.Context, id job.ID) (float64, error) {
	began := time.Now()
	if _, err := c.client.Restart(ctx, id, 0); err != nil {
		return 0, fmt.Errorf("bench: restart job %v: %w", id, err)
	}
	if _, err := c.AwaitState(ctx, id, job.Running); err != nil {
		return 0, err
	}
	return millis(time.Since(began)), nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
