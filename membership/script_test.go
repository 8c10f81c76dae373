package membership

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/job"
)

// A function of the flag package, not a variable that tests change.
var update = flag.Bool("update", false, "rewrite the expected outcomes in testdata")

// TestEvidenceScripts plays the stories in testdata/evidence: every line that
// is not indented is a command, the indented lines below it are what comes out.
//
//	self NODE                  this node
//	seen NODE#BOOT[/SESSION]…  gossip holds them alive
//	dead NODE#BOOT…            gossip holds them dead
//	left NODE#BOOT             a good-bye
//	report SOURCE NODE[#BOOT]  evidence of the daemon
//	told FROM NODE#BOOT        another member cannot reach it
//	dialfail NODE#BOOT         memberlist could not dial
//	ack NODE#BOOT              memberlist's ping was answered
//	host up|refused|accepted|down NODE…  how our probes of it end from now on
//	wait D                     time passes, with ticks and answers to probes
//	stall D                    time passes, but this process does not run
func TestEvidenceScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/evidence/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(want))
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("outcome differs from %s (-want +got); check it, then run with -update:\n%s", f, d)
			}
		})
	}
}

// world is the simulated surroundings of one table.
type world struct {
	t     *table
	now   time.Duration
	tick  time.Duration // next tick
	hosts map[job.NodeID]reach
	late  []answer // probes under way, oldest first
	out   strings.Builder
}

// answer is a probe's outcome that arrives at a time.
type answer struct {
	at time.Duration
	g  target
	r  reach
}

// probeTakes is how long a probe with each outcome lasts.
func probeTakes(r reach) time.Duration {
	switch r {
	case reachAck:
		return time.Millisecond
	case reachNone:
		return DefaultTuning().DialTimeout
	default:
		return DefaultTuning().ProbeTimeout
	}
}

func play(t *testing.T, script string) string {
	w := &world{t: newTable("", DefaultTuning()), now: 1, tick: tickEvery, hosts: map[job.NodeID]reach{}}
	for line := range strings.Lines(script) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "  ") {
			continue
		}
		w.out.WriteString(line + "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		if err := w.command(strings.Fields(line)); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	return w.out.String()
}

func (w *world) command(f []string) error {
	switch f[0] {
	case "self":
		w.t.self = job.NodeID(f[1])
	case "wait", "stall":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			return err
		}
		if f[0] == "wait" {
			w.wait(w.now + d)
		} else {
			w.now += d
		}
	case "host":
		r, ok := map[string]reach{"up": reachAck, "refused": reachRefused, "accepted": reachAccepted, "down": reachNone}[f[1]]
		if !ok {
			return fmt.Errorf("host state %q", f[1])
		}
		for _, n := range f[2:] {
			w.hosts[job.NodeID(n)] = r
		}
	case "report":
		node, boot, err := parseMember(f[2])
		if err != nil {
			return err
		}
		w.t.report(w.now, Evidence{Node: node, Boot: boot, Source: Source(f[1])})
		w.drain()
	case "told":
		node, boot, err := parseMember(f[2])
		if err != nil {
			return err
		}
		w.t.told(w.now, word{job.NodeID(f[1]), node, boot})
		w.drain()
	default:
		return w.gossip(f)
	}
	return nil
}

// gossip plays the inputs that come from memberlist.
func (w *world) gossip(f []string) error {
	for _, m := range f[1:] {
		name, session, _ := strings.Cut(m, "/")
		node, boot, err := parseMember(name)
		if err != nil {
			return err
		}
		switch f[0] {
		case "seen":
			s, _ := strconv.ParseUint(session, 10, 64)
			w.t.seen(w.now, Meta{Node: node, Boot: boot, Session: s}, netip.AddrPort{})
		case "dead", "left":
			w.t.gone(w.now, node, boot, f[0] == "left")
		case "dialfail":
			w.t.unreachable(w.now, node, boot)
		case "ack":
			w.t.acked(w.now, node, boot)
		default:
			return fmt.Errorf("unknown command")
		}
	}
	w.drain()
	return nil
}

func parseMember(s string) (job.NodeID, job.Boot, error) {
	if !strings.Contains(s, "#") {
		return job.NodeID(s), 0, nil
	}
	return parseName(s)
}

// wait advances the time, in the order in which things happen.
func (w *world) wait(until time.Duration) {
	for {
		next := max(w.tick, w.now)
		isTick := true
		if len(w.late) > 0 && w.late[0].at <= next {
			next, isTick = max(w.late[0].at, w.now), false
		}
		if next > until {
			w.now = until
			return
		}
		w.now = next
		if isTick {
			w.t.tick(w.now)
			w.tick = w.now + tickEvery
		} else {
			a := w.late[0]
			w.late = w.late[1:]
			w.t.probed(w.now, a.g, a.r)
			if w.t.late(w.now) {
				w.t.tick(w.now)
			}
		}
		w.drain()
	}
}

// drain writes the outcome and starts the probes that the table asks for.
func (w *world) drain() {
	out := w.t.drain(w.now)
	for _, e := range out.events {
		more := ""
		if e.More {
			more = " more"
		}
		fmt.Fprintf(&w.out, "  %6dms %s %s by %s", w.now.Milliseconds(), e.Kind, gossipName(e.Node, e.Boot), e.Source)
		if e.Session > 0 {
			fmt.Fprintf(&w.out, " session %d", e.Session)
		}
		if e.Doubt > 0 {
			fmt.Fprintf(&w.out, " after %dms", e.Doubt.Milliseconds())
		}
		fmt.Fprintln(&w.out, more)
	}
	for _, x := range out.words {
		fmt.Fprintf(&w.out, "  %6dms spread %s cannot reach %s\n", w.now.Milliseconds(), x.From, gossipName(x.Node, x.Boot))
	}
	for _, g := range out.rejoin {
		fmt.Fprintf(&w.out, "  %6dms rejoin %s\n", w.now.Milliseconds(), gossipName(g.node, g.boot))
	}
	for _, g := range out.probes {
		r := w.hosts[g.node]
		a := answer{w.now + probeTakes(r), g, r}
		i := len(w.late)
		for i > 0 && w.late[i-1].at > a.at {
			i--
		}
		w.late = append(w.late[:i], append([]answer{a}, w.late[i:]...)...)
	}
}
