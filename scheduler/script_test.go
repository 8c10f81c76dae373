package scheduler

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata") //nolint:gochecknoglobals // a test flag

// TestScripts replays the stories in testdata: every line is a command, every
// answer the full transcript of what follows from it.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) { runScript(t, f) })
	}
}

func runScript(t *testing.T, file string) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var (
		st    *State
		index uint64
		out   strings.Builder
		quiet = false // inside the expected output of a command
	)
	for line := range strings.SplitSeq(string(raw), "\n") {
		switch {
		case strings.HasPrefix(line, "    "):
			continue
		case strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "":
			if !quiet || line != "" {
				out.WriteString(line + "\n")
			}
			quiet = line == ""
			continue
		}
		quiet = false
		out.WriteString(line + "\n")
		words := strings.Fields(line)
		if words[0] == "show" {
			show(&out, st, words[1:])
			continue
		}
		index++
		var acts []Action
		st, acts = Step(st, index, parse(t, words))
		for _, a := range acts {
			printAction(&out, st, a)
		}
		if err := Check(st); err != nil {
			t.Fatalf("%s: after %q: %v\n%s", file, line, err, out.String())
		}
	}
	got := strings.TrimRight(out.String(), "\n") + "\n"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(string(raw), got); d != "" {
		t.Errorf("transcript differs (-want +got), run with -update to accept:\n%s", d)
	}
}

func printAction(out *strings.Builder, st *State, a Action) {
	switch a.Kind {
	case ActRefuse:
		fmt.Fprintf(out, "    refused (%s, exit %d): %s\n", a.Refusal.Code, a.Refusal.Exit, a.Refusal.Text)
		if a.Refusal.Boot != 0 {
			fmt.Fprintf(out, "    lowest boot %d\n", a.Refusal.Boot)
		}
	case ActEvent:
		data, err := json.Marshal(a.Event.Data)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(out, "    event %s", a.Event.Name)
		if a.Job != 0 {
			fmt.Fprintf(out, " job=%v", a.Job)
		}
		if a.Epoch != 0 {
			fmt.Fprintf(out, " epoch=%d", a.Epoch)
		}
		if a.Node != "" {
			fmt.Fprintf(out, " node=%s", a.Node)
		}
		fmt.Fprintf(out, " %s\n", data)
	case ActView:
		fmt.Fprintf(out, "    view %d\n", st.View)
	case ActJob:
		fmt.Fprintf(out, "    job %v changed\n", a.Job)
	case ActDrop:
		fmt.Fprintf(out, "    drop job=%v epoch=%d on %s\n", a.Job, a.Epoch, a.Node)
	}
}

func show(out *strings.Builder, st *State, words []string) {
	if words[0] == "nodes" {
		names := make([]job.NodeID, 0, len(st.Nodes))
		for n := range st.Nodes {
			names = append(names, n)
		}
		sort.Slice(names, func(i, k int) bool { return compareNames(string(names[i]), string(names[k])) < 0 })
		for _, n := range names {
			v := st.Nodes[n]
			fmt.Fprintf(out, "    %s boot=%d %s %s slots=%d\n", v.ID, v.Boot, v.State, v.Role, v.Slots)
		}
		return
	}
	id, err := job.ParseID(words[1])
	if err != nil {
		panic(err)
	}
	j := st.Jobs[id]
	fmt.Fprintf(out, "    %s incarnation=%d last_epoch=%d recoveries=%d protected=%s\n", j.Shown(), j.Incarnation, j.LastEpoch, j.Recoveries, st.Protected(j))
	for _, p := range j.Pods {
		fmt.Fprintf(out, "    pod %d on %q ranks %v %s %s %s built=%d intended=%q\n", p.Index, p.Node, p.Ranks, p.IP, p.MAC, p.Hostname, p.Built, p.Intended)
	}
	for _, e := range j.Epochs {
		fmt.Fprintf(out, "    epoch %d:", e.Epoch)
		for _, im := range e.Images {
			fmt.Fprintf(out, " %d@%v", im.Pod, im.Holders)
		}
		fmt.Fprintln(out)
	}
	if r := j.Recovery; r != nil {
		fmt.Fprintf(out, "    recovery to %d waiting=%t tries=%d lost=%v old=%v\n", r.Epoch, r.Waiting, r.Tries, r.Lost, r.Old)
	}
	if j.ExitCode != nil {
		fmt.Fprintf(out, "    exit %d keep=%t retired=%t: %s\n", *j.ExitCode, j.KeepImages, j.Retired, j.Reason)
	}
}

// args are the k=v words of a script line.
type args map[string]string

func (a args) num(key string, def int) int {
	v, ok := a[key]
	if !ok {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		panic(err)
	}
	return n
}

func (a args) str(key, def string) string {
	if v, ok := a[key]; ok {
		return v
	}
	return def
}

func (a args) list(key string) []string {
	if a[key] == "" {
		return nil
	}
	return strings.Split(a[key], ",")
}

func (a args) pods(key string) (out []job.PodIndex) {
	for _, w := range a.list(key) {
		n, err := strconv.Atoi(w)
		if err != nil {
			panic(err)
		}
		out = append(out, job.PodIndex(n))
	}
	return out
}

func testSpec(a args) job.Spec {
	s := job.Spec{
		Name: a.str("name", "app"), Argv: []string{"/bin/app"}, Dir: "/tmp",
		Ranks: a.num("n", 4), PPN: a.num("ppn", 0), MapBy: a.str("map", job.MapByBlock), Spares: a.num("spares", 0),
		CkptInterval: time.Duration(a.num("ckpt", 30)) * time.Second, OnFailure: a.str("on-failure", job.OnFailurePause),
		NoSpare: a.str("no-spare", job.NoSpareWait), Replicas: a.num("k", 2), Files: "truncate", Output: job.OutputLive,
	}
	for _, h := range a.list("hosts") {
		h, spare := strings.CutSuffix(h, "!")
		name, slots, _ := strings.Cut(h, ":")
		n, _ := strconv.Atoi(slots)
		s.Hosts = append(s.Hosts, job.HostSlots{Node: job.NodeID(name), Slots: n, Spare: spare})
	}
	return s
}

func parse(t *testing.T, words []string) Command {
	a := args{}
	var pos []string
	for _, w := range words[1:] {
		if k, v, ok := strings.Cut(w, "="); ok {
			a[k] = v
		} else {
			pos = append(pos, w)
		}
	}
	id := job.ID(a.num("job", 1))
	inc := job.Incarnation(a.num("inc", 1))
	epoch := job.Epoch(a.num("epoch", 1))
	switch words[0] {
	case "join":
		return Command{Join: &Join{
			Node: job.NodeID(pos[0]), Addr: "10.0.0." + strings.TrimPrefix(pos[0], "n"), Boot: job.Boot(a.num("boot", 1)),
			Session: uint64(a.num("session", 1)), Role: Role(a.str("role", "compute")), Slots: a.num("slots", 2),
		}}
	case "leave":
		return Command{Leave: &Leave{Node: job.NodeID(pos[0])}}
	case "dead":
		c := &DeclareDead{DetectMS: 1000, Source: a.str("source", "gossip")}
		for _, p := range pos {
			n, b, _ := strings.Cut(p, "#")
			boot, _ := strconv.Atoi(b)
			c.Nodes = append(c.Nodes, NodeRef{Node: job.NodeID(n), Boot: job.Boot(max(boot, 1))})
		}
		return Command{DeclareDead: c}
	case "submit":
		return Command{Submit: &Submit{Key: a.str("key", ""), Spec: testSpec(a)}}
	case "restart":
		c := &Restart{Job: Job{ID: id}, Epoch: job.Epoch(a.num("epoch", 0))}
		if len(pos) > 0 { // what the stores were found to have
			c.Job.Epochs = adopted(id, epoch, pos).Epochs
		}
		return Command{Restart: c}
	case "adopt":
		return Command{Restart: &Restart{Job: adopted(id, epoch, pos)}}
	case "started":
		return Command{Started: &Started{Job: id, Incarnation: inc}}
	case "suspend", "resume":
		return Command{Suspend: &Suspend{Job: id, On: words[0] == "suspend"}}
	case "end":
		return Command{End: &End{Job: id, Code: a.num("code", 0), Reason: a.str("reason", ""), Keep: slices.Contains(pos, "keep")}}
	case "retire":
		return Command{Retire: &Retire{Job: id}}
	case "begin":
		return Command{BeginEpoch: &BeginEpoch{Job: id, Incarnation: inc, Term: uint64(a.num("term", 1)), Attempt: uint64(a.num("attempt", 1))}}
	case "commit": // commit epoch=1 n1,n5 n2,n5
		c := &Commit{Job: id, Incarnation: inc, Epoch: epoch, StallMS: 12, SetDigest: "d"}
		for i, p := range pos {
			im := PodImage{Pod: job.PodIndex(i), Bytes: 100, Written: podapi.Written{Digest: "d" + strconv.Itoa(i)}}
			for _, h := range strings.Split(p, ",") {
				im.Holders = append(im.Holders, job.NodeID(h))
			}
			c.Images = append(c.Images, im)
		}
		return Command{Commit: c}
	case "abandon":
		return Command{Abandon: &Abandon{Job: id, Epoch: epoch, Reason: a.str("reason", "test")}}
	case "collect":
		return Command{Collect: &Collect{Job: id, Before: job.Epoch(a.num("before", 0))}}
	case "replicated":
		return Command{Replicated: &Replicated{Job: id, Epoch: epoch, Pod: job.PodIndex(a.num("pod", 0)), Node: NodeRef{Node: job.NodeID(pos[0]), Boot: job.Boot(a.num("boot", 1))}}}
	case "damaged":
		c := &Damaged{Job: id, Epoch: epoch, Pod: job.PodIndex(a.num("pod", 0))}
		for _, p := range pos {
			c.Nodes = append(c.Nodes, job.NodeID(p))
		}
		return Command{Damaged: c}
	case "recover":
		return Command{Recover: &Recover{
			Job: id, Incarnation: inc, Pods: a.pods("pods"), Move: a.pods("move"),
			Cause: a.str("cause", "test"), Why: Why(a.str("why", "killed")),
		}}
	case "recovered":
		return Command{Recovered: &Recovered{Job: id, Incarnation: inc, MS: map[string]float64{"total": 80}}}
	}
	t.Fatalf("unknown command %q", words)
	return Command{}
}

// adopted is what the COMMITTED records of images say of a job: one pod of two
// ranks for each word, which lists the holders.
func adopted(id job.ID, epoch job.Epoch, pods []string) Job {
	j := Job{ID: id, Incarnation: 4, LastEpoch: epoch, Spec: testSpec(args{"n": strconv.Itoa(2 * len(pods))})}
	e := Epoch{Epoch: epoch, SetDigest: "d"}
	for i, p := range pods {
		j.Pods = append(j.Pods, Pod{Index: job.PodIndex(i), Ranks: []job.Rank{job.Rank(2 * i), job.Rank(2*i + 1)}})
		im := PodImage{Pod: job.PodIndex(i)}
		for _, h := range strings.Split(p, ",") {
			im.Holders = append(im.Holders, job.NodeID(h))
		}
		e.Images = append(e.Images, im)
	}
	j.Epochs = []Epoch{e}
	return j
}
