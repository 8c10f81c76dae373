package scheduler

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/lampause/lampause/job"
)

// play applies commands one after the other.
type play struct {
	t    *testing.T
	st   *State
	acts []Action // of the last one
}

// newPlay has compute nodes n1 to n3 with two slots and the spare n4.
func newPlay(t *testing.T) *play {
	p := &play{t: t}
	for i := 1; i <= 4; i++ {
		j := &Join{Node: nodeName(i), Addr: "10.0.0.1", Boot: 1, Session: 1, Slots: 2}
		if i == 4 {
			j.Role = Spare
		}
		p.do(Command{Join: j})
	}
	return p
}

func nodeName(i int) job.NodeID { return job.NodeID(fmt.Sprintf("n%d", i)) }

// try applies a command and returns its refusal.
func (p *play) try(c Command) *Refusal {
	index := uint64(1)
	if p.st != nil {
		index = p.st.Index + 1
	}
	c.AtMS = int64(index) * 10
	next, acts := Step(p.st, index, c)
	if next.Index != index {
		p.t.Errorf("index %d after %d", next.Index, index)
	}
	was := p.st
	p.st, p.acts = next, acts
	if len(acts) == 1 && acts[0].Refusal != nil {
		a, b := *next, State{}
		if was != nil {
			b = *was
		}
		a.Index, b.Index = 0, 0
		if one, two := asJSON(p.t, a), asJSON(p.t, b); was != nil && one != two {
			p.t.Errorf("a refused command changed the state:\n%s\n%s", two, one)
		}
		return acts[0].Refusal
	}
	return nil
}

func asJSON(t *testing.T, v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func (p *play) do(cs ...Command) {
	p.t.Helper()
	for _, c := range cs {
		if r := p.try(c); r != nil {
			p.t.Fatalf("%s: %s", asJSON(p.t, c), r.Text)
		}
	}
}

// events returns the names of what the last command made happen.
func (p *play) events() []string {
	var out []string
	for _, a := range p.acts {
		if a.Event != nil {
			out = append(out, a.Event.Name)
		}
	}
	return out
}

func (p *play) changed(id job.ID) bool {
	return slices.ContainsFunc(p.acts, func(a Action) bool { return a.Kind == ActJob && a.Job == id })
}

// run submits a job of 4 ranks on n1 and n2, which runs.
func (p *play) run(change func(*job.Spec)) *Job {
	p.t.Helper()
	s := testSpec(args{"n": "4"})
	if change != nil {
		change(&s)
	}
	p.do(Command{Submit: &Submit{Spec: s}})
	id := p.st.LastJob
	p.do(Command{Started: &Started{Job: id, Incarnation: 1}})
	return p.st.Jobs[id]
}

func begin(id job.ID, inc job.Incarnation, attempt uint64) Command {
	return Command{BeginEpoch: &BeginEpoch{Job: id, Incarnation: inc, Term: 1, Attempt: attempt}}
}

// committed returns a Commit with images on the pods' nodes and others.
func (p *play) commitOf(id job.ID, others ...job.NodeID) Commit {
	j := p.st.Jobs[id]
	c := Commit{Job: id, Incarnation: j.Incarnation, Epoch: j.LastEpoch}
	for i := range j.Pods {
		c.Images = append(c.Images, PodImage{Pod: job.PodIndex(i), Holders: append([]job.NodeID{j.Pods[i].Node}, others...)})
	}
	return c
}

// checkpoint commits an epoch.
func (p *play) checkpoint(id job.ID, others ...job.NodeID) {
	p.t.Helper()
	p.do(begin(id, p.st.Jobs[id].Incarnation, 100+uint64(p.st.Jobs[id].LastEpoch)))
	c := p.commitOf(id, others...)
	p.do(Command{Commit: &c})
}

func ref(i int, boot job.Boot) NodeRef { return NodeRef{Node: nodeName(i), Boot: boot} }

func dead(refs ...NodeRef) Command {
	return Command{DeclareDead: &DeclareDead{Nodes: refs, DetectMS: 5, Source: "test"}}
}

// TestRefusals: what does not fit is refused with the right class and changes
// nothing, whatever it says.
func TestRefusals(t *testing.T) {
	recoverPod := func(pods ...job.PodIndex) *Recover {
		return &Recover{Job: 1, Incarnation: 1, Pods: pods, Why: WhyKilled}
	}
	replicated := func(e job.Epoch, pod job.PodIndex, n NodeRef) Command {
		return Command{Replicated: &Replicated{Job: 1, Epoch: e, Pod: pod, Node: n}}
	}
	adopt := func(change func(*Job)) Command {
		j := Job{ID: 9, Spec: testSpec(args{"n": "2"}), Pods: []Pod{{Ranks: []job.Rank{0, 1}}}, Epochs: []Epoch{{Epoch: 3, Images: []PodImage{{Holders: []job.NodeID{"n1"}}}}}}
		change(&j)
		return Command{Restart: &Restart{Job: j}}
	}
	with := func(change func(*Commit)) func(*play) Command {
		return func(p *play) Command {
			p.do(begin(1, 1, 7))
			c := p.commitOf(1)
			change(&c)
			return Command{Commit: &c}
		}
	}
	is := func(c Command) func(*play) Command { return func(*play) Command { return c } }
	none := begin(7, 1, 1)
	for name, c := range map[string]struct {
		cmd  func(*play) Command
		want RefusalCode
	}{
		"nothing":                {is(Command{}), BadCommand},
		"join: name":             {is(Command{Join: &Join{Node: "-x", Boot: 1}}), BadCommand},
		"join: boot":             {is(Command{Join: &Join{Node: "n9"}}), BadCommand},
		"join: slots":            {is(Command{Join: &Join{Node: "n9", Boot: 1, Slots: -1}}), BadCommand},
		"join: old boot":         {func(p *play) Command { p.do(dead(ref(3, 1))); return Command{Join: &Join{Node: "n3", Boot: 1}} }, StaleBoot},
		"leave: stranger":        {is(Command{Leave: &Leave{Node: "n9"}}), NoSuch},
		"leave: with ranks":      {is(Command{Leave: &Leave{Node: "n1"}}), Busy},
		"leave: last image":      {func(p *play) Command { lastImageOn4(p); return Command{Leave: &Leave{Node: "n4"}} }, Busy},
		"dead: strangers":        {is(dead(ref(9, 1), ref(1, 7))), Stale},
		"unknown job":            {is(none), NoSuch},
		"other incarnation":      {is(begin(1, 2, 1)), Stale},
		"ended job":              {func(p *play) Command { p.do(Command{End: &End{Job: 1}}); return begin(1, 1, 1) }, Busy},
		"suspend: unknown":       {is(Command{Suspend: &Suspend{Job: 7, On: true}}), NoSuch},
		"end: nothing to keep":   {is(Command{End: &End{Job: 1, Keep: true}}), Busy},
		"retire: runs":           {is(Command{Retire: &Retire{Job: 1}}), Busy},
		"retire: unknown":        {is(Command{Retire: &Retire{Job: 7}}), NoSuch},
		"begin: one is open":     {func(p *play) Command { p.do(begin(1, 1, 1)); return begin(1, 1, 2) }, Busy},
		"begin: of another term": {func(p *play) Command { p.do(begin(1, 1, 1)); c := begin(1, 1, 1); c.BeginEpoch.Term = 2; return c }, Busy},
		"begin: recovering":      {func(p *play) Command { p.checkpoint(1, "n3"); p.do(dead(ref(2, 1))); return begin(1, 2, 9) }, Busy},
		"commit: not open":       {func(p *play) Command { c := p.commitOf(1); c.Epoch = 1; return Command{Commit: &c} }, Stale},
		"commit: another":        {with(func(c *Commit) { c.Epoch = 9 }), Stale},
		"commit: recovering": {func(p *play) Command {
			p.checkpoint(1, "n3")
			p.do(begin(1, 1, 7))
			c := p.commitOf(1)
			p.do(dead(ref(2, 1)))
			c.Incarnation = 2
			return Command{Commit: &c}
		}, Busy},
		"commit: too few images": {with(func(c *Commit) { c.Images = c.Images[:1] }), BadCommand},
		"commit: too many":       {with(func(c *Commit) { c.Images = append(c.Images, PodImage{Pod: 2}) }), BadCommand},
		"commit: order":          {with(func(c *Commit) { c.Images[0].Pod, c.Images[1].Pod = 1, 0 }), BadCommand},
		"commit: nobody holds":   {with(func(c *Commit) { c.Images[1].Holders = nil }), Stale},
		"commit: strangers hold": {with(func(c *Commit) { c.Images[1].Holders = []job.NodeID{"n9"} }), Stale},
		"abandon: unknown":       {is(Command{Abandon: &Abandon{Job: 7, Epoch: 1}}), NoSuch},
		"abandon: none":          {is(Command{Abandon: &Abandon{Job: 1, Epoch: 1}}), Stale},
		"abandon: another":       {func(p *play) Command { p.do(begin(1, 1, 1)); return Command{Abandon: &Abandon{Job: 1, Epoch: 9}} }, Stale},
		"collect: unknown":       {is(Command{Collect: &Collect{Job: 7, Before: 1}}), NoSuch},
		"collect: none":          {is(Command{Collect: &Collect{Job: 1, Before: 1}}), Stale},
		"collect: the newest":    {func(p *play) Command { p.checkpoint(1); return Command{Collect: &Collect{Job: 1, Before: 2}} }, Stale},
		"replicated: unknown":    {is(Command{Replicated: &Replicated{Job: 7, Epoch: 1}}), NoSuch},
		"replicated: epoch":      {func(p *play) Command { p.checkpoint(1); return replicated(9, 0, ref(3, 1)) }, NoSuch},
		"replicated: pod":        {func(p *play) Command { p.checkpoint(1); return replicated(1, 2, ref(3, 1)) }, NoSuch},
		"replicated: negative":   {func(p *play) Command { p.checkpoint(1); return replicated(1, -1, ref(3, 1)) }, NoSuch},
		"replicated: dead":       {func(p *play) Command { p.checkpoint(1); return replicated(1, 0, ref(3, 2)) }, Stale},
		"recover: unknown":       {is(Command{Recover: &Recover{Job: 7}}), NoSuch},
		"recover: no epoch":      {is(Command{Recover: recoverPod(0)}), Busy},
		"recover: pod":           {func(p *play) Command { p.checkpoint(1); return Command{Recover: recoverPod(2)} }, BadCommand},
		"recover: negative":      {func(p *play) Command { p.checkpoint(1); return Command{Recover: recoverPod(-1)} }, BadCommand},
		"recover: nothing":       {func(p *play) Command { p.checkpoint(1); return Command{Recover: recoverPod()} }, Stale},
		"recovered: runs":        {is(Command{Recovered: &Recovered{Job: 1, Incarnation: 1}}), Busy},
		"restart: runs":          {is(Command{Restart: &Restart{Job: Job{ID: 1}}}), Busy},
		"restart: not away": {func(p *play) Command {
			p.checkpoint(1)
			p.do(Command{End: &End{Job: 1, Keep: true}})
			return Command{Restart: &Restart{Job: Job{ID: 1}}}
		}, Busy},
		"restart: unknown":  {is(Command{Restart: &Restart{Job: Job{ID: 7}}}), NoSuch},
		"restart: epoch":    {func(p *play) Command { away(p); return Command{Restart: &Restart{Job: Job{ID: 1}, Epoch: 9}} }, NoSuch},
		"adopt: id":         {is(adopt(func(j *Job) { j.ID = 0 })), NoSuch},
		"adopt: pods":       {is(adopt(func(j *Job) { j.Pods = nil })), NoSuch},
		"adopt: epochs":     {is(adopt(func(j *Job) { j.Epochs = nil })), NoSuch},
		"adopt: spec":       {is(adopt(func(j *Job) { j.Spec.Ranks = 0 })), BadCommand},
		"adopt: images":     {is(adopt(func(j *Job) { j.Epochs[0].Images = append(j.Epochs[0].Images, PodImage{}) })), BadCommand},
		"adopt: holders":    {is(adopt(func(j *Job) { j.Epochs[0].Images[0].Holders = []job.NodeID{"n9"} })), NoSuch},
		"submit: not a job": {is(Command{Submit: &Submit{}}), BadCommand},
		"submit: spares":    {is(Command{Submit: &Submit{Spec: func() job.Spec { s := testSpec(args{"n": "1"}); s.Spares = 2; return s }()}}), NoRoom},
		"submit: pause of two": {func(p *play) Command {
			p.do(Command{End: &End{Job: 1}}, dead(ref(1, 1), ref(4, 1)))
			return Command{Submit: &Submit{Spec: testSpec(args{"n": "1"})}}
		}, NoRoom},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlay(t)
			p.run(nil)
			cmd := c.cmd(p)
			r := p.try(cmd)
			if r == nil || r.Code != c.want || r.Text == "" {
				t.Errorf("%+v", r)
			}
			if r != nil && r.Code == StaleBoot && r.Boot != 2 {
				t.Errorf("the lowest boot is %d", r.Boot)
			}
		})
	}
}

// lastImageOn4 leaves the only image of a pod on the spare n4.
func lastImageOn4(p *play) {
	p.do(begin(1, 1, 7))
	c := p.commitOf(1)
	c.Images[0].Holders = []job.NodeID{"n4"}
	p.do(Command{Commit: &c})
}

// away ends job 1 with its images kept.
func away(p *play) {
	p.checkpoint(1, "n3")
	p.do(Command{End: &End{Job: 1, Keep: true, Code: 75}}, Command{Retire: &Retire{Job: 1}})
}

// TestCommandsTwice: repeating a command changes nothing more and says nothing
// new.
func TestCommandsTwice(t *testing.T) {
	p := newPlay(t)
	p.run(nil)
	for name, c := range map[string]Command{
		"1 started": {Started: &Started{Job: 1, Incarnation: 1}},
		"2 suspend": {Suspend: &Suspend{Job: 1, On: true}},
		"3 resume":  {Suspend: &Suspend{Job: 1}},
		"4 join":    {Join: &Join{Node: "n3", Addr: "10.0.0.1", Boot: 1, Session: 1, Slots: 2}},
		"5 begin":   begin(1, 1, 3),
		"9 note":    {},
	} {
		if c == (Command{}) {
			continue
		}
		p.try(c)
		was := p.st
		if r := p.try(c); r != nil || len(p.events()) != 0 {
			t.Errorf("%s: %+v, %v", name, r, p.events())
		}
		if p.st.LastSeq != was.LastSeq || p.st.View != was.View || asJSON(t, p.st.Jobs) != asJSON(t, was.Jobs) {
			t.Errorf("%s changed something", name)
		}
	}
	c := p.commitOf(1, "n3", "n3", "n9")
	p.do(Command{Commit: &c})
	if e := p.st.Jobs[1].Newest(); !slices.Equal(e.Images[0].Holders, []job.NodeID{"n1", "n3"}) || e.Index != p.st.Index || e.AtMS != int64(p.st.Index)*10 {
		t.Errorf("%+v", e)
	}
	was := asJSON(t, p.st.Jobs)
	p.do(Command{Commit: &c})
	again := Command{Replicated: &Replicated{Job: 1, Epoch: 1, Pod: 0, Node: ref(3, 1)}}
	p.do(again)
	if asJSON(t, p.st.Jobs) != was || len(p.events()) > 0 {
		t.Error("a repeated commit or copy changed the job")
	}
}

// TestSuspendIsRecorded and told.
func TestSuspendIsRecorded(t *testing.T) {
	p := newPlay(t)
	p.run(nil)
	for _, on := range []bool{true, false} {
		p.do(Command{Suspend: &Suspend{Job: 1, On: on}})
		want := map[bool]string{true: "job.suspended", false: "job.resumed"}[on]
		if j := p.st.Jobs[1]; j.Suspended != on || !slices.Equal(p.events(), []string{want}) || !p.changed(1) {
			t.Errorf("%t: %+v, %v", on, j, p.events())
		}
	}
}

// TestEventsAreNumbered and the newest kept.
func TestEventsAreNumbered(t *testing.T) {
	p := newPlay(t)
	first := p.st.LastSeq
	for i := range maxEvents + 10 {
		p.do(Command{Note: &Note{Event: Event{Name: fmt.Sprint(i), Seq: 9, AtMS: 9}}})
	}
	ev := p.st.Events
	if len(ev) != maxEvents || p.st.LastSeq != first+maxEvents+10 {
		t.Fatalf("%d events, last %d", len(ev), p.st.LastSeq)
	}
	for i, e := range ev {
		if want := p.st.LastSeq - uint64(maxEvents-1-i); e.Seq != want || e.AtMS == 9 || e.Name != fmt.Sprint(i+10) {
			t.Fatalf("event %d: %+v", i, e)
		}
	}
}

// TestJoins: what a node may say of itself at which time.
func TestJoins(t *testing.T) {
	p := newPlay(t)
	p.run(nil)
	p.checkpoint(1, "n4")
	join := func(n int, boot job.Boot, session uint64) Command {
		return Command{Join: &Join{Node: nodeName(n), Addr: "10.0.0.7", Boot: boot, Session: session, Slots: 5, LastJob: 30}}
	}
	view := p.st.View
	p.do(join(3, 1, 2)) // lamd started again
	if n := p.st.Nodes["n3"]; !slices.Equal(p.events(), []string{"node.session"}) || p.st.View != view || n.Slots != 5 || n.Addr != "10.0.0.7" || n.Session != 2 || n.Role != Compute {
		t.Errorf("%v %+v", p.events(), n)
	}
	if p.st.LastJob != 30 {
		t.Errorf("newest job number %d", p.st.LastJob)
	}
	p.do(join(4, 1, 1))
	if n := p.st.Nodes["n4"]; n.Role != Spare || len(p.events()) != 0 {
		t.Errorf("a spare that joins again: %v %+v", p.events(), n)
	}
	p.do(join(2, 2, 1)) // the machine did: its pods are lost
	if j := p.st.Jobs[1]; j.State != job.Recovering || j.Pods[1].Node == "n2" && j.Pods[1].Boot != 2 || p.st.View <= view || !slices.Contains(p.events(), "node.dead") || !slices.Contains(p.events(), "node.joined") {
		t.Errorf("%v %+v", p.events(), j)
	}
	if n := p.st.Nodes["n2"]; n.Boot != 2 || n.State != Alive {
		t.Errorf("%+v", n)
	}
	p.do(dead(ref(3, 1)), join(3, 2, 1))
	if !slices.Equal(p.events(), []string{"node.joined"}) || p.st.Nodes["n3"].State != Alive {
		t.Errorf("%v", p.events())
	}
	p.do(Command{Join: &Join{Node: "n9", Addr: "10.0.0.9", Boot: 1, Slots: 1}})
	if n := p.st.Nodes["n9"]; n.Role != Compute {
		t.Errorf("%+v", n)
	}
}

// TestLeaving takes a node out of everything.
func TestLeaving(t *testing.T) {
	p := newPlay(t)
	p.run(nil)
	p.checkpoint(1, "n3", "n4")
	p.do(Command{Leave: &Leave{Node: "n3"}})
	for _, im := range p.st.Jobs[1].Newest().Images {
		if slices.Contains(im.Holders, "n3") || len(im.Holders) != 2 {
			t.Errorf("%+v", im)
		}
	}
	view := p.st.View
	if r := p.try(Command{Leave: &Leave{Node: "n3"}}); r != nil || p.st.View != view || len(p.events()) > 0 {
		t.Errorf("again: %+v %v", r, p.events())
	}
}

// TestDeadAmongOthers: lives that are over already are passed over.
func TestDeadAmongOthers(t *testing.T) {
	p := newPlay(t)
	p.do(dead(ref(1, 1)), dead(ref(1, 1), ref(2, 5), ref(3, 1)))
	if n := p.st.Nodes; n["n1"].State != Dead || n["n2"].State != Alive || n["n3"].State != Dead || !slices.Equal(p.events(), []string{"node.dead"}) {
		t.Errorf("%+v %v", n, p.events())
	}
}

// TestEndedJobsAreForgotten, the oldest first; those with images are kept.
func TestEndedJobsAreForgotten(t *testing.T) {
	p := newPlay(t)
	p.run(nil)
	away(p)
	end := func(key string) {
		p.do(Command{Submit: &Submit{Key: key, Spec: testSpec(args{"n": "1"})}})
		id := p.st.LastJob
		p.do(Command{End: &End{Job: id}})
		if len(p.st.Jobs) > maxEnded+2 {
			t.Fatalf("%d jobs", len(p.st.Jobs))
		}
		p.do(Command{Retire: &Retire{Job: id}}, Command{Retire: &Retire{Job: id}})
	}
	for i := range maxEnded + 3 {
		end(fmt.Sprint("k", i))
	}
	ids := p.st.JobIDs()
	if len(ids) != maxEnded+1 || ids[0] != 1 || ids[1] != 5 || len(p.st.Keys) != maxEnded {
		t.Errorf("%d jobs from %v, %d keys", len(ids), ids[:2], len(p.st.Keys))
	}
	p.do(Command{Submit: &Submit{Key: "k9", Spec: testSpec(args{"n": "1"})}})
	if p.st.LastJob != job.ID(maxEnded+4) || !p.changed(11) {
		t.Errorf("a repeated submission: newest job %v", p.st.LastJob)
	}
	p.do(Command{Submit: &Submit{Spec: testSpec(args{"n": "1"})}}, Command{Submit: &Submit{Spec: testSpec(args{"n": "1"})}})
	if p.st.LastJob != job.ID(maxEnded+6) {
		t.Errorf("two submissions without a key are one: newest job %v", p.st.LastJob)
	}
}
