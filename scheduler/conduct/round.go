package conduct

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// round is a coordinated checkpoint under way:
//
//	begin -> freeze -> capture-send -> capture-recv -> resume -> write+copy -> commit -> seal
//
// with a barrier of all pods at every arrow but the one from write to copy.
// Any failure abandons it without harm to the ranks.
type round struct {
	scope   *scope
	attempt uint64
	epoch   job.Epoch // 0 until the log gave it a number
	phase   podapi.Op // the op under way
	frozen  bool      // between freeze and resume
	begun   time.Duration
	stepped time.Duration // when the op under way began
	wrote   time.Duration
	marks   map[job.PodIndex][]podapi.Mark
	images  map[job.PodIndex]*imageCopies
	left    int // pods whose image is not on enough nodes yet
	times   map[string]float64
	stallMS float64
	bytes   int64
	backing string // how the pod with the most memory kept it
	kept    int64  // how much that was
	verbs   []Verb // that wait for it
}

// schedule says when rounds begin.
type schedule struct {
	at    time.Duration // next round; 0 = none
	delay time.Duration // after the last failure
}

func (s *schedule) next(d *deadline) {
	if s.at > 0 {
		d.by(s.at)
	}
}

// after plans the next periodic round.
func (c *conductor) planRound(from time.Duration) {
	c.rounds.at = 0
	if c.j.Spec.CkptInterval > 0 {
		c.rounds.at = from + c.j.Spec.CkptInterval
	}
}

// maybeRound begins a round when one is due or wanted.
func (c *conductor) maybeRound() {
	if !c.mayBegin() || c.rounds.at == 0 || c.rounds.at > c.l.now {
		return
	}
	why := ""
	switch {
	case c.j.Suspended:
		why = "the job is suspended: resume it first"
	case c.podEnded():
		why = "all ranks of a node have ended"
	}
	if why != "" {
		c.refuseWanted(why)
		c.planRound(c.l.now)
		return
	}
	c.begin()
}

// podEnded reports whether some pod has no rank left that could be frozen.
func (c *conductor) podEnded() bool {
	return slices.ContainsFunc(c.j.Pods, func(p scheduler.Pod) bool {
		return !slices.ContainsFunc(p.Ranks, func(r job.Rank) bool { _, ended := c.exits[r]; return !ended })
	})
}

// mayBegin reports whether nothing but time stands against a round.
func (c *conductor) mayBegin() bool {
	return c.mode == running && c.round == nil && c.telling == 0 && !c.suspend.sending && !c.busy && len(c.bad)+len(c.gone) == 0 && len(c.exits) < c.j.Spec.Ranks
}

func (c *conductor) begin() {
	c.l.attempt++
	r := &round{
		scope: &scope{}, attempt: c.l.attempt, begun: c.l.now, phase: "begin", times: map[string]float64{},
		marks: map[job.PodIndex][]podapi.Mark{}, images: map[job.PodIndex]*imageCopies{}, verbs: c.wanted,
	}
	c.round, c.wanted, c.rounds.at = r, nil, 0
	cmd := scheduler.BeginEpoch{Job: c.id, Incarnation: c.inc, Term: c.l.term, Attempt: r.attempt}
	c.l.propose(r.scope, scheduler.Command{BeginEpoch: &cmd}, func(d Done) {
		o := c.j.Open
		switch {
		case d.Failure != nil:
			c.failRound(r, d.Failure.Text, true)
		case o == nil || o.Term != c.l.term || o.Attempt != r.attempt:
			c.failRound(r, "another round is open", true)
		default:
			r.epoch = o.Epoch
			c.freeze(r)
		}
	})
}

// step sends the next op of a round to all pods; then is called when all have
// done it, and any failure ends the round.
func (c *conductor) step(r *round, op podapi.Op, limit time.Duration, fill func(job.PodIndex, *podapi.PhaseRequest), each func(job.PodIndex, *podapi.PhaseReply), then func()) {
	r.phase, r.stepped = op, c.l.now
	ph := phase{op: op, scope: r.scope, attempt: r.attempt, epoch: r.epoch, limit: limit, fill: fill}
	c.all(ph, c.pods(), func(p job.PodIndex, rep *podapi.PhaseReply) {
		for k, v := range rep.TimesMS {
			r.times[k] = max(r.times[k], v)
		}
		if each != nil {
			each(p, rep)
		}
	}, func(p job.PodIndex, f *Failure) {
		c.failRound(r, fmt.Sprintf("%s: %s: %s", op, c.podText(p), f.Text), f.Kind == RefusedNow || f.Kind == Unreachable)
	}, func() {
		r.times[stepName(op)] = ms(c.l.now - r.stepped)
		then()
	})
}

// stepName names an op in the bill of a checkpoint.
func stepName(op podapi.Op) string {
	switch op {
	case podapi.OpCaptureSend:
		return "capture"
	case podapi.OpCaptureRecv:
		return "copy"
	}
	return string(op)
}

func (c *conductor) freeze(r *round) {
	r.frozen = true
	start := c.l.now
	c.step(r, podapi.OpFreeze, c.l.cfg.FreezeMax, nil, nil, func() {
		c.step(r, podapi.OpCaptureSend, c.l.cfg.FreezeMax, nil, func(p job.PodIndex, rep *podapi.PhaseReply) {
			r.marks[p] = rep.Marks
		}, func() {
			c.step(r, podapi.OpCaptureRecv, c.l.cfg.FreezeMax, nil, func(p job.PodIndex, rep *podapi.PhaseReply) {
				r.marks[p] = mergeMarks(r.marks[p], rep.Marks)
				if rep.Bytes > r.kept {
					r.backing, r.kept = rep.Backing, rep.Bytes
				}
			}, func() { c.resume(r, start) })
		})
	})
}

// mergeMarks joins what the two captures of a pod say: the send side of the
// first, the receive side of the second.
func mergeMarks(send, recv []podapi.Mark) []podapi.Mark {
	out := slices.Clone(recv)
	for i := range out {
		k := slices.IndexFunc(send, func(m podapi.Mark) bool {
			return m.Flow == out[i].Flow && m.Rank == out[i].Rank && m.Cookie == out[i].Cookie
		})
		if k >= 0 {
			out[i].WriteSeq, out[i].SendLen = send[k].WriteSeq, send[k].SendLen
		}
	}
	return out
}

func (c *conductor) resume(r *round, start time.Duration) {
	peers, err := c.l.cfg.Pair(r.marks)
	if err != nil {
		retry := true
		if x, ok := err.(interface{ Retry() bool }); ok { //nolint:errorlint // what the pairing itself returns
			retry = x.Retry()
		}
		c.failRound(r, err.Error(), retry)
		return
	}
	fill := func(p job.PodIndex, q *podapi.PhaseRequest) { q.Peers = peers[p] }
	c.step(r, podapi.OpResume, c.l.cfg.FreezeMax, fill, nil, func() {
		r.frozen = false
		r.stallMS = ms(c.l.now - start)
		c.freezeAt[r.epoch] = start
		c.write(r)
		c.followRunning() // a suspension may have waited for the end of the stall
	})
}

// write stores the images; each is replicated as soon as it is written.
func (c *conductor) write(r *round) {
	r.wrote, r.left = c.l.now, len(c.j.Pods)
	fill := func(_ job.PodIndex, q *podapi.PhaseRequest) {
		q.Placement, q.Book = c.j.Placement(), c.j.Book()
	}
	c.step(r, podapi.OpWrite, c.l.cfg.WriteMax, fill, func(p job.PodIndex, rep *podapi.PhaseReply) {
		if rep.Written == nil {
			c.failRound(r, fmt.Sprintf("write: %s: no word of what was written", c.podText(p)), false)
			return
		}
		im := &imageCopies{pod: p, written: *rep.Written, bytes: rep.Bytes, holders: []job.NodeID{c.j.Pods[p].Node}}
		if im.bytes == 0 {
			for _, f := range rep.Written.Files {
				im.bytes += f.Size
			}
		}
		r.images[p] = im
		r.bytes += im.bytes
		c.replicate(r, im)
	}, func() {})
}

// imageDone is called when an image is on enough nodes.
func (c *conductor) imageDone(r *round) {
	if r.left--; r.left > 0 {
		return
	}
	r.phase = "commit-log"
	r.times["write"] = ms(c.l.now - r.wrote)
	cmd := scheduler.Commit{
		Job: c.id, Incarnation: c.inc, Epoch: r.epoch, StallMS: r.stallMS, TimesMS: r.times,
		Backing: r.backing,
	}
	digests := map[job.PodIndex]string{}
	for p := range c.j.Pods {
		im := r.images[job.PodIndex(p)]
		cmd.Images = append(cmd.Images, scheduler.PodImage{Pod: im.pod, Written: im.written, Bytes: im.bytes, Holders: im.holders})
		digests[im.pod] = im.written.Digest
	}
	cmd.SetDigest = c.l.cfg.SetDigest(digests)
	c.l.propose(r.scope, scheduler.Command{Commit: &cmd}, func(d Done) {
		if d.Failure != nil {
			c.failRound(r, "commit: "+d.Failure.Text, false)
			return
		}
		c.committedRound(r)
	})
}

// committedRound answers those who waited, and starts the afterwards: every
// pod and holder learns of the commit, then older epochs are collected.
func (c *conductor) committedRound(r *round) {
	r.scope.over = true
	c.round, c.rounds.delay = nil, 0
	for e := range c.freezeAt {
		if e < r.epoch && c.j.Find(e) == nil {
			delete(c.freezeAt, e)
		}
	}
	c.planRound(r.begun)
	if c.rounds.at > 0 {
		c.rounds.at = max(c.rounds.at, c.l.now+c.l.cfg.RoundRetry) // a round may take longer than the interval
	}
	c.publish(c.j.Find(r.epoch), true)
	for _, v := range r.verbs {
		if v.Kind == VerbVacate {
			c.vacated(v, r)
			continue
		}
		c.answer(v, Answer{Epoch: r.epoch, Bytes: r.bytes, StallMS: r.stallMS})
	}
	c.moreRounds()
}

// vacated ends the job with its images kept. The end closes the conductor's
// scope before the answer of the log is here: the verb has a scope of its own.
func (c *conductor) vacated(v Verb, r *round) {
	c.l.propose(&scope{}, scheduler.Command{End: &scheduler.End{
		Job: c.id, Incarnation: c.inc, Code: job.ExitCheckpoint, Keep: true,
		Reason: fmt.Sprintf("vacated; `lam restart %v` goes on from epoch %d", c.id, r.epoch),
	}}, func(d Done) {
		c.answer(v, Answer{Failure: d.Failure, Epoch: r.epoch, Bytes: r.bytes, StallMS: r.stallMS})
	})
}

// verbMax is how long a user's wish for a checkpoint outlives failed rounds.
const verbMax = 30 * time.Second

// failRound abandons a round: the log forgets its epoch, the pods resume if
// they are frozen and drop what they had. Verbs wait for the next try when the
// cause may pass.
func (c *conductor) failRound(r *round, reason string, retry bool) {
	if c.round != r {
		return
	}
	verbs := r.verbs
	c.voidRound(r, reason)
	if e := c.j.Newest(); e != nil && noRoom(reason) {
		c.collectBefore(e.Epoch)
	}
	c.rounds.delay = min(max(2*c.rounds.delay, c.l.cfg.RoundRetry), c.longestDelay(retry))
	var again []Verb
	for _, v := range verbs {
		if retry && c.l.now-v.since < verbMax {
			again = append(again, v)
			continue
		}
		c.answer(v, Answer{Failure: &Failure{Kind: Refused, Text: "checkpoint abandoned: " + reason}})
	}
	c.wanted = append(again, c.wanted...)
	if c.j.Spec.CkptInterval > 0 || len(c.wanted) > 0 {
		c.rounds.at = c.l.now + c.rounds.delay
	}
}

// noRoom reports whether a round failed because a disk is full. The text is all
// that comes from the nodes. The epoch before the newest is given up then: a
// newer checkpoint is worth more than a second way back.
func noRoom(reason string) bool {
	return strings.Contains(reason, "no space left on device") || strings.Contains(reason, "disk quota exceeded")
}

// hasty is the longest wait after a round that failed for a cause that may pass
// at any moment, such as a connection that was being set up.
const hasty = 4 * time.Second

// longestDelay bounds the wait after a failed round.
func (c *conductor) longestDelay(retry bool) time.Duration {
	d := c.l.cfg.RoundRetryMax
	if i := c.j.Spec.CkptInterval; i > 0 {
		d = min(d, max(i, c.l.cfg.RoundRetry))
	}
	if retry {
		d = min(d, hasty)
	}
	return d
}

// voidRound makes an end of a round in the log and in the pods.
func (c *conductor) voidRound(r *round, reason string) {
	r.scope.over = true
	c.round = nil
	if r.epoch == 0 {
		return
	}
	c.abandon(r.attempt, r.epoch, reason)
	for p := range c.j.Pods {
		if im := r.images[job.PodIndex(p)]; im != nil {
			for _, n := range im.tried {
				c.l.emit(Drop{Node: n, Job: c.id, Epoch: r.epoch})
			}
		}
	}
}

// tell makes every pod know what became of a round, however long that takes:
// no other round begins before, for a pod that does not know would refuse it.
// done hears whether all agreed.
func (c *conductor) tell(ph phase, done func(all bool)) {
	ph.scope, ph.limit, ph.forever, ph.again = c.scope, c.l.cfg.SealMax, true, true
	pods := c.pods()
	c.telling += len(pods)
	left, all := len(pods), true
	for _, p := range pods {
		c.call(ph, p, func(d Done) {
			c.telling--
			all = all && d.Failure == nil
			if left--; left == 0 {
				done(all)
			}
		})
	}
}

// abandon tells the log and the pods that an epoch is void.
func (c *conductor) abandon(attempt uint64, epoch job.Epoch, reason string) {
	cmd := scheduler.Abandon{Job: c.id, Epoch: epoch, Reason: reason}
	c.l.propose(c.scope, scheduler.Command{Abandon: &cmd}, func(Done) {})
	c.tell(phase{op: podapi.OpAbandon, attempt: attempt, epoch: epoch}, func(bool) {})
}

// dropRound forgets a round because the job's mode changed: the log has voided
// it, and what the pods do next implies it. Verbs wait until the job runs.
func (c *conductor) dropRound(reason string) {
	r := c.round
	if r == nil {
		return
	}
	r.scope.over = true
	c.round = nil
	if c.j.State.Final() {
		c.wanted = append(r.verbs, c.wanted...)
		c.refuseWanted(reason)
		return
	}
	c.wanted = append(r.verbs, c.wanted...)
}

// refuseWanted answers the verbs that will never get a round.
func (c *conductor) refuseWanted(reason string) {
	for _, v := range c.wanted {
		c.answer(v, Answer{Failure: &Failure{Kind: Refused, Text: reason}})
	}
	c.wanted = nil
}

// moreRounds sees to it that verbs which came during a round get theirs.
func (c *conductor) moreRounds() {
	if len(c.wanted) > 0 {
		c.rounds.at = c.l.now
	}
}
