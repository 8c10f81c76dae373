package pause

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

var update = flag.Bool("update", false, "write the answers into the scripts")

// TestStepScripts plays testdata/step/*.txt: a line is an event, the line after
// it, which begins with ">", the answer.
func TestStepScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/step/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(b))
			if *update {
				if err := os.WriteFile(name, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			} else if got != string(b) {
				t.Errorf("transcript differs:\n%s", got)
			}
		})
	}
}

func play(t *testing.T, script string) string {
	s := State{Phase: Running}
	var out strings.Builder
	for line := range strings.Lines(script) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, ">") {
			continue
		}
		fmt.Fprintln(&out, line)
		if line == "" || line[0] == '#' {
			continue
		}
		var e Event
		if _, err := fmt.Sscanf(line, "%s %d", &e.Op, &e.Epoch); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		next, acts, err := step(s, e)
		if err != nil {
			root := err
			for errors.Unwrap(root) != nil {
				root = errors.Unwrap(root)
			}
			fmt.Fprintf(&out, "> error: %v\n", root)
			continue
		}
		s = next
		words := make([]string, len(acts))
		for i, a := range acts {
			words[i] = string(a)
		}
		if len(words) == 0 {
			words = []string{"-"}
		}
		written := ""
		if s.Written {
			written = " written"
		}
		fmt.Fprintf(&out, "> %s committed=%d draft=%d%s: %s\n", s.Phase, s.Committed, s.Draft, written, strings.Join(words, " "))
	}
	return out.String()
}

// TestStepInvariants throws random events at the state machine.
func TestStepInvariants(t *testing.T) {
	ops := []podapi.Op{
		podapi.OpFreeze, podapi.OpCaptureSend, podapi.OpCaptureRecv, podapi.OpResume, podapi.OpWrite,
		podapi.OpCommit, podapi.OpAbandon, podapi.OpStop, podapi.OpRollback, podapi.OpRelease,
		podapi.OpSuspend, podapi.OpContinue,
	}
	rapid.Check(t, func(t *rapid.T) {
		s := State{Phase: Running}
		frozen := false
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			e := Event{rapid.SampledFrom(ops).Draw(t, "op"), job.Epoch(rapid.IntRange(0, 5).Draw(t, "epoch"))}
			next, acts, err := step(s, e)
			if err != nil {
				if next != s || len(acts) != 0 {
					t.Fatalf("%v: an error changed %+v to %+v", e, s, next)
				}
				continue
			}
			for _, a := range acts {
				switch a {
				case ActFreeze:
					if frozen {
						t.Fatalf("%v in %+v: frozen twice", e, s)
					}
					frozen = true
				case ActThaw, ActRelease:
					if !frozen {
						t.Fatalf("%v in %+v: thawed while running", e, s)
					}
					frozen = false
				case ActRollback, ActCaptureSend, ActCaptureRecv:
					if !frozen {
						t.Fatalf("%v in %+v: %s of running ranks", e, s, a)
					}
				}
			}
			if frozen != (next.Phase != Running) {
				t.Fatalf("%v: frozen is %v in phase %s", e, frozen, next.Phase)
			}
			// From a recovery on, only a release lets ranks go on.
			if s.Phase == Stopped || s.Phase == RolledBack {
				if next.Phase == Running && e.Op != podapi.OpRelease {
					t.Fatalf("%v let a stopped pod run", e)
				}
			}
			if next.Committed < s.Committed {
				t.Fatalf("%v: committed fell from %d to %d", e, s.Committed, next.Committed)
			}
			// Repeating a step changes nothing.
			again, more, err := step(next, e)
			if err == nil && again != next && !slices.Contains([]podapi.Op{podapi.OpStop}, e.Op) {
				t.Fatalf("%v repeated: %+v became %+v, %v", e, next, again, more)
			}
			s = next
		}
	})
}
