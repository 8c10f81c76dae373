package conduct

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// world is a model of a cluster in virtual time: nodes that crash, are cut
// off and come back, pods whose ranks make progress, a log, and a leader per
// side of a cut. Everything happens in one goroutine and is drawn from one
// seeded source, so that a seed replays exactly.
type world struct {
	rnd    *rand.Rand
	now    time.Duration
	events eventQueue
	seq    uint64

	st      *scheduler.State
	index   uint64
	term    uint64
	nodes   map[job.NodeID]*wnode
	order   []*wnode   // by name
	leaders []*wleader // of all terms that still act, the newest last

	lazy  float64 // chance that an answer is lost or a request fails
	stray float64 // chance that a request arrives once more, late, when nobody reads its answer
	calm  bool    // no faults any more
	trace *strings.Builder
	bad   error

	work     time.Duration // what every rank has to compute
	posts    map[Ticket]*wpod
	ticket   Ticket
	asked    map[Ticket]*wleader // questions of users without an answer
	answers  []Answer
	actions  int          // performed so far
	onAction func()       // called for each
	onLine   func(string) // called for each line of the transcript
	fixed    bool         // delays are not drawn
	released int
	commits  int

	restarts  int // of the job from its images that are still to come
	restarted int // so far
	law       law
}

// wnode is a machine.
type wnode struct {
	id     job.NodeID
	boot   job.Boot
	up     bool // the machine runs
	lamd   bool // lamd answers
	cut    bool // reaches only itself
	run    int  // counts the starts of lamd: a request that was on its way dies with the old one
	pod    *wpod
	killed job.Incarnation // pods built up to this one ended here, and are not started any more
	images map[imageKey]wimage
	sealed map[job.Epoch]bool
}

type imageKey struct {
	epoch job.Epoch
	pod   job.PodIndex
}

// wimage is the content of an image: who took it when, and how far the ranks
// were.
type wimage struct {
	term, attempt uint64
	progress      time.Duration
	passed        int  // PMI fences
	waits         bool // at the next one
	bad           bool // the disk lost some of it
}

// wpod is a supervisor with its ranks.
type wpod struct {
	spec     podapi.PodSpec
	node     *wnode
	head     podapi.Header // newest accepted
	state    string        // see phase
	dead     bool
	lease    time.Duration // until when it may compute
	progress time.Duration // computed
	since    time.Duration // counted so far

	turn   turn // the open round
	toggle turn // of the newest suspend or continue
	void   turn // this and earlier ones are void
	done   map[podapi.Op]bool
	epoch  job.Epoch            // of the open round
	taken  map[job.Epoch]wimage // backing: of the round under way, and of the epoch to go back to
	seen   job.Epoch            // newest epoch seen committed
	whole  job.Epoch            // came back to it
	cut    wimage               // ... with this image

	ended   bool // its ranks have exited
	events  []podapi.Event
	suspend bool
	passed  int  // PMI fences behind it
	waits   bool // arrived at the next one
	posted  time.Duration
	asked   Ticket // of the post that waits for an answer, 0 = none
}

// runs reports whether the state lets the ranks run.
func (p *wpod) runs() bool {
	return !p.dead && !p.suspend && (p.state == "running" || p.state == "pending" || p.state == "written")
}

// wleader is a leader on a node, from its election until it knows better.
type wleader struct {
	w     *world
	core  *Leader
	node  *wnode
	term  uint64
	over  bool
	timer time.Duration
	read  map[*wpod]int // events passed on
}

type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

type eventQueue []event

// push and pop keep a heap by time and order of arrival.
func (q *eventQueue) push(e event) {
	*q = append(*q, e)
	h := *q
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h[i].before(h[up]) {
			return
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func (q *eventQueue) pop() event {
	h := *q
	top := h[0]
	last := len(h) - 1
	h[0] = h[last]
	h[last] = event{}
	h = h[:last]
	*q = h
	for i := 0; ; {
		least := i
		for _, k := range [2]int{2*i + 1, 2*i + 2} {
			if k < last && h[k].before(h[least]) {
				least = k
			}
		}
		if least == i {
			return top
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

func (e event) before(o event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

func newWorld(seed uint64, compute, spares int) *world {
	w := &world{rnd: rand.New(rand.NewPCG(seed, 1)), nodes: map[job.NodeID]*wnode{}, posts: map[Ticket]*wpod{}, asked: map[Ticket]*wleader{}, work: 20 * time.Second} //nolint:gosec // a test
	w.law = newLaw()
	for i := range compute + spares {
		id := job.NodeID(fmt.Sprintf("n%d", i+1))
		role := scheduler.Compute
		if i >= compute {
			role = scheduler.Spare
		}
		w.nodes[id] = &wnode{id: id, boot: 1, up: true, lamd: true, images: map[imageKey]wimage{}, sealed: map[job.Epoch]bool{}}
		w.order = append(w.order, w.nodes[id])
		w.apply(scheduler.Command{Join: &scheduler.Join{Node: id, Addr: "10.0.0.1", Boot: 1, Session: 1, Role: role, Slots: 2}})
	}
	var again func()
	again = func() {
		w.reconcile()
		w.after(time.Second, again)
	}
	w.after(time.Second, again)
	return w
}

func (w *world) logf(format string, args ...any) {
	if w.trace == nil {
		return
	}
	line := fmt.Sprintf(format, args...)
	fmt.Fprintf(w.trace, "%8.0f  %s\n", ms(w.now), line)
	if w.onLine != nil {
		w.onLine(line)
	}
}

func (w *world) fail(format string, args ...any) {
	if w.bad == nil {
		w.bad = fmt.Errorf("at %v: %s", w.now, fmt.Sprintf(format, args...))
		w.logf("VIOLATION %v", w.bad)
	}
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	w.events.push(event{at: w.now + d, seq: w.seq, do: do})
}

// delay draws a time between lo and hi milliseconds.
func (w *world) delay(lo, hi int) time.Duration {
	if hi <= lo || w.fixed {
		return time.Duration((lo+hi)/2) * time.Millisecond
	}
	return time.Duration(lo)*time.Millisecond + time.Duration(w.rnd.Int64N(int64(hi-lo)*int64(time.Millisecond)))
}

func (w *world) chance(p float64) bool { return p > 0 && w.rnd.Float64() < p }

// run plays until the given time, or until done says so.
func (w *world) run(until time.Duration, done func() bool) {
	for len(w.events) > 0 && w.bad == nil && !done() {
		if w.events[0].at > until {
			w.now = until
			return
		}
		e := w.events.pop()
		w.now = e.at
		e.do()
		w.check()
	}
}

// apply puts a command into the log.
func (w *world) apply(c scheduler.Command) *scheduler.Refusal {
	w.index++
	next, acts := scheduler.Step(w.st, w.index, c)
	was := w.st
	w.st = next
	w.followed(was, c)
	for _, a := range acts {
		switch {
		case a.Kind == scheduler.ActRefuse:
			if a.Refusal.Code == scheduler.Broken {
				w.fail("%s", a.Refusal.Text)
			}
			return a.Refusal
		case a.Kind == scheduler.ActEvent:
			if a.Event.Name == "checkpoint.committed" {
				w.commits++
			}
			w.logf("%s", eventText(a.Event))
		}
	}
	w.after(w.delay(1, 20), w.reconcile)
	return nil
}

func eventText(e *scheduler.Event) string {
	text := "event " + e.Name
	if e.Epoch != 0 {
		text += fmt.Sprintf(" epoch=%d", e.Epoch)
	}
	if e.Node != "" {
		text += " node=" + string(e.Node)
	}
	return strings.TrimSpace(text + " " + dataText(e.Data))
}

func dataText(data map[string]any) string {
	keys := make([]string, 0, len(data))
	for k := range data {
		if !strings.HasSuffix(k, "_ms") {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, " %s=%v", k, data[k])
	}
	return strings.TrimSpace(b.String())
}

// reconcile is what every lamd does that learns of a newer state: it kills
// the pod that the log does not want on its node any more.
func (w *world) reconcile() {
	for _, n := range w.order {
		if !n.up || !n.lamd || n.cut {
			continue
		}
		if p := n.pod; p != nil && !w.wanted(n, p) {
			w.killPod(p)
		}
		if sn := w.st.Nodes[n.id]; sn.State == scheduler.Dead && sn.Boot >= n.boot {
			if n.pod != nil {
				w.killPod(n.pod)
			}
			n.boot = sn.Boot + 1
			w.apply(scheduler.Command{Join: &scheduler.Join{Node: n.id, Addr: "10.0.0.1", Boot: n.boot, Session: 1, Slots: 2}})
			w.toLeaders(nil)
		}
	}
}

// wanted reports whether the log has pod p on its node. An ended job's pods are
// left to the conductor, which lets their output be read.
func (w *world) wanted(n *wnode, p *wpod) bool {
	j := w.st.Jobs[p.spec.Job]
	if j == nil {
		return false
	}
	if j.State.Final() {
		return !j.Retired && w.st.IsAlive(scheduler.NodeRef{Node: n.id, Boot: n.boot})
	}
	q := j.Pods[p.spec.Placement.Pod]
	return q.Node == n.id && q.Boot == n.boot && p.spec.Incarnation >= q.Built
}

func (w *world) sorted() []*wnode {
	return w.order
}

func (w *world) reach(from *wnode, to job.NodeID) *wnode {
	n := w.nodes[to]
	if n == nil || !n.up || !n.lamd || from != n && (from.cut || n.cut) {
		return nil
	}
	return n
}

func (w *world) killPod(p *wpod) {
	p.settle(w.now)
	p.dead = true
	p.node.killed = max(p.node.killed, p.spec.Incarnation)
	if p.node.pod == p {
		p.node.pod = nil
	}
}

// settle counts what the pod computed until now.
func (p *wpod) settle(now time.Duration) {
	if p.runs() && !p.waits && p.since < now {
		until := min(now, p.lease)
		if until > p.since {
			p.progress += until - p.since
		}
	}
	p.since = now
}

// computing reports whether the ranks of p run at this moment.
func (p *wpod) computing(now time.Duration) bool {
	return p.runs() && !p.ended && p.lease > now
}
