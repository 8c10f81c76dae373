package lamd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
	"github.com/lampause/lampause/scheduler/conduct"
)

// actor carries out the conductor's actions, each in a goroutine of its own.
type actor struct {
	peers   *peers
	propose func(context.Context, scheduler.Command) error
	state   func() *scheduler.State
	fan     *fanout // nil: every pod is asked by a request of its own
}

// batch takes the actions that go through the tree out of those of a step.
func (a *actor) batch(acts []conduct.Action) ([]conduct.Action, [][]conduct.Action) {
	if a == nil {
		return acts, nil
	}
	return a.fan.split(acts)
}

// do carries out an action that is answered by a Done, and returns that.
func (a *actor) do(ctx context.Context, act conduct.Action) conduct.Done {
	switch act := act.(type) {
	case conduct.Propose:
		return a.timed(ctx, act.Ref, act.Timeout, func(ctx context.Context) error { return a.propose(ctx, act.Command) })
	case conduct.StartPod:
		return a.timed(ctx, act.Ref, act.Timeout, func(ctx context.Context) error {
			return a.peers.call(ctx, act.Node, http.MethodPost, "/v1/node/start", act.Spec, nil)
		})
	case conduct.KillPod:
		r := killOf(act)
		return a.timed(ctx, act.Ref, act.Timeout, func(ctx context.Context) error {
			return a.peers.call(ctx, act.Node, http.MethodPost, "/v1/node/kill", r, nil)
		})
	case conduct.Call:
		return a.phase(ctx, act)
	case conduct.Copy:
		return a.copy(ctx, act)
	case conduct.Seal:
		return a.timed(ctx, act.Ref, act.Timeout, func(ctx context.Context) error { return a.seal(ctx, act) })
	case conduct.PullFences:
		return a.pullFences(ctx, act)
	}
	return conduct.Done{Failure: &conduct.Failure{Kind: conduct.FailedForGood, Text: fmt.Sprintf("no such action %T", act)}}
}

// timed runs do within its time and classes its error.
func (a *actor) timed(ctx context.Context, ref conduct.Ref, timeout time.Duration, do func(context.Context) error) conduct.Done {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return conduct.Done{Ref: ref, Failure: failure(do(ctx))}
}

// failure classes an error by what the conductor does about it.
func failure(err error) *conduct.Failure {
	if err == nil {
		return nil
	}
	f := &conduct.Failure{Kind: conduct.Unreachable, Text: err.Error()}
	var refused *control.Error
	if r := scheduler.AsRefusal(err); r != nil {
		f.Kind, f.Exit = conduct.Refused, r.Exit
	} else if errors.As(err, &refused) {
		f.Kind, f.Exit = failureKind(refused.Status), 0
		if refused.Exit != job.ExitInternal {
			f.Exit = refused.Exit
		}
	}
	return f
}

func failureKind(status int) conduct.FailureKind {
	switch status {
	case http.StatusConflict, http.StatusUnprocessableEntity, http.StatusBadRequest, http.StatusForbidden:
		return conduct.Refused
	case http.StatusServiceUnavailable, http.StatusBadGateway:
		return conduct.Unreachable
	}
	return conduct.FailedForGood
}

// phase sends one op to a pod.
func (a *actor) phase(ctx context.Context, act conduct.Call) conduct.Done {
	ctx, cancel := context.WithTimeout(ctx, act.Timeout)
	defer cancel()
	reply, status, err := a.peers.postPhase(ctx, act.Node, act.Job, act.Request)
	return phaseDone(act.Ref, reply, status, err)
}

// copy makes a node hold an image.
func (a *actor) copy(ctx context.Context, act conduct.Copy) conduct.Done {
	r := copyOf(act)
	var out copyReply
	d := a.timed(ctx, act.Ref, act.Timeout, func(ctx context.Context) error {
		return a.peers.call(ctx, act.To, http.MethodPost, "/v1/node/copy", r, &out)
	})
	return copyDone(d, r, out)
}

// copyDone adds what a node said of a copy to the Done of the call.
func copyDone(d conduct.Done, r copyRequest, out copyReply) conduct.Done {
	if d.Failure != nil {
		return d
	}
	d.Damaged = out.Damaged
	switch {
	case out.hopeless(r):
		d.Failure = &conduct.Failure{Kind: conduct.NoIntactCopy, Text: out.Failed}
	case out.Failed != "":
		d.Failure = &conduct.Failure{Kind: conduct.FailedForGood, Text: out.Failed}
	}
	return d
}

// seal makes a holder write the COMMITTED record.
func (a *actor) seal(ctx context.Context, act conduct.Seal) error {
	r, err := sealOf(act)
	if err != nil {
		return err
	}
	return a.peers.call(ctx, act.Node, http.MethodPost, "/v1/node/seal", r, nil)
}

// pullFences asks a pod for every PMI fence at which it arrived.
func (a *actor) pullFences(ctx context.Context, act conduct.PullFences) conduct.Done {
	ctx, cancel := context.WithTimeout(ctx, act.Timeout)
	defer cancel()
	var out []podapi.Fence
	err := a.peers.call(ctx, act.Node, http.MethodGet, "/v1/pods/"+act.Job.String()+podapi.PathFences, nil, &out)
	return conduct.Done{Ref: act.Ref, Failure: failure(err), Fences: out}
}

// drop is not answered: what is missed is swept later.
func (a *actor) drop(ctx context.Context, act conduct.Drop) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return a.peers.call(ctx, act.Node, http.MethodPost, "/v1/node/drop", dropRequest{Job: act.Job, Epoch: act.Epoch}, nil)
}
