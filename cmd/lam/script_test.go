package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// otherUID is the ordinary user that the scripts are run as when the tests
// have root.
const otherUID = "1500"

// TestScripts runs testdata/*.txt against the real programs, as the user who
// runs the tests and, with root, also as an ordinary one.
func TestScripts(t *testing.T) {
	bin := build(t)
	t.Run("self", func(t *testing.T) { runScripts(t, bin, bin, "") })
	t.Run("ordinary user", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("only root can become another user; the scripts ran as one")
		}
		setpriv, err := exec.LookPath("setpriv")
		if err != nil {
			t.Skip("no setpriv (util-linux) to become another user with")
		}
		runScripts(t, bin, wrap(t, bin, setpriv), otherUID)
	})
}

// build builds the programs into a directory that everybody can read. Its
// name is short because sockets of a cluster live below a sibling of it.
func build(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lam")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", dir+"/", "../lam", "../lamd", "../mpirun")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return dir
}

// wrap makes a directory of programs that become the other user first.
func wrap(t *testing.T, bin, setpriv string) string {
	t.Helper()
	dir := filepath.Join(bin, "user")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	programs := []string{filepath.Join(bin, "lam"), filepath.Join(bin, "lamd"), filepath.Join(bin, "mpirun")}
	if unshare, err := exec.LookPath("unshare"); err == nil {
		programs = append(programs, unshare)
	}
	for _, program := range programs {
		name := filepath.Base(program)
		text := fmt.Sprintf("#!/bin/sh\nexec %s --reuid %s --regid %s --clear-groups %s \"$@\"\n",
			setpriv, otherUID, otherUID, program)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// runScripts runs the scripts with the programs of path in their PATH; bin is
// where the programs themselves are.
func runScripts(t *testing.T, bin, path, uid string) {
	t.Helper()
	testscript.Run(t, testscript.Params{
		Dir:      "testdata",
		Deadline: time.Now().Add(5 * time.Minute),
		Setup: func(e *testscript.Env) error {
			base, err := os.MkdirTemp("", "ls")
			if err != nil {
				return err
			}
			e.Defer(func() { _ = os.RemoveAll(base) })
			if uid != "" {
				id, err := strconv.Atoi(uid)
				if err != nil {
					return err
				}
				if err := errors.Join(os.Chown(base, id, id), os.Chmod(base, 0o755)); err != nil {
					return err
				}
			}
			e.Setenv("PATH", path+":"+os.Getenv("PATH"))
			e.Setenv("BIN", bin)
			e.Setenv("BASE", base)
			e.Setenv("HOME", base)
			e.Setenv("TMPDIR", base)
			e.Setenv("LAM_RUNTIME_DIR", base+"/r")
			e.Setenv("LAM_STATE_DIR", base+"/s")
			e.Defer(func() { halt(filepath.Join(path, "lam"), e.Vars) })
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name != "demo" {
				return false, fmt.Errorf("unknown condition %s", name)
			}
			return uid != "" || os.Getuid() != 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": status,
			"until":  until,
		},
	})
}

// halt ends what a failed script left running.
func halt(lam string, env []string) {
	cmd := exec.Command(lam, "halt", "--purge") //nolint:noctx // runs after the test's context has ended; lam has deadlines
	cmd.Env = env
	_ = cmd.Run()
}

// status is the command `status N PROGRAM ARG...`: the program must end with
// that exit status. Its output can be inspected as after exec.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N program arg...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%v: exit status %d, want %d", args[1:], got, want)
	}
}

// until is the command `until PROGRAM ARG...`: again and again, for at most 30
// seconds, until the program succeeds.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: until program arg...")
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v: still %v", args, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
