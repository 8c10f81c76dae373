package lamd

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
	"github.com/lampause/lampause/scheduler/conduct"
)

func TestGrant(t *testing.T) {
	key := podKey{Job: 7, Pod: 0, Built: 2}
	header := podapi.Header{Term: 5, Job: 7, Incarnation: 3}
	for name, c := range map[string]struct {
		change func(*scheduler.Job)
		ask    func(*leaseAsk)
		hold   bool // the leader must not renew
		want   leaseGrant
	}{
		"renewed":           {want: leaseGrant{Headers: []podapi.Header{header}}},
		"not to be renewed": {hold: true},
		"built later":       {ask: func(a *leaseAsk) { a.Pods[0].Built = 3 }, want: leaseGrant{Headers: []podapi.Header{header}}},
		"built too early":   {ask: func(a *leaseAsk) { a.Pods[0].Built = 1 }, want: leaseGrant{Stale: []podKey{{Job: 7, Built: 1}}}},
		"elsewhere":         {change: func(j *scheduler.Job) { j.Pods[0].Node = "n2" }, want: leaseGrant{Stale: []podKey{key}}},
		"nowhere":           {change: func(j *scheduler.Job) { j.Pods[0].Node = "" }, want: leaseGrant{Stale: []podKey{key}}},
		"an earlier life":   {ask: func(a *leaseAsk) { a.Boot = 1 }, want: leaseGrant{Stale: []podKey{key}}},
		"a later life":      {ask: func(a *leaseAsk) { a.Boot = 9 }, want: leaseGrant{Stale: []podKey{key}}},
		"unknown job":       {ask: func(a *leaseAsk) { a.Pods[0].Job = 8 }, want: leaseGrant{Stale: []podKey{{Job: 8, Built: 2}}}},
		"unknown pod":       {ask: func(a *leaseAsk) { a.Pods[0].Pod = 1 }, want: leaseGrant{Stale: []podKey{{Job: 7, Pod: 1, Built: 2}}}},
		"pod below zero":    {ask: func(a *leaseAsk) { a.Pods[0].Pod = -1 }, want: leaseGrant{Stale: []podKey{{Job: 7, Pod: -1, Built: 2}}}},
		"ended":             {change: func(j *scheduler.Job) { j.State = job.Done }},
		"retired":           {change: func(j *scheduler.Job) { j.State, j.Retired = job.Done, true }, want: leaseGrant{Stale: []podKey{key}}},
	} {
		t.Run(name, func(t *testing.T) {
			j := &scheduler.Job{ID: 7, State: job.Running, Incarnation: 3, Pods: []scheduler.Pod{{Node: "n1", Boot: 4, Built: 2}}}
			ask := leaseAsk{Node: "n1", Boot: 4, Pods: []podKey{key}}
			if c.change != nil {
				c.change(j)
			}
			if c.ask != nil {
				c.ask(&ask)
			}
			got := grant(&scheduler.State{Jobs: map[job.ID]*scheduler.Job{7: j}}, ask, 5, !c.hold)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRollCallNamesEveryPod(t *testing.T) {
	got := rollCall(leaseAsk{Node: "n1", Boot: 4, Pods: []podKey{{Job: 7, Pod: 1, Built: 2}, {Job: 8}}})
	want := conduct.RollCall{Node: scheduler.NodeRef{Node: "n1", Boot: 4}, Pods: []conduct.PodAt{{Job: 7, Pod: 1, Built: 2}, {Job: 8}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := rollCall(leaseAsk{Node: "n1"}); got.Pods != nil {
		t.Errorf("%+v", got)
	}
}

func TestLeaderAPIWithoutLeader(t *testing.T) {
	a := &leaderAPI{lead: func() *lead { return nil }}
	ctx := testContext(t)
	if err := a.report(ctx, podReport{Gone: true}); err == nil {
		t.Error("a report was taken")
	}
	if _, err := a.lease(ctx, leaseAsk{}); err == nil {
		t.Error("a lease was granted")
	}
	if _, err := a.fence(ctx, podapi.Fence{}); err == nil {
		t.Error("a fence was taken")
	}
	if err := a.join(ctx, scheduler.Command{}); err == nil {
		t.Error("a node without a name joined")
	}
}

// Whoever asked before a term ended must not wait for its answer for ever.
func TestLeadAnswersAtItsEnd(t *testing.T) {
	l := newLead(1, nil, nil, testLog(t))
	ctx := testContext(t)
	type outcome struct {
		what string
		err  error
	}
	out := make(chan outcome, 3)
	go func() {
		_, err := l.renew(ctx, scheduler.NodeRef{})
		out <- outcome{"renew", err}
	}()
	go func() {
		_, err := l.verb(ctx, conduct.Verb{})
		out <- outcome{"verb", err}
	}()
	go func() {
		l.suspects(ctx)
		out <- outcome{"suspects", errNotLeading}
	}()
	eventually(t, "three questions", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.queue) == 3
	})
	l.end()
	for range 3 {
		if o := <-out; o.err != errNotLeading { //nolint:errorlint // this very one
			t.Errorf("%s: %v", o.what, o.err)
		}
	}
	if _, err := l.renew(ctx, scheduler.NodeRef{}); err != errNotLeading { //nolint:errorlint // this very one
		t.Errorf("after the end: %v", err)
	}
	if len(l.suspects(ctx)) != 0 || ctx.Err() != nil {
		t.Error("suspects after the end")
	}
}
