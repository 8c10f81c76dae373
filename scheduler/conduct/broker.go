package conduct

import (
	"maps"
	"slices"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// broker gathers the arrivals of a job's pods at PMI fences. What it knows is
// lost with the leader and with the incarnation; then it asks the pods for
// every fence at which they ever arrived.
type broker struct {
	c       *conductor
	seqs    map[int]*fence
	pulling map[job.PodIndex]bool
	pullAt  time.Duration // next time to ask; 0 = no need
}

// fence is one numbered fence.
type fence struct {
	puts    map[job.PodIndex]map[string]string
	tickets []Ticket
	early   bool // complete although pods are missing
}

// pullEvery is how often pods are asked that have not arrived at a fence where
// others wait.
const pullEvery = time.Second

// keepFences bounds how many fences are remembered.
const keepFences = 32

// reset forgets everything; who waits is told to post again.
func (b *broker) reset() {
	var tickets []Ticket
	for _, seq := range sortedKeys(b.seqs) {
		tickets = append(tickets, b.seqs[seq].tickets...)
	}
	if len(tickets) > 0 {
		b.c.l.emit(FenceAnswer{Job: b.c.id, Tickets: tickets, Stale: true})
	}
	b.seqs, b.pulling, b.pullAt = map[int]*fence{}, map[job.PodIndex]bool{}, 0
}

func sortedKeys(m map[int]*fence) []int { return slices.Sorted(maps.Keys(m)) }

// fence routes an arrival.
func (l *Leader) fence(ev Fence) {
	c := l.jobs[ev.Fence.Job]
	f := ev.Fence
	if c == nil || c.mode == ending || f.Incarnation != c.inc || f.Pod < 0 || int(f.Pod) >= len(c.j.Pods) {
		l.emit(FenceAnswer{Job: f.Job, Tickets: []Ticket{ev.Ticket}, Reply: podapi.FenceReply{Seq: f.Seq}, Stale: true})
		return
	}
	c.broker.arrive(f, ev.Ticket)
}

func (b *broker) arrive(f podapi.Fence, t Ticket) {
	fe := b.seqs[f.Seq]
	if fe == nil {
		fe = &fence{puts: map[job.PodIndex]map[string]string{}}
		b.seqs[f.Seq] = fe
		if keys := sortedKeys(b.seqs); len(keys) > keepFences && len(b.seqs[keys[0]].tickets) == 0 {
			delete(b.seqs, keys[0])
		}
	}
	if !f.Ask {
		fe.puts[f.Pod] = f.Puts
	}
	fe.early = fe.early || f.Early
	if t != 0 {
		fe.tickets = append(fe.tickets, t)
	}
	if len(fe.puts) < len(b.c.j.Pods) && !fe.early {
		// Only what was lost needs asking for: an incarnation that this leader
		// launched itself is complete.
		if b.pullAt == 0 && len(fe.tickets) > 0 && (b.c.adopted || b.c.inc > 1) {
			b.pullAt = b.c.l.now
		}
		return
	}
	if len(fe.tickets) == 0 {
		return
	}
	union := map[string]string{}
	for _, puts := range fe.puts {
		for k, v := range puts {
			union[k] = v
		}
	}
	b.c.l.emit(FenceAnswer{Job: b.c.id, Tickets: fe.tickets, Reply: podapi.FenceReply{Seq: f.Seq, Puts: union}})
	fe.tickets = nil
}

func (b *broker) next(d *deadline) {
	if b.pullAt > 0 {
		d.by(b.pullAt)
	}
}

// tick asks the pods that others wait for.
func (b *broker) tick() {
	if b.pullAt == 0 || b.pullAt > b.c.l.now {
		return
	}
	missing := map[job.PodIndex]bool{}
	for _, fe := range b.seqs {
		if len(fe.tickets) == 0 {
			continue
		}
		for _, p := range b.c.pods() {
			if _, ok := fe.puts[p]; !ok && !fe.early {
				missing[p] = true
			}
		}
	}
	b.pullAt = 0
	if len(missing) == 0 {
		return
	}
	b.pullAt = b.c.l.now + pullEvery
	for _, p := range b.c.pods() {
		if missing[p] && !b.pulling[p] {
			b.pull(p)
		}
	}
}

func (b *broker) pull(p job.PodIndex) {
	c := b.c
	b.pulling[p] = true
	node := c.j.Pods[p].Node
	c.l.request(c.scope, pullEvery, pullEvery, func(ref Ref, timeout time.Duration) Action {
		return PullFences{Ref: ref, Job: c.id, Pod: p, Node: node, Timeout: timeout}
	}, func(d Done) {
		b.pulling[p] = false
		for _, f := range d.Fences {
			if f.Pod == p {
				b.arrive(f, 0)
			}
		}
	})
}
