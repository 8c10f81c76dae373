package stream

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// disown gives every socket of a record another identity, as if the process
// had closed them all since.
func disown(rec *Record) *Record {
	const other = 1 << 40
	out := &Record{}
	for _, e := range rec.Ends {
		t := *e.TCP
		t.Cookie += other
		out.Ends = append(out.Ends, End{Flags: e.Flags, TCP: &t})
	}
	for _, s := range rec.Slots {
		s.Cookie += other
		out.Slots = append(out.Slots, s)
	}
	return out
}

// TestInstallInLiveProcesses replaces every socket of both frozen processes,
// listeners included, again and again.
func TestInstallInLiveProcesses(t *testing.T) {
	bin := buildC(t, "duplex", "-static")
	for name, d := range stories() {
		t.Run(name, func(t *testing.T) {
			_, a, b := twoPods(t)
			ps := pairOf(t, bin, a, b, d)
			frozenCheckpoint(t, ps)
			thawAll(ps)
			rollbacks(t, ps, 3, func(p *party, gen uint64) {
				p.rec = disown(p.rec)
				p.restore(gen, false)
			})
		})
	}
}

// rollbacks lets the parties run for a moment and takes them back, n times or
// until they are done; then they must end well.
func rollbacks(t *testing.T, ps []*party, n int, restore func(p *party, gen uint64)) {
	t.Helper()
	done := 0
	for gen := range uint64(n) {
		pause(20 * time.Millisecond)
		for _, p := range ps {
			if p.finished() {
				n = 0
			}
		}
		if n == 0 {
			break
		}
		freezeAll(ps)
		for _, p := range ps {
			restore(p, gen)
		}
		for _, p := range ps {
			p.load(p.soul)
		}
		for _, p := range ps {
			p.release()
		}
		thawAll(ps)
		done++
	}
	for _, p := range ps {
		p.wait()
	}
	t.Logf("%d rollbacks", done)
}

// TestOneProcess rolls back connections whose two ends are in one process.
func TestOneProcess(t *testing.T) {
	bin := buildC(t, "duplex", "-static")
	for name, d := range stories() {
		t.Run(name, func(t *testing.T) {
			_, a, _ := twoPods(t)
			p := start(t, a, bin, d.as("both", a.ip), false)
			p.ready()
			ps := parties(p)
			frozenCheckpoint(t, ps)
			thawAll(ps)
			rollbacks(t, ps, 4, func(p *party, gen uint64) {
				if gen%2 == 1 {
					p.rec = disown(p.rec)
				}
				p.restore(gen, false)
			})
		})
	}
}

// TestOnePod rolls back two processes of one pod, the second of which is still
// as it was when the first has its sockets back.
func TestOnePod(t *testing.T) {
	bin := buildC(t, "duplex", "-static")
	for name, d := range stories() {
		t.Run(name, func(t *testing.T) {
			_, a, _ := twoPods(t)
			ps := pairOf(t, bin, a, a, d)
			frozenCheckpoint(t, ps)
			thawAll(ps)
			rollbacks(t, ps, 4, func(p *party, gen uint64) { p.restore(gen, false) })
		})
	}
}

// TestStalePeer rebuilds an end while the one that is declared lost is alive
// and goes on to send, until just before release.
func TestStalePeer(t *testing.T) {
	bin := buildC(t, "duplex", "-static")
	for name, d := range stories() {
		t.Run(name, func(t *testing.T) {
			h, a, b := twoPods(t)
			ps := pairOf(t, bin, a, b, d)
			frozenCheckpoint(t, ps)
			thawAll(ps)
			kept, gone := ps[0], ps[1]
			pause(10 * time.Millisecond)
			if kept.finished() || gone.finished() {
				t.Skip("the programs ended too early")
			}
			kept.freeze()
			stale := gone.program
			const mac = "02:00:00:00:02:01"
			ns := h.pod(t, b.ip, mac)
			ns.neighbour(t, a.ip, "02:00:00:00:00:01")
			kept.ns.neighbour(t, b.ip, mac)
			gone.rebuild(ns)
			kept.restore(1, false)
			pause(5 * time.Millisecond) // the stale end sends what it can
			gone.restore(1, true)
			kept.load(kept.soul)
			gone.load(gone.soul)
			b.cut(t) // the fence
			kept.release()
			gone.release()
			kept.thaw()
			gone.thaw()
			kept.wait()
			gone.wait()
			stale.end()
		})
	}
}

// gate is a hook that fails the n-th call, while it is open.
type gate struct {
	open   bool
	n      int
	failed bool
}

func (g *gate) hook(string, int) unix.Errno {
	if !g.open {
		return 0
	}
	if g.n--; g.n == 0 {
		g.failed = true
		return unix.EIO
	}
	return 0
}

// TestInstallFailures fails every call of an installation in turn, the
// injected ones as well; the next attempt succeeds and nothing is left behind.
func TestInstallFailures(t *testing.T) {
	bin := buildC(t, "duplex", "-static")
	_, a, b := twoPods(t)
	ps := pairOf(t, bin, a, b, duplex{conns: 2, tx: 1 << 20, rx: 1 << 20, rate: 1000})
	frozenCheckpoint(t, ps)
	p := ps[0]
	p.thaw()
	g := &gate{}
	must(t, p.tr.Close())
	p.tr = proc.NewTracer(kernel.New(g.hook))
	p.freeze()
	before := descriptors(t, p.pid())
	errs := 0
	for n := 1; ; n++ {
		*g = gate{n: n}
		live, err := p.s.Scan(testCtx(t), p.procs())
		must(t, err)
		p.rec = disown(p.rec)
		p.back, err = p.s.Restore(testCtx(t), p.rec, live, uint64(n))
		must(t, err)
		items, err := p.back.Plan(p.pid(), p.rec.Slots)
		must(t, err)
		for i := range items {
			items[i].Epoll = p.soul.epolls[items[i].FD]
		}
		g.open = true
		err = Install(testCtx(t), p.tr.Sys(), p.fz, items)
		g.open = false
		if err != nil {
			errs++
			must(t, Install(testCtx(t), p.tr.Sys(), p.fz, items))
		}
		if after := descriptors(t, p.pid()); after != before {
			t.Fatalf("call %d failed: descriptors\n%s\nwere\n%s", n, after, before)
		}
		p.rec = p.back.Record()
		if !g.failed {
			break
		}
		must(t, p.back.Close())
	}
	if errs < 8 {
		t.Errorf("only %d calls failed", errs)
	}
	q := ps[1]
	q.restore(99, false)
	must(t, p.back.Close())
	p.restore(99, false)
	for _, p := range ps {
		p.load(p.soul)
	}
	for _, p := range ps {
		p.release()
	}
	thawAll(ps)
	for _, p := range ps {
		p.wait()
	}
}

// descriptors lists the numbers and kinds of a process' descriptors.
func descriptors(t testing.TB, pid int) string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := os.ReadDir(dir)
	must(t, err)
	var b strings.Builder
	for _, n := range names {
		link, err := os.Readlink(dir + "/" + n.Name())
		must(t, err)
		kind, _, _ := strings.Cut(link, "[")
		fmt.Fprintf(&b, "%s %s; ", n.Name(), kind)
	}
	return b.String()
}
