package stream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// party is a pod with one program: rank = pod index.
type party struct {
	*program
	pod  job.PodIndex
	s    *Streams
	rec  *Record
	soul *soul
	live *Set
	back *Restored
}

func parties(progs ...*program) []*party {
	var ps []*party
	for i, p := range progs {
		ps = append(ps, &party{program: p, pod: job.PodIndex(i), s: p.ns.streams(p.t, nil)})
	}
	return ps
}

func (p *party) procs() []Process { return []Process{{PID: p.pid(), Rank: job.Rank(p.pod)}} }

// checkpoint runs the ops of a checkpoint on frozen parties. It reports false
// when the round had to be given up.
func checkpoint(t testing.TB, ps []*party) bool {
	t.Helper()
	ctx := testCtx(t)
	ok := true
	for _, p := range ps {
		set, err := p.s.Scan(ctx, p.procs())
		must(t, err)
		must(t, set.Refusal())
		p.live = set
		defer func() { must(t, set.Close()) }()
	}
	if _, err := Pair(marks(ps)); err != nil {
		t.Logf("round given up: %v", err)
		return false
	}
	for _, capture := range []func(*Set, context.Context) error{(*Set).CaptureSend, (*Set).CaptureRecv} {
		for _, p := range ps {
			err := capture(p.live, ctx)
			var r *Refusal
			if errors.As(err, &r) && r.Retry() {
				t.Logf("round given up: %v", err)
				return false
			}
			must(t, err)
		}
	}
	peers, err := Pair(marks(ps))
	if err != nil {
		t.Logf("round given up: %v", err)
		return false
	}
	for _, p := range ps {
		rec, err := p.live.Record()
		must(t, err)
		must(t, rec.Trim(peers[p.pod]))
		must(t, rec.Trim(peers[p.pod])) // twice is as good as once
		p.rec = rec
	}
	return ok
}

// dumpRecords logs the ends of all parties, for failed tests.
func dumpRecords(t testing.TB, ps []*party) {
	for _, p := range ps {
		for i, e := range p.rec.Ends {
			c := e.TCP
			t.Logf("rank %d fd %d %s-%s state %d send %d+%d recv %d-%d eof %v closed %v gone %v", p.pod, p.rec.Slots[i].FD,
				c.Local, c.Remote, c.State, c.SendSeq, len(c.Send), c.RecvSeq, len(c.Recv), c.EOF, c.Closed, c.PeerGone)
		}
	}
}

func marks(ps []*party) map[job.PodIndex][]podapi.Mark {
	m := map[job.PodIndex][]podapi.Mark{}
	for _, p := range ps {
		m[p.pod] = p.live.Marks()
	}
	return m
}

// restore puts the sockets of a frozen party back and installs what is new.
func (p *party) restore(gen uint64, fresh bool) {
	t := p.t
	t.Helper()
	ctx := testCtx(t)
	rec := p.rec
	var err error
	if !fresh {
		p.live, err = p.s.Scan(ctx, p.procs())
		must(t, err)
	} else {
		p.live = nil
	}
	p.back, err = p.s.Restore(ctx, rec, p.live, gen)
	must(t, err)
	items, err := p.back.Plan(p.pid(), rec.Slots)
	must(t, err)
	for i := range items {
		items[i].Epoll = p.soul.epolls[items[i].FD]
	}
	must(t, Install(ctx, p.s.sys, p.fz, items))
	p.rec = p.back.Record()
}

func (p *party) release() {
	p.t.Helper()
	must(p.t, p.back.Release(testCtx(p.t)))
	must(p.t, p.back.Close())
}

// frozenCheckpoint freezes the parties at a random moment and takes a
// checkpoint; they stay frozen, and their souls are saved.
func frozenCheckpoint(t testing.TB, ps []*party) {
	t.Helper()
	for range 20 {
		pause(20 * time.Millisecond)
		freezeAll(ps)
		if checkpoint(t, ps) {
			for _, p := range ps {
				p.soul = p.save()
			}
			return
		}
		thawAll(ps)
	}
	t.Fatal("no checkpoint succeeded")
}

func freezeAll(ps []*party) {
	for _, p := range ps {
		p.freeze()
	}
}

func thawAll(ps []*party) {
	for _, p := range ps {
		p.thaw()
	}
}

func pause(limit time.Duration) { time.Sleep(time.Duration(rand.Int64N(int64(limit)))) }

// rebuild starts the program of p anew in another pod, as far as the restart
// engine would: a frozen process with the epoll sets, to be given sockets and
// memory.
func (p *party) rebuild(ns *netns) {
	t := p.t
	t.Helper()
	p.program = startArgs(t, ns, p.args, true)
	p.s = ns.streams(t, nil)
	waitHeld(t, p.program)
	p.freeze()
	must(t, os.Remove(p.args[len(p.args)-1])) // for later programs
	b := p.fz.Batch(p.fz.Leader())
	ep := b.Call(unix.SYS_EPOLL_CREATE1, unix.EPOLL_CLOEXEC)
	must(t, b.Run(testCtx(t)))
	for _, regs := range p.soul.epolls {
		if regs[0].EpollFD != int(ep.Ret) {
			t.Fatalf("epoll set is %d, was %d", ep.Ret, regs[0].EpollFD)
		}
	}
}

// stories are the shapes of traffic that every scenario is run with.
func stories() map[string]duplex {
	return map[string]duplex{
		"level":       {conns: 4, tx: 40 << 20, rx: 40 << 20},
		"edge":        {conns: 4, tx: 40 << 20, rx: 40 << 20, edge: true},
		"slow reader": {conns: 6, tx: 12 << 20, rx: 12 << 20, rate: 60000},
		"slow edge":   {conns: 6, tx: 12 << 20, rx: 12 << 20, rate: 60000, edge: true},
		"half closed": {conns: 5, tx: 30000, rx: 16 << 20, rate: 80000},
		"many":        {conns: 100, tx: 600000, rx: 700000, rate: 9000},
	}
}

func (d duplex) as(mode, ip string) duplex {
	d.mode, d.ip = mode, ip
	if mode == "connect" {
		d.tx, d.rx = d.rx, d.tx
	}
	return d
}

func pairOf(t testing.TB, bin string, a, b *netns, d duplex) []*party {
	pb := start(t, b, bin, d.as("listen", b.ip), false)
	pa := start(t, a, bin, d.as("connect", b.ip), false)
	pa.ready()
	pb.ready()
	return parties(pa, pb)
}

// TestCaptureLeavesStreams captures again and again; the programs notice
// nothing.
func TestCaptureLeavesStreams(t *testing.T) {
	bin := buildC(t, "duplex", "-static")
	for name, d := range stories() {
		t.Run(name, func(t *testing.T) {
			_, a, b := twoPods(t)
			ps := pairOf(t, bin, a, b, d)
			var most int64
			for range 8 {
				pause(20 * time.Millisecond)
				if ps[0].finished() || ps[1].finished() {
					break
				}
				freezeAll(ps)
				if checkpoint(t, ps) {
					most = max(most, ps[0].rec.Bytes()+ps[1].rec.Bytes())
				}
				thawAll(ps)
			}
			for _, p := range ps {
				p.wait()
			}
			t.Logf("up to %d bytes in flight", most)
		})
	}
}

// TestRollback takes programs back to a checkpoint, several times, sockets and
// memory, from random moments to a random moment.
func TestRollback(t *testing.T) {
	bin := buildC(t, "duplex", "-static")
	for name, d := range stories() {
		t.Run(name, func(t *testing.T) {
			_, a, b := twoPods(t)
			ps := pairOf(t, bin, a, b, d)
			frozenCheckpoint(t, ps)
			bytes := ps[0].rec.Bytes() + ps[1].rec.Bytes()
			thawAll(ps)
			n := 0
			for gen := range uint64(5) {
				pause(20 * time.Millisecond)
				if ps[0].finished() || ps[1].finished() {
					break
				}
				freezeAll(ps)
				for _, p := range ps {
					p.restore(gen, false)
				}
				for _, p := range ps {
					p.load(p.soul)
				}
				for _, p := range ps {
					p.release()
				}
				thawAll(ps)
				n++
			}
			defer func() {
				if t.Failed() {
					dumpRecords(t, ps)
				}
			}()
			for _, p := range ps {
				p.wait()
			}
			t.Logf("%d rollbacks, %d bytes in flight", n, bytes)
		})
	}
}

// TestLostEnd kills one side, cuts its pod off, and builds it anew in another
// pod with the same address.
func TestLostEnd(t *testing.T) {
	bin := buildC(t, "duplex", "-static")
	for name, d := range stories() {
		t.Run(name, func(t *testing.T) {
			for _, lost := range []int{0, 1} {
				h, a, b := twoPods(t)
				ps := pairOf(t, bin, a, b, d)
				frozenCheckpoint(t, ps)
				thawAll(ps)
				gone, kept := ps[lost], ps[1-lost]
				for gen := range uint64(3) {
					pause(20 * time.Millisecond)
					if gone.finished() || kept.finished() {
						break
					}
					gone.ns.cut(t)
					gone.program.end()
					kept.freeze()
					mac := fmt.Sprintf("02:00:00:00:01:%02x", gen)
					ns := h.pod(t, gone.ns.ip, mac)
					kept.ns.neighbour(t, ns.ip, mac)
					ns.neighbour(t, kept.ns.ip, map[bool]string{true: "02:00:00:00:00:02", false: "02:00:00:00:00:01"}[lost == 0])
					gone.rebuild(ns)
					kept.restore(gen, false)
					gone.restore(gen, true)
					kept.load(kept.soul)
					gone.load(gone.soul)
					kept.release()
					gone.release()
					kept.thaw()
					gone.thaw()
				}
				for _, p := range ps {
					p.wait()
				}
			}
		})
	}
}
