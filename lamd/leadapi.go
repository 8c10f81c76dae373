package lamd

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
	"github.com/lampause/lampause/scheduler/conduct"
)

// leaderAPI answers what other daemons ask of the leader. lead returns nil
// while this daemon does not lead.
type leaderAPI struct {
	lead    func() *lead
	state   func() *scheduler.State
	confirm func(context.Context) error // this daemon still leads, as of now
	apply   func(context.Context, scheduler.Command) error
}

func (a *leaderAPI) routes(mux *http.ServeMux) {
	handle(mux, "POST /v1/report", a.report)
	handle(mux, "POST /v1/join", a.join)
	handle(mux, "POST /v1/leave", a.leave)
	answer(mux, "POST /v1/lease", a.lease)
	answer(mux, "POST /v1/fence", a.fence)
}

// answer registers a JSON request with a JSON answer.
func answer[In, Out any](mux *http.ServeMux, pattern string, do func(context.Context, In) (Out, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := readJSON(r, &in); err != nil {
			writeError(w, err)
			return
		}
		out, err := do(r.Context(), in)
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, out)
	})
}

// report takes a daemon's news of a pod.
func (a *leaderAPI) report(_ context.Context, r podReport) error {
	l := a.lead()
	if l == nil {
		return errNotLeading
	}
	var ev conduct.Event
	switch {
	case r.Gone:
		ev = conduct.PodGone{Job: r.Job, Pod: r.Pod, Node: r.Node, Incarnation: r.Built, Text: "its supervisor is gone"}
	case r.Event != nil:
		ev = conduct.PodReport{Job: r.Job, Pod: r.Pod, Node: r.Node, Event: *r.Event}
	default:
		return badRequest("empty report")
	}
	if !l.event(ev) {
		return errNotLeading
	}
	return nil
}

// join makes sure that the log has a node as it says it is. A node whose boot
// was declared dead is told the lowest boot that may join, with status 412.
func (a *leaderAPI) join(ctx context.Context, c scheduler.Command) error {
	j := c.Join
	if j == nil {
		return badRequest("join: no node")
	}
	n, ok := a.state().Nodes[j.Node]
	if ok && n.State == scheduler.Alive && n.Boot == j.Boot && n.Session == j.Session && n.Addr == j.Addr {
		return nil
	}
	err := a.apply(ctx, scheduler.Command{Join: j})
	if r := scheduler.AsRefusal(err); r != nil && r.Code == scheduler.StaleBoot {
		return &control.Error{Message: strconv.FormatUint(uint64(r.Boot), 10), Exit: job.ExitNoNodes, Status: http.StatusPreconditionFailed}
	}
	if err != nil {
		return refusalError(err)
	}
	return nil
}

// lease renews the leases of a node's pods. Headers name the pods that belong
// there; Stale those that must be ended.
func (a *leaderAPI) lease(ctx context.Context, ask leaseAsk) (leaseGrant, error) {
	l := a.lead()
	if l == nil {
		return leaseGrant{}, errNotLeading
	}
	if err := a.confirm(ctx); err != nil {
		return leaseGrant{}, errNotLeading
	}
	ok, err := l.renew(ctx, scheduler.NodeRef{Node: ask.Node, Boot: ask.Boot})
	if err != nil {
		return leaseGrant{}, err
	}
	l.roll.hear(scheduler.NodeRef{Node: ask.Node, Boot: ask.Boot}, time.Now())
	l.event(rollCall(ask))
	return grant(a.state(), ask, l.term, ok), nil
}

func rollCall(ask leaseAsk) conduct.RollCall {
	r := conduct.RollCall{Node: scheduler.NodeRef{Node: ask.Node, Boot: ask.Boot}}
	for _, p := range ask.Pods {
		r.Pods = append(r.Pods, conduct.PodAt{Job: p.Job, Pod: p.Pod, Built: p.Built})
	}
	return r
}

// grant works out which of the asked leases are renewed: those of pods that
// the log places on that life of the node and that were built when it says.
// The pods of a job that has just ended are left to the conductor, which lets
// their output be read first.
func grant(st *scheduler.State, ask leaseAsk, term uint64, renew bool) leaseGrant {
	var g leaseGrant
	for _, k := range ask.Pods {
		j := st.Jobs[k.Job]
		switch {
		case j == nil || j.Retired || !belongs(j, k, ask):
			g.Stale = append(g.Stale, k)
		case renew && !j.State.Final():
			g.Headers = append(g.Headers, podapi.Header{Term: term, Job: k.Job, Incarnation: j.Incarnation})
		}
	}
	return g
}

// belongs reports whether the log places pod k of j on the asking node.
func belongs(j *scheduler.Job, k podKey, ask leaseAsk) bool {
	if int(k.Pod) >= len(j.Pods) || k.Pod < 0 {
		return false
	}
	p := j.Pods[k.Pod]
	return p.Node == ask.Node && p.Boot == ask.Boot && k.Built >= p.Built
}

// fence waits until every pod of the job has arrived.
func (a *leaderAPI) fence(ctx context.Context, f podapi.Fence) (podapi.FenceReply, error) {
	l := a.lead()
	if l == nil {
		return podapi.FenceReply{}, errNotLeading
	}
	return l.fence(ctx, f)
}

// podKey names a supervisor of a node.
type podKey struct {
	Job   job.ID          `json:"job"`
	Pod   job.PodIndex    `json:"pod"`
	Built job.Incarnation `json:"built"`
}
