package conduct

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/job"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata") //nolint:gochecknoglobals // a test flag

// TestStories replays the stories in testdata in a world without chance: the
// lines before "----" say what happens when, the rest is the transcript of
// everything that the leader and the log do.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			script, _, _ := strings.Cut(string(raw), "----\n")
			got := script + "----\n" + tell(t, script)
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(raw), got); d != "" {
				t.Errorf("transcript differs (-want +got), run with -update to accept:\n%s", d)
			}
		})
	}
}

// tell plays a script:
//
//	nodes COMPUTE SPARES
//	job ranks=8 ckpt=3s work=8s k=2 no-spare=wait ...
//	at TIME FAULT NODE | at TIME VERB
//	when N TEXT FAULT NODE     at the N-th transcript line that contains TEXT (underscores are blanks)
//	until TIME
func tell(t *testing.T, script string) string {
	var trace strings.Builder
	var w *world
	until := time.Minute
	for line := range strings.SplitSeq(script, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		switch f[0] {
		case "nodes":
			w = newWorld(1, number(t, f[1]), number(t, f[2]))
			w.fixed, w.trace = true, &trace
		case "job":
			w.start(storySpec(t, w, f[1:]))
		case "at":
			at := duration(t, f[1])
			w.after(at, func() { w.strike(t, f[2], f[3:]) })
		case "when":
			w.when(number(t, f[1]), strings.ReplaceAll(f[2], "_", " "), func() { w.strike(t, f[3], f[4:]) })
		case "until":
			until = duration(t, f[1])
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
	w.run(until, w.ended)
	if w.bad != nil {
		t.Errorf("%v", w.bad)
	}
	return trace.String()
}

// when does something once the transcript has said text n times.
func (w *world) when(n int, text string, do func()) {
	seen := 0
	before := w.onLine
	w.onLine = func(line string) {
		if before != nil {
			before(line)
		}
		if strings.Contains(line, text) {
			if seen++; seen == n {
				w.after(0, do)
			}
		}
	}
}

func (w *world) strike(t *testing.T, what string, args []string) {
	verbs := map[string]VerbKind{"checkpoint": VerbCheckpoint, "suspend": VerbSuspend, "resume": VerbResume, "vacate": VerbVacate}
	if v, ok := verbs[what]; ok {
		w.logf("USER %s", what)
		w.user(Verb{Kind: v})
		return
	}
	id := job.NodeID(args[0])
	switch what {
	case "crash":
		w.crash(id, false)
	case "cut":
		w.crash(id, true)
	case "revive":
		w.revive(id)
	case "kill-rank":
		w.kill(id, "rank")
	case "segv":
		w.kill(id, "segv")
	case "kill-pod":
		w.kill(id, "pod")
	case "restart-lamd":
		w.restartLamd(id)
	case "false-alarm":
		w.falseAlarm(id)
	default:
		t.Fatalf("unknown fault %q", what)
	}
}

func storySpec(t *testing.T, w *world, words []string) job.Spec {
	s := simSpec(8, 3*time.Second)
	for _, word := range words {
		k, v, _ := strings.Cut(word, "=")
		switch k {
		case "ranks":
			s.Ranks = number(t, v)
		case "ckpt":
			s.CkptInterval = duration(t, v)
		case "work":
			w.work = duration(t, v)
		case "k":
			s.Replicas = number(t, v)
		case "no-spare":
			s.NoSpare = v
		case "on-failure":
			s.OnFailure = v
		default:
			t.Fatalf("unknown option %q", word)
		}
	}
	return s
}

func number(t *testing.T, s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func duration(t *testing.T, s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(fmt.Errorf("time: %w", err))
	}
	return d
}
