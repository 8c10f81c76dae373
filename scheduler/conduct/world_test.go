package conduct

import (
	"container/heap"
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
}

// wnode is a machine.
type wnode struct {
	id     job.NodeID
	boot   job.Boot
	up     bool // the machine runs
	lamd   bool // lamd answers
	cut    bool // reaches only itself
	pods   map[job.ID]*wpod
	images map[imageKey]wimage
}

type imageKey struct {
	job   job.ID
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

	turn  turn // the open round
	void  turn // this and earlier ones are void
	done  map[podapi.Op]bool
	epoch job.Epoch // of the open round
	taken map[job.Epoch]wimage
	seen  job.Epoch // newest epoch seen committed
	whole job.Epoch // came back to it
	cut   wimage    // ... with this image

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

type eventQueue []*event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, k int) bool {
	return q[i].at < q[k].at || q[i].at == q[k].at && q[i].seq < q[k].seq
}
func (q eventQueue) Swap(i, k int) { q[i], q[k] = q[k], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(*event)) }
func (q *eventQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

func newWorld(seed uint64, compute, spares int) *world {
	w := &world{rnd: rand.New(rand.NewPCG(seed, 1)), nodes: map[job.NodeID]*wnode{}, posts: map[Ticket]*wpod{}, asked: map[Ticket]*wleader{}, work: 20 * time.Second} //nolint:gosec // a test
	for i := range compute + spares {
		id := job.NodeID(fmt.Sprintf("n%d", i+1))
		role := scheduler.Compute
		if i >= compute {
			role = scheduler.Spare
		}
		w.nodes[id] = &wnode{id: id, boot: 1, up: true, lamd: true, pods: map[job.ID]*wpod{}, images: map[imageKey]wimage{}}
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
	heap.Push(&w.events, &event{at: w.now + d, seq: w.seq, do: do})
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
	for w.events.Len() > 0 && w.bad == nil && !done() {
		e := heap.Pop(&w.events).(*event) //nolint:errcheck,forcetypeassert // only events are pushed
		if e.at > until {
			heap.Push(&w.events, e)
			w.now = until
			return
		}
		w.now = e.at
		e.do()
		w.check()
	}
}

// apply puts a command into the log.
func (w *world) apply(c scheduler.Command) *scheduler.Refusal {
	w.index++
	next, acts := scheduler.Step(w.st, w.index, c)
	w.st = next
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
// pods that the log does not want on its node any more.
func (w *world) reconcile() {
	for _, n := range w.sorted() {
		if !n.up || !n.lamd || n.cut {
			continue
		}
		want := w.st.PodsOn(n.id, n.boot)
		for id, p := range n.pods {
			q, ok := want[id]
			// An ended job's pods are left to the conductor, which lets their
			// output be read.
			if j := w.st.Jobs[id]; j != nil && j.State.Final() && !j.Retired && w.st.IsAlive(scheduler.NodeRef{Node: n.id, Boot: n.boot}) {
				continue
			}
			if !ok || p.spec.Incarnation < q.Built {
				w.killPod(p)
			}
		}
		if sn := w.st.Nodes[n.id]; sn.State == scheduler.Dead && sn.Boot >= n.boot {
			for _, p := range n.pods {
				w.killPod(p)
			}
			n.boot = sn.Boot + 1
			w.apply(scheduler.Command{Join: &scheduler.Join{Node: n.id, Addr: "10.0.0.1", Boot: n.boot, Session: 1, Slots: 2}})
			w.toLeaders(nil)
		}
	}
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
	if p.node.pods[p.spec.Job] == p {
		delete(p.node.pods, p.spec.Job)
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

// check looks for what may never be.
func (w *world) check() {
	type key struct {
		job job.ID
		pod job.PodIndex
	}
	seen := map[key]*wpod{}
	inc := map[job.ID]job.Incarnation{}
	for _, n := range w.order {
		if !n.up {
			continue
		}
		for id, p := range n.pods {
			if !p.computing(w.now) {
				continue
			}
			k := key{id, p.spec.Placement.Pod}
			if o := seen[k]; o != nil {
				w.fail("job %v pod %d computes on %s and on %s", id, k.pod, o.node.id, n.id)
			}
			seen[k] = p
			if i, ok := inc[id]; ok && i != p.head.Incarnation {
				w.fail("job %v: pods of incarnations %d and %d compute", id, i, p.head.Incarnation)
			}
			inc[id] = p.head.Incarnation
		}
	}
}
