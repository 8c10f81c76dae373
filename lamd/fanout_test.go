package lamd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/membership/tree"
	"github.com/lampause/lampause/scheduler"
	"github.com/lampause/lampause/scheduler/conduct"
)

// forest is nodes in memory, each with a pod of job 7. What a node does other
// than answering with its name is found by its name; it is not changed while
// messages travel.
type forest struct {
	all    map[job.NodeID]*fanout
	dead   map[job.NodeID]bool
	phases map[job.NodeID]func(context.Context) (*podapi.PhaseReply, int, error)
	// perform, when set, answers everything.
	perform func(context.Context, job.NodeID, treePart) (any, int, error)

	mu    sync.Mutex // guards below
	asked map[job.NodeID]int
	heard map[job.NodeID]int // largest number of parts in a message
}

// member is one node's link and performer.
type member struct {
	f  *forest
	id job.NodeID
}

var errNobody = errors.New("nobody there")

func (m member) send(ctx context.Context, to job.NodeID, in treeRequest) (tree.Reply, error) {
	if m.f.dead[to] {
		return tree.Reply{}, errNobody
	}
	var load treeLoad
	if err := json.Unmarshal(in.Message.Payload, &load); err != nil {
		return tree.Reply{}, err
	}
	m.f.mu.Lock()
	m.f.heard[to] = max(m.f.heard[to], len(load.Parts))
	m.f.mu.Unlock()
	return m.f.all[to].relay(ctx, in)
}

func (m member) perform(ctx context.Context, p treePart) (any, int, error) {
	m.f.mu.Lock()
	m.f.asked[m.id]++
	m.f.mu.Unlock()
	if m.f.perform != nil {
		return m.f.perform(ctx, m.id, p)
	}
	var in podapi.PhaseRequest
	if err := json.Unmarshal(p.Body, &in); err != nil || p.Kind != treePhase || p.Job != 7 || in.Op != podapi.OpFreeze {
		return nil, 0, notFound("no such pod")
	}
	if do := m.f.phases[m.id]; do != nil {
		return do(ctx)
	}
	return &podapi.PhaseReply{Obstacles: []string{string(m.id)}}, http.StatusOK, nil
}

func nodeName(i int) job.NodeID { return job.NodeID(fmt.Sprintf("n%02d", i)) }

func newForest(n, arity int, log zerolog.Logger) *forest {
	f := &forest{
		all: map[job.NodeID]*fanout{}, dead: map[job.NodeID]bool{}, asked: map[job.NodeID]int{}, heard: map[job.NodeID]int{},
		phases: map[job.NodeID]func(context.Context) (*podapi.PhaseReply, int, error){},
	}
	for i := range n {
		m := member{f, nodeName(i)}
		f.all[m.id] = &fanout{self: m.id, arity: arity, local: m, link: m, log: log}
	}
	return f
}

// freezes is one call per node, Ref 100 and up.
func freezes(n int, timeout time.Duration) []conduct.Action {
	var out []conduct.Action
	for i := range n {
		out = append(out, conduct.Call{
			Ref: conduct.Ref(100 + i), Job: 7, Pod: job.PodIndex(i), Node: nodeName(i), Timeout: timeout,
			Request: podapi.PhaseRequest{Op: podapi.OpFreeze, Epoch: 3},
		})
	}
	return out
}

// callIn returns an action that is a call.
func callIn(t *testing.T, act conduct.Action) conduct.Call {
	t.Helper()
	c, ok := act.(conduct.Call)
	if !ok {
		t.Fatalf("action of type %T", act)
	}
	return c
}

// outcomes checks that every call has one Done, and returns them by node. A
// success must be the node's own.
func outcomes(t *testing.T, calls []conduct.Action, dones []conduct.Done) map[job.NodeID]*conduct.Failure {
	t.Helper()
	if len(dones) != len(calls) {
		t.Errorf("%d answers to %d calls", len(dones), len(calls))
	}
	byRef := map[conduct.Ref]conduct.Done{}
	for _, d := range dones {
		byRef[d.Ref] = d
	}
	out := map[job.NodeID]*conduct.Failure{}
	for _, act := range calls {
		c := callIn(t, act)
		d, ok := byRef[c.Ref]
		if !ok {
			t.Errorf("no answer of %s", c.Node)
			continue
		}
		if d.Failure == nil && (d.Reply == nil || !slices.Equal(d.Reply.Obstacles, []string{string(c.Node)})) {
			t.Errorf("%s got the answer %+v", c.Node, d.Reply)
		}
		out[c.Node] = d.Failure
	}
	return out
}

// TestFanoutOfATroubledForest: forty nodes, two children each; some are dead,
// some refuse, one has lost its pod, two do not finish in time.
func TestFanoutOfATroubledForest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newForest(40, 2, testLog(t))
		root := nodeName(20)
		shape, ok := tree.New(tree.View{Nodes: append([]job.NodeID{root}, namesBut(40, root)...), Arity: 2}, root)
		if !ok {
			t.Fatal("no tree")
		}
		kids := shape.Children(root)
		inner, grand := kids[0], shape.Children(kids[0])[0]
		slow := shape.Children(kids[1])[0]
		want := map[job.NodeID]conduct.FailureKind{
			inner: conduct.Unreachable, grand: conduct.Unreachable, slow: conduct.Unreachable, "n39": conduct.Unreachable,
			"n05": conduct.Refused, "n06": conduct.RefusedNow, "n07": conduct.FailedForGood,
		}
		f.dead[inner], f.dead[grand] = true, true
		hang := func(ctx context.Context) (*podapi.PhaseReply, int, error) {
			<-ctx.Done()
			return nil, 0, podDown(7, ctx.Err())
		}
		f.phases[slow], f.phases["n39"] = hang, hang
		f.phases["n05"] = func(context.Context) (*podapi.PhaseReply, int, error) {
			return &podapi.PhaseReply{Error: "stale"}, http.StatusConflict, nil
		}
		f.phases["n06"] = func(context.Context) (*podapi.PhaseReply, int, error) {
			return &podapi.PhaseReply{Error: "connecting", Retry: true}, http.StatusUnprocessableEntity, nil
		}
		f.phases["n07"] = func(context.Context) (*podapi.PhaseReply, int, error) { return nil, 0, notFound("no pod") }
		if len(want) != 7 {
			t.Fatalf("the roles overlap: %v", want)
		}
		calls := freezes(40, 5*time.Second)
		start := time.Now()
		for node, got := range outcomes(t, calls, f.all[root].call(t.Context(), calls)) {
			if kind := want[node]; (kind == 0) != (got == nil) || got != nil && got.Kind != kind {
				t.Errorf("%s: %+v, want kind %d", node, got, kind)
			}
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("took %v, longer than the calls' time", d)
		}
		for id, n := range f.asked {
			if n != 1 {
				t.Errorf("%s was asked %d times", id, n)
			}
		}
		if len(f.asked) != 38 {
			t.Errorf("%d nodes asked, want all but two dead", len(f.asked))
		}
		for id, n := range f.heard {
			if n >= 39 {
				t.Errorf("%s got the parts of %d nodes", id, n)
			}
		}
	})
}

func namesBut(n int, not job.NodeID) []job.NodeID {
	var out []job.NodeID
	for i := range n {
		if id := nodeName(i); id != not {
			out = append(out, id)
		}
	}
	return out
}

// TestFanoutWithoutThePodsOfTheRoot: the leader need not be a node of the job.
func TestFanoutWithoutThePodsOfTheRoot(t *testing.T) {
	f := newForest(20, 2, testLog(t))
	calls := freezes(20, patience)[1:]
	for node, got := range outcomes(t, calls, f.all["n00"].call(testContext(t), calls)) {
		if got != nil {
			t.Errorf("%s: %+v", node, got)
		}
	}
	if f.asked["n00"] != 0 {
		t.Error("the leader was asked")
	}
}

func TestFanoutEndsWithTheTerm(t *testing.T) {
	f := newForest(20, 2, testLog(t))
	for id := range f.all {
		f.phases[id] = func(ctx context.Context) (*podapi.PhaseReply, int, error) {
			<-ctx.Done()
			return nil, 0, podDown(7, ctx.Err())
		}
	}
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	calls := freezes(20, patience)
	for node, got := range outcomes(t, calls, f.all["n00"].call(ctx, calls)) {
		if got == nil || got.Kind != conduct.Unreachable {
			t.Errorf("%s: %+v", node, got)
		}
	}
}

func TestFanoutTakesOnlyWideOps(t *testing.T) {
	of := func(op podapi.Op, n int) []conduct.Action {
		out := freezes(n, time.Second)
		for i := range out {
			c := callIn(t, out[i])
			c.Request.Op = op
			out[i] = c
		}
		return out
	}
	for name, c := range map[string]struct {
		f     *fanout
		acts  []conduct.Action
		sizes []int
	}{
		"nothing":           {&fanout{}, nil, nil},
		"sixteen":           {&fanout{}, of(podapi.OpFreeze, 16), nil},
		"seventeen":         {&fanout{}, of(podapi.OpFreeze, 17), []int{17}},
		"no fanout":         {nil, of(podapi.OpFreeze, 17), nil},
		"small arity":       {&fanout{arity: 2}, of(podapi.OpResume, 3), []int{3}},
		"writes":            {&fanout{}, of(podapi.OpWrite, 40), nil},
		"different ops":     {&fanout{}, append(of(podapi.OpStop, 12), of(podapi.OpRestore, 12)...), nil},
		"among other kinds": {&fanout{}, append(of(podapi.OpCommit, 18), conduct.Drop{}, conduct.Seal{Job: &scheduler.Job{}}), []int{18}},
	} {
		t.Run(name, func(t *testing.T) {
			rest, batches := c.f.split(c.acts)
			var sizes []int
			all := len(rest)
			for _, b := range batches {
				sizes = append(sizes, len(b))
				all += len(b)
			}
			if !slices.Equal(sizes, c.sizes) || all != len(c.acts) {
				t.Errorf("batches of %v and %d others of %d actions", sizes, len(rest), len(c.acts))
			}
		})
	}
	together := append(of(podapi.OpFreeze, 17), freezesOn(t, "n00", 17)...)
	if rest, batches := (&fanout{}).split(freezesOn(t, "n00", 17)); len(rest) != 17 || batches != nil {
		t.Errorf("calls to one node: %d batches", len(batches))
	}
	if _, batches := (&fanout{}).split(together); len(batches) != 1 || len(batches[0]) != 17 {
		t.Errorf("%d batches of two jobs", len(batches))
	}
}

// freezesOn is n calls to one node, for another job.
func freezesOn(t *testing.T, node job.NodeID, n int) []conduct.Action {
	t.Helper()
	out := freezes(n, time.Second)
	for i := range out {
		c := callIn(t, out[i])
		c.Node, c.Job = node, 8
		out[i] = c
	}
	return out
}

// TestTreeOverHTTP: a node that nobody listens on and one that hangs without
// taking the message are passed over; what is behind them is reached.
func TestTreeOverHTTP(t *testing.T) {
	f := newForest(12, 2, testLog(t))
	shape, _ := tree.New(tree.View{Nodes: append([]job.NodeID{"n00"}, namesBut(12, "n00")...), Arity: 2}, "n00")
	kids := shape.Children("n00")
	hung, dead := kids[0], kids[1]
	overdue := make(chan time.Time)
	all := nodes{}
	for id, fan := range f.all {
		mux := http.NewServeMux()
		mux.HandleFunc("POST /v1/tree", fan.serve)
		all[id] = mux
	}
	all[dead] = nil
	all[hung] = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var in treeRequest
		if err := readJSON(r, &in); err != nil {
			t.Error(err)
		}
		close(overdue)
		<-r.Context().Done()
	})
	p := peersOf(t, all)
	for _, fan := range f.all {
		fan.link = &httpTree{peers: p, overdue: func(to job.NodeID) <-chan time.Time {
			if to == hung {
				return overdue
			}
			return nil
		}}
	}
	f.phases["n05"] = func(context.Context) (*podapi.PhaseReply, int, error) {
		return &podapi.PhaseReply{Error: "stale"}, http.StatusConflict, nil
	}
	calls := freezes(12, patience)
	for node, got := range outcomes(t, calls, f.all["n00"].call(testContext(t), calls)) {
		var kind conduct.FailureKind
		switch node {
		case hung, dead:
			kind = conduct.Unreachable
		case "n05":
			kind = conduct.Refused
		}
		if (kind == 0) != (got == nil) || got != nil && got.Kind != kind {
			t.Errorf("%s: %+v, want kind %d", node, got, kind)
		}
	}
}

func TestTreeRefusesWhatIsNotForIt(t *testing.T) {
	f := newForest(2, 2, testLog(t))
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/tree", f.all["n01"].serve)
	h := &httpTree{peers: peersOf(t, nodes{"n01": mux})}
	for name, m := range map[string]tree.Message{
		"stranger": {Root: "n00", View: tree.View{Nodes: []job.NodeID{"n00", "n02"}}, Lo: 1, Hi: 2, Kind: treeOps},
		"empty":    {},
	} {
		if r, err := h.send(testContext(t), "n01", treeRequest{Message: m, TimeoutMS: 1000}); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	m := tree.Message{Root: "n00", View: tree.View{Nodes: []job.NodeID{"n00", "n01"}}, Lo: 1, Hi: 2, Kind: "gossip"}
	r, err := h.send(testContext(t), "n01", treeRequest{Message: m, TimeoutMS: patience.Milliseconds()})
	if err != nil || r.Answers["n01"].Error == "" {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestCommonPartsTravelOnce: requests come out as they went in, and what all
// pods are told alike does not multiply.
func TestCommonPartsTravelOnce(t *testing.T) {
	acts := freezes(20, time.Second)
	asks := make([]treeAsk, len(acts))
	for i := range acts {
		c := callIn(t, acts[i])
		r := &c.Request
		r.Lost = []job.PodIndex{3}
		r.Peers = []podapi.Mark{{Rank: job.Rank(i)}}
		for p := range 20 {
			r.Book = append(r.Book, job.PodAddress{Pod: job.PodIndex(p), MAC: "02:00:00:00:00:01"})
			r.Placement = append(r.Placement, job.PodPlacement{Pod: job.PodIndex(p), Ranks: []job.Rank{job.Rank(p)}})
		}
		if i == 7 {
			r.Book = r.Book[1:] // not as the others
		}
		acts[i] = c
		asks[i], _ = askOf(c)
	}
	payload, err := packAsks(asks)
	if err != nil {
		t.Fatal(err)
	}
	m := tree.Message{Root: "n00", View: tree.View{Nodes: append([]job.NodeID{"n00"}, namesBut(20, "n00")...)}, Lo: 5, Hi: 9, Payload: payload}
	if m.Payload, err = prune(m); err != nil {
		t.Fatal(err)
	}
	for i := range acts {
		c := callIn(t, acts[i])
		parts, err := unpackParts(m.Payload, c.Node)
		if err != nil {
			t.Fatal(err)
		}
		if i < 5 || i >= 9 {
			if len(parts) != 0 {
				t.Errorf("%s is outside and has %d parts", c.Node, len(parts))
			}
			continue
		}
		var got podapi.PhaseRequest
		if len(parts) != 1 || parts[0].Ref != c.Ref || parts[0].Job != 7 || parts[0].Kind != treePhase || json.Unmarshal(parts[0].Body, &got) != nil {
			t.Fatalf("%s: %+v", c.Node, parts)
		}
		if d := cmp.Diff(c.Request, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.Node, d)
		}
	}
	if n := bytes.Count(payload, []byte(`"mac"`)); n != 39 {
		t.Errorf("%d addresses, want the common ones and those of the odd pod", n)
	}
}
