package tree

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/lampause/lampause/job"
)

// machine simulates the members of a view: every Send is a direct call of the
// receiver's Relay, and is counted.
type machine struct {
	mu      sync.Mutex
	down    map[job.NodeID]bool // unknown to the view: found out by sending
	breaks  map[job.NodeID]bool // passes the message on, then dies without a reply
	sent    map[job.NodeID]int  // messages by sender
	handled map[job.NodeID]int
	hops    map[job.NodeID]int // first arrival
	tries   int                // sends in vain
}

func newMachine() *machine {
	return &machine{
		down: map[job.NodeID]bool{}, breaks: map[job.NodeID]bool{}, sent: map[job.NodeID]int{},
		handled: map[job.NodeID]int{}, hops: map[job.NodeID]int{},
	}
}

// port is one member's Sender.
type port struct {
	m    *machine
	from job.NodeID
	hops int
}

var errDown = errors.New("no answer")

func (p port) Send(ctx context.Context, to job.NodeID, msg Message) (Reply, error) {
	p.m.mu.Lock()
	p.m.sent[p.from]++
	down, breaks := p.m.down[to], p.m.breaks[to]
	if down {
		p.m.tries++
	}
	p.m.mu.Unlock()
	if down {
		return Reply{}, errDown
	}
	r, err := Relay(ctx, port{p.m, to, p.hops + 1}, p.m.handler(to, p.hops+1), to, msg)
	if breaks {
		return Reply{}, errDown
	}
	return r, err
}

// handler counts, and answers with its own name.
func (m *machine) handler(n job.NodeID, hops int) Handler {
	return func(context.Context, Message) (json.RawMessage, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.handled[n]++
		if _, ok := m.hops[n]; !ok {
			m.hops[n] = hops
		}
		return json.Marshal(n)
	}
}

func (m *machine) broadcast(t *testing.T, v View, root job.NodeID) Reply {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := Broadcast(ctx, port{m, root, 0}, m.handler(root, 0), v, root, 7, "test", json.RawMessage(`"x"`))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestBroadcastReachesTheLivingOnce(t *testing.T) {
	for _, arity := range []int{2, 3, 16} {
		for _, n := range []int{1, 2, 3, 16, 17, 18, 100} {
			t.Run(fmt.Sprintf("arity=%d/n=%d", arity, n), func(t *testing.T) {
				m := newMachine()
				r := m.broadcast(t, View{Nodes: names(n), Arity: arity}, names(n)[n/2])
				if !r.Complete() || len(r.Answers) != n {
					t.Errorf("%d answers, missing %v", len(r.Answers), r.Missing)
				}
				for x, a := range r.Answers {
					if string(a.Payload) != fmt.Sprintf("%q", x) {
						t.Errorf("%s answered %s", x, a.Payload)
					}
					if m.handled[x] != 1 {
						t.Errorf("%s handled it %d times", x, m.handled[x])
					}
				}
			})
		}
	}
}

// TestInnerNodesDie: heads of intervals that the view holds alive are gone, or
// break off after passing the message on. All others are reached all the same.
func TestInnerNodesDie(t *testing.T) {
	v := View{Nodes: names(64), Arity: 2}
	tr, _ := New(v, "n0")
	kids := tr.Children("n0")
	m := newMachine()
	m.down[kids[0]] = true
	m.down[tr.Children(kids[0])[0]] = true
	m.breaks[kids[1]] = true
	r := m.broadcast(t, v, "n0")
	if len(r.Missing) != 3 || r.Complete() {
		t.Errorf("missing %v, want three", r.Missing)
	}
	for _, n := range v.Nodes {
		_, answered := r.Answers[n]
		gone := m.down[n] || m.breaks[n]
		if answered == gone {
			t.Errorf("%s: answered %v, gone %v", n, answered, gone)
		}
		if !m.down[n] && m.handled[n] == 0 {
			t.Errorf("%s was not reached", n)
		}
	}
	if m.tries > 3 {
		t.Errorf("%d sends in vain for two dead", m.tries)
	}
}

func TestHandlerErrorsAreAnswers(t *testing.T) {
	v := View{Nodes: names(3)}
	m := newMachine()
	h := func(context.Context, Message) (json.RawMessage, error) { return nil, errors.New("not now") }
	r, err := Broadcast(context.Background(), port{m, "n0", 0}, h, v, "n0", 1, "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Complete() || r.Answers["n0"].Error != "not now" || r.Answers["n1"].Error != "" {
		t.Errorf("reply %+v", r)
	}
}

func TestRelayRefusesWhatIsNotForIt(t *testing.T) {
	v := View{ID: 3, Nodes: names(8), Arity: 2}
	m := newMachine()
	for name, msg := range map[string]Message{
		"another member":  {View: v, Root: "n0", Lo: 2, Hi: 4},
		"empty interval":  {View: v, Root: "n0", Lo: 1, Hi: 1},
		"beyond the view": {View: v, Root: "n0", Lo: 1, Hi: 9},
		"negative":        {View: v, Root: "n0", Lo: -1, Hi: 4},
		"unknown root":    {View: v, Root: "n9", Lo: 1, Hi: 4},
	} {
		if _, err := Relay(context.Background(), port{m, "n1", 0}, m.handler("n1", 0), "n1", msg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if len(m.handled) != 0 {
		t.Errorf("handled by %v", m.handled)
	}
	if _, err := Broadcast(context.Background(), port{m, "n9", 0}, m.handler("n9", 0), v, "n9", 1, "test", nil); err == nil {
		t.Error("broadcast of a stranger: no error")
	}
}

// TestMessageSurvivesJSON: messages cross nodes as JSON.
func TestMessageSurvivesJSON(t *testing.T) {
	in := Message{ID: 1, View: View{ID: 2, Nodes: names(3), Dead: []job.NodeID{"n2"}, Arity: 2}, Root: "n0", Lo: 1, Hi: 2, Skip: []job.NodeID{"n1"}, Kind: "k", Payload: json.RawMessage(`{"a":1}`)}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out Message
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(in) != fmt.Sprint(out) {
		t.Errorf("%v became %v", in, out)
	}
}

// TestSimulation prints what a broadcast costs up to 4,096 nodes, without losses
// and with one node in a hundred dead without anybody knowing. "flat" is one
// sender that talks to everybody.
func TestSimulation(t *testing.T) {
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "nodes\tarity\tdead\tdepth\tmost hops\tmean hops\tmost sent by one\tsent in all\tin vain\tunreached\t")
	for _, n := range []int{16, 64, 256, 1024, 4096} {
		for _, arity := range []int{2, 16, n} {
			for _, dead := range []int{0, max(1, n/100)} {
				if arity == 16 && n == 16 { // the same as flat
					continue
				}
				simulate(t, w, n, arity, dead)
			}
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
}

func simulate(t *testing.T, w *tabwriter.Writer, n, arity, dead int) {
	t.Helper()
	v := View{Nodes: names(n), Arity: arity}
	m := newMachine()
	for i := range dead {
		m.down[v.Nodes[1+i*97%(n-1)]] = true // spread, inner ones among them
	}
	dead = len(m.down)
	r := m.broadcast(t, v, "n0")
	if len(r.Answers) != n-dead || len(r.Missing) != dead {
		t.Errorf("n=%d arity=%d: %d answers and %d missing of %d dead", n, arity, len(r.Answers), len(r.Missing), dead)
	}
	most, all, hops, far := 0, 0, 0, 0
	for _, s := range m.sent {
		most, all = max(most, s), all+s
	}
	for _, h := range m.hops {
		hops += h
		far = max(far, h)
	}
	if all != n-1 { // one message for everybody, reached or not
		t.Errorf("n=%d arity=%d: %d messages", n, arity, all)
	}
	if most > arity+dead {
		t.Errorf("n=%d arity=%d: one node sent %d messages", n, arity, most)
	}
	tr, _ := New(v, "n0")
	name := fmt.Sprint(arity)
	if arity == n {
		name = "flat"
	}
	fmt.Fprintf(w, "%d\t%s\t%d\t%d\t%d\t%.2f\t%d\t%d\t%d\t%d\t\n", n, name, dead, tr.Depth(), far, float64(hops)/float64(len(m.hops)), most, all, m.tries, n-dead-len(r.Answers))
}
