package conduct

import (
	"fmt"
	"time"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// launch starts all pods of a new job. A new leader does it again: what stands
// already is found.
func (c *conductor) launch() {
	c.l.attempt++
	c.attempt = c.l.attempt
	pods := c.pods()
	left := len(pods)
	for _, p := range pods {
		c.startPod(p, false, c.l.cfg.StartMax, func(d Done) {
			if d.Failure != nil {
				c.launchFailed(p, d.Failure)
				return
			}
			if left--; left == 0 {
				c.l.propose(c.scope, scheduler.Command{Started: &scheduler.Started{Job: c.id, Incarnation: c.inc}}, func(Done) {})
			}
		})
	}
}

func (c *conductor) startPod(p job.PodIndex, restore bool, limit time.Duration, done func(Done)) {
	at := c.where(p)
	spec := c.podSpec(p, restore)
	c.l.request(c.scope, limit, limit, func(ref Ref, timeout time.Duration) Action {
		return StartPod{Ref: ref, Job: c.id, Pod: p, Node: at.Node, Spec: spec, Timeout: timeout}
	}, func(d Done) {
		if d.Failure == nil {
			c.l.guard.started(at)
		}
		done(d)
	})
}

func (c *conductor) launchFailed(p job.PodIndex, f *Failure) {
	e := scheduler.End{Code: f.Exit, Reason: fmt.Sprintf("%s could not be started: %s", c.podText(p), f.Text)}
	switch {
	case e.Code != 0:
		e.Reason = f.Text // the program's fault, the same everywhere
	case f.Kind == Unreachable:
		e.Code = job.ExitNoNodes
	default:
		e.Code = job.ExitInternal
	}
	c.finish(e)
}
