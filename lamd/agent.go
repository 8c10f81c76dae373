package lamd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// Lease terms (docs/ARCHITECTURE.md, Fencing).
const (
	leaseTTL     = 2 * time.Second
	leaseRenew   = 250 * time.Millisecond
	leaseMargin  = 500 * time.Millisecond
	leaseTimeout = time.Second // of one renewal
)

// podReport is what a daemon tells the leader of a pod on its node.
type podReport struct {
	Node  job.NodeID      `json:"node"`
	Job   job.ID          `json:"job"`
	Pod   job.PodIndex    `json:"pod"`
	Built job.Incarnation `json:"built"`          // incarnation in which the pod was built
	Gone  bool            `json:"gone,omitempty"` // no process of the pod is left
	Event *podapi.Event   `json:"event,omitempty"`
}

// leaseAsk asks the leader to renew the leases of a node's pods.
type leaseAsk struct {
	Node job.NodeID `json:"node"`
	Boot job.Boot   `json:"boot"`
	Pods []podKey   `json:"pods"`
}

// leaseGrant lists the pods whose leases are renewed; the others run out.
// Stale pods have no business on the node any more and are ended: that is how
// the pods of ended and moved jobs die on nodes that could not be reached.
type leaseGrant struct {
	Headers []podapi.Header `json:"headers"`
	Stale   []podKey        `json:"stale"`
}

// agent reports from this node's pods to the leader and renews their leases.
type agent struct {
	node   job.NodeID
	boot   job.Boot
	pods   *pods
	leader func() (job.NodeID, bool)
	peers  *peers
	log    zerolog.Logger
}

// toLeader sends a request to the leader, whoever that is now.
func (a *agent) toLeader(ctx context.Context, path string, in, out any) (job.NodeID, error) {
	id, ok := a.leader()
	if !ok {
		return "", unavailable("no leader")
	}
	ctx, cancel := whileLeader(ctx, a.leader, id)
	defer cancel()
	return id, a.peers.call(ctx, id, http.MethodPost, path, in, out)
}

// retryPause is the pause before a report is sent again.
const retryPause = 100 * time.Millisecond

// watch follows the event stream of a pod until the pod is forgotten or gone,
// and reports all of it to the leader. A new leader knows nothing of earlier
// reports, so the stream is read again from its start whenever the leader
// changes; reports are idempotent.
func (a *agent) watch(ctx context.Context, p *localPod) {
	life, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.done, cancel)()
	for life.Err() == nil {
		err := a.follow(life, p)
		if life.Err() != nil {
			return
		}
		if a.pods.reap(life, p) {
			a.reportGone(ctx, p)
			return
		}
		a.log.Debug().Err(err).Uint64("job", uint64(p.job)).Msg("event stream of pod ended; opening it again")
		pause(life, retryPause)
	}
}

// follow reads the event stream once, from its start, and reports to one
// leader; it returns when the stream breaks or the leader changes.
func (a *agent) follow(ctx context.Context, p *localPod) error {
	leader, ok := a.leader()
	if !ok {
		return unavailable("no leader")
	}
	ctx, cancel := whileLeader(ctx, a.leader, leader)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://pod"+podapi.PathEvents+"?from=1", nil)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return decodeError(resp)
	}
	dec := json.NewDecoder(resp.Body)
	for {
		var e podapi.Event
		if err := dec.Decode(&e); err != nil {
			return err
		}
		r := a.report(p)
		r.Event = &e
		if err := a.send(ctx, leader, r); err != nil {
			return err
		}
	}
}

// errLeaderChanged ends requests to a leader that is one no more: it may be
// without power and never answer.
var errLeaderChanged = errors.New("another node leads now")

// whileLeader returns a context that ends when another node than id is known
// to lead. The caller calls cancel.
func whileLeader(ctx context.Context, leader func() (job.NodeID, bool), id job.NodeID) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		tick := time.NewTicker(retryPause)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if now, ok := leader(); ok && now != id {
					cancel(errLeaderChanged)
					return
				}
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

func (a *agent) report(p *localPod) podReport {
	return podReport{Node: a.node, Job: p.job, Pod: p.spec.Placement.Pod, Built: p.spec.Incarnation}
}

// send delivers one report, again and again until the leader took it or ctx
// ends; a refusal (the job is over) counts as taken.
func (a *agent) send(ctx context.Context, leader job.NodeID, r podReport) error {
	for {
		call, cancel := context.WithTimeout(ctx, statusTimeout)
		err := a.peers.call(call, leader, http.MethodPost, "/v1/report", r, nil)
		cancel()
		var refused *control.Error
		switch {
		case err == nil:
			return nil
		case errors.As(err, &refused) && refused.Status == http.StatusNotFound:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		}
		pause(ctx, retryPause)
	}
}

// reportGone tells the leader, whoever that becomes, that the pod is no more.
func (a *agent) reportGone(ctx context.Context, p *localPod) {
	r := a.report(p)
	r.Gone = true
	for ctx.Err() == nil {
		leader, ok := a.leader()
		if ok {
			call, cancel := context.WithTimeout(ctx, statusTimeout)
			err := a.send(call, leader, r)
			cancel()
			if err == nil {
				return
			}
		}
		pause(ctx, retryPause)
	}
}

// renewLeases asks for the leases of all pods until ctx ends.
func (a *agent) renewLeases(ctx context.Context) error {
	var ends sync.WaitGroup // of stale pods
	defer ends.Wait()
	tick := time.NewTicker(leaseRenew)
	defer tick.Stop()
	for i := 0; ; i++ {
		all := a.pods.list()
		if len(all) > 0 || i%idleRenewals == 0 {
			stale, err := a.renewOnce(ctx, all)
			if err != nil && ctx.Err() == nil {
				a.log.Debug().Err(err).Msg("leases not renewed")
			}
			for _, p := range stale {
				if p.ending.CompareAndSwap(false, true) {
					ends.Go(func() { a.endStale(ctx, p) })
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// idleRenewals: a node without pods says so at every fourth turn only.
const idleRenewals = 4

// renewOnce is one round: the lease counts from before the leader was asked.
// The request is a roll call, too: a pod that is missing in it is gone. It
// returns the pods that have no business here any more.
func (a *agent) renewOnce(ctx context.Context, all []*localPod) (stale []*localPod, err error) {
	sent, err := bootTime()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	ask := leaseAsk{Node: a.node, Boot: a.boot}
	for _, p := range all {
		ask.Pods = append(ask.Pods, podKey{Job: p.job, Pod: p.spec.Placement.Pod, Built: p.spec.Incarnation})
	}
	var grant leaseGrant
	if _, err := a.toLeader(ctx, "/v1/lease", ask, &grant); err != nil {
		return nil, err
	}
	for _, k := range grant.Stale {
		if p, ok := a.pods.get(k.Job); ok && p.spec.Incarnation == k.Built {
			stale = append(stale, p)
		}
	}
	return stale, a.passOn(ctx, grant.Headers, sent)
}

// passOn renews the leases at the supervisors, all at a time: one that hangs
// must not cost the others theirs.
func (a *agent) passOn(ctx context.Context, headers []podapi.Header, sent int64) error {
	errs := make([]error, len(headers))
	var calls sync.WaitGroup
	for i, h := range headers {
		if p, ok := a.pods.get(h.Job); ok {
			l := podapi.Lease{Header: h, TTLMS: leaseTTL.Milliseconds(), SentNS: sent}
			calls.Go(func() { errs[i] = p.call(ctx, http.MethodPost, podapi.PathLease, l, nil) })
		}
	}
	calls.Wait()
	return errors.Join(errs...)
}

// endStale ends a pod that the log does not know here. What fails is tried
// again at the next roll call, also by the next daemon.
func (a *agent) endStale(ctx context.Context, p *localPod) {
	defer p.ending.Store(false)
	a.log.Warn().Uint64("job", uint64(p.job)).Int("pod", int(p.spec.Placement.Pod)).Msg("pod does not belong here any more; ending it")
	if err := a.pods.kill(ctx, p.job, func(now *localPod) bool { return now == p }); err != nil {
		a.log.Error().Err(err).Uint64("job", uint64(p.job)).Msg("stale pod not ended")
	}
}

// bootTime reads CLOCK_BOOTTIME in nanoseconds: it goes on while the machine
// sleeps, so a sleeping node's lease runs out (clock_gettime(2)).
func bootTime() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read CLOCK_BOOTTIME: %w", err)
	}
	return ts.Nano(), nil
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func intQuery(r *http.Request, key string) (int, error) {
	v := r.URL.Query().Get(key)
	n, err := strconv.Atoi(v)
	if err != nil {
		return 0, badRequest(fmt.Sprintf("%s=%q: not a number", key, v))
	}
	return n, nil
}
