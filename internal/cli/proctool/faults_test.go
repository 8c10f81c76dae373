package proctool

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/internal/progtest"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/migrate"
	"github.com/lampause/lampause/pause"
)

// faulty are the fixtures whose state takes calls that no other test makes
// fail.
func faulty() []string { return []string{"locks", "sessions", "sysv"} }

// TestCheckpointFaults makes calls of a checkpoint fail, one at a time; the
// program must not notice.
func TestCheckpointFaults(t *testing.T) {
	for _, name := range faulty() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			l := w.start("run", build(t, name))
			w.until("step 0 ")
			f := &progtest.Fault{}
			pod := pause.New(pause.Config{Job: theJob, Node: "local", Incarnation: 1, Sys: kernel.New(f.Hook), Log: zerolog.Nop()})
			defer func() { _ = pod.Close() }()
			rounds := 0
			for n := 1; ; n += 1 + n/20 {
				rounds++
				epoch := job.Epoch(rounds)
				f.Arm(n)
				err := capture(t.Context(), pod, &Checkpoint{PID: l.pid, Epoch: epoch}, nil)
				hit := f.Arm(0)
				if aerr := pod.Abandon(t.Context(), epoch); aerr != nil {
					t.Fatalf("call %d (%s): abandon: %v", n, hit, aerr)
				}
				if st, serr := proc.ReadStatus(l.pid); serr != nil || st.TracerPid != 0 {
					t.Fatalf("call %d (%s): %+v %v", n, hit, st, serr)
				}
				if hit == "" {
					if err != nil {
						t.Fatalf("undisturbed round: %v", err)
					}
					break
				}
			}
			t.Logf("%d rounds", rounds)
			w.open()
			l.wantEnd(0)
		})
	}
}

// TestRestartFaults makes calls of a restart fail, one at a time: nothing is
// left of it, and the next attempt in the same namespaces succeeds.
func TestRestartFaults(t *testing.T) {
	for _, name := range faulty() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.file = true
			l := w.start("run", build(t, name))
			w.until("step 4 ")
			var c Checkpoint
			w.lam(&c, "checkpoint", "--kill", "--pid", pidArg(l), "--out", "ckpt")
			l.wantEnd(128 + int(unix.SIGKILL))
			w.open()
			restartFaults(t, w)
			plain := newWorld(t)
			plain.open()
			plain.start("run", build(t, name)).wantEnd(0)
			if got, want := w.text(), plain.text(); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

func restartFaults(t *testing.T, w *world) {
	ctx := t.Context()
	n, err := startNamespace(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	f, before := &progtest.Fault{}, ""
	for k, tries := 1, 0; ; k, tries = k+1+k/10, tries+1 {
		img, err := openImage(filepath.Join(w.dir, "ckpt"))
		if err != nil {
			t.Fatal(err)
		}
		seed, done, err := startSeed(ctx, n, img.Manifest().LastPID()+1)
		if err != nil {
			t.Fatal(err)
		}
		f.Arm(k)
		built, err := migrate.Restore(ctx, migrate.Config{
			Sys: kernel.New(f.Hook), Log: zerolog.Nop(), Seeds: []migrate.Seed{seed}, Sources: outside{}, Workers: 2,
		}, img)
		hit := f.Arm(0)
		if cerr := errors.Join(img.Close(), done()); cerr != nil {
			t.Fatal(cerr)
		}
		if err == nil && hit != "" { // it was tried again
			if err := built.Kill(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err == nil {
			root := img.Manifest().Ranks[0]
			if err := built.Release(ctx); err != nil {
				t.Fatal(err)
			}
			ws, err := n.Wait(ctx, root)
			for range tries { // those of the attempts that were killed come first
				if err == nil && ws.Signal() == unix.SIGKILL {
					ws, err = n.Wait(ctx, root)
				}
			}
			if err != nil || ws != 0 {
				t.Fatalf("status %#x (%v)\n%s", uint32(ws), err, w.text())
			}
			t.Logf("%d attempts failed", tries)
			return
		}
		if hit == "" {
			t.Fatalf("undisturbed attempt, after %s: %v", before, err)
		}
		before = hit + ": " + err.Error()
		if left := leftOver(n.PID(), seed.PID); left != "" {
			t.Fatalf("call %d (%s): %s is left: %v", k, hit, left, err)
		}
	}
}

// leftOver names a child of init that is neither the seed nor about to end.
func leftOver(init, seed int) (left string) {
	for range 2000 {
		left = ""
		kids, err := proc.Children(init)
		if err != nil {
			return err.Error()
		}
		for _, kid := range kids {
			exe, _ := os.Readlink("/proc/" + strconv.Itoa(kid) + "/exe")
			if st, err := proc.ReadStat(kid); kid != seed && err == nil && st.State != 'Z' && exe != "" {
				left = exe
			}
		}
		if left == "" {
			return ""
		}
		time.Sleep(time.Millisecond)
	}
	return left
}
