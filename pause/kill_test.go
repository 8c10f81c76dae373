package pause

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/job"
)

// TestTracerVictim is the tracer that TestTracerKilled kills: it checkpoints
// the process of the environment for ever; it says "idle" between the rounds,
// "frozen" when a round is captured and "copying" when the program runs again,
// and waits for a line.
func TestTracerVictim(t *testing.T) {
	pid, err := strconv.Atoi(os.Getenv("PAUSE_VICTIM_PID"))
	if err != nil {
		t.Skip("only run by TestTracerKilled")
	}
	pod := New(Config{Job: 1, Backing: Backing(os.Getenv("PAUSE_VICTIM_BACKING")), Log: zerolog.Nop()})
	var x External
	if _, err := fmt.Sscan(os.Getenv("PAUSE_VICTIM_STDOUT"), &x.Dev, &x.Ino); err != nil {
		t.Fatal(err)
	}
	pod.SetRanks([]Rank{{Rank: 0, PID: pid}}, []External{x})
	ctx := t.Context()
	in := bufio.NewReader(os.Stdin)
	wait := func(word string) { // for a line, or for being killed
		fmt.Println(word)
		_, _ = in.ReadString('\n')
	}
	for e := job.Epoch(1); ; e++ {
		wait("idle")
		for _, s := range []func() (*Report, error){
			func() (*Report, error) { return pod.Freeze(ctx, e) },
			func() (*Report, error) { return pod.CaptureSend(ctx, e) },
			func() (*Report, error) { return pod.CaptureRecv(ctx, e) },
		} {
			if _, err := s(); err != nil {
				fmt.Println("error", err)
				return
			}
		}
		wait("frozen")
		if _, err := pod.Resume(ctx, e, nil); err != nil {
			fmt.Println("error", err)
			return
		}
		wait("copying")
	}
}

// TestTracerKilled kills the tracer again and again, between rounds, while the
// program is frozen, and while memory is copied from a fork of it: the program
// runs on, and nothing else does.
func TestTracerKilled(t *testing.T) {
	exe := build(t, "mix")
	for _, b := range []Backing{BackingCopy, BackingFork} {
		t.Run(string(b), func(t *testing.T) { killTracers(t, exe, b) })
	}
}

func killTracers(t *testing.T, exe string, backing Backing) {
	const steps = "2000"
	want := reference(t, exe, steps)
	out := filepath.Join(t.TempDir(), "out")
	p := start(t, exe, out, steps)
	for i := range 9 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestTracerVictim$")
		cmd.Env = append(os.Environ(), "PAUSE_VICTIM_PID="+strconv.Itoa(p.pid()),
			fmt.Sprintf("PAUSE_VICTIM_STDOUT=%d %d", p.ext[0].Dev, p.ext[0].Ino), "PAUSE_VICTIM_BACKING="+string(backing))
		r, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		w, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		rounds := i / 3
		sc := bufio.NewScanner(r)
		for sc.Scan() {
			word := sc.Text()
			if len(word) > 5 && word[:5] == "error" {
				t.Fatalf("tracer: %s", word)
			}
			if word == []string{"idle", "frozen", "copying"}[i%3] {
				if rounds--; rounds < 0 {
					break
				}
			}
			_, _ = fmt.Fprintln(w, "on")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		runsFree(t, p.pid(), "after the tracer was killed")
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			left := copies(t, p)
			if len(left) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("round %d: copies outlive their tracer: %v", i, left)
			}
		}
	}
	p.wait()
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != want {
		t.Fatal("output differs from an undisturbed run")
	}
}
