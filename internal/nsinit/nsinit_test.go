package nsinit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const initWord = "serve-as-init"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == initWord {
		if err := Serve(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestPrograms(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	n, err := Start(ctx, []string{exe, initWord}, os.Environ())
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("no user namespaces here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	spawn := func(pid int, text string) (*Program, error) {
		return n.Spawn(ctx, Spec{PID: pid, Path: "/bin/sh", Argv: []string{"sh", "-c", text}, Dir: "/"}, null, null, null)
	}
	p, err := spawn(4321, `test $$ = 4321 && exit 7`)
	if err != nil || p.Inner != 4321 {
		t.Fatalf("%+v (%v)", p, err)
	}
	if ws, err := n.Wait(ctx, 4321); err != nil || ws.ExitStatus() != 7 {
		t.Errorf("status %#x (%v)", uint32(ws), err)
	}
	if p, err = spawn(0, `kill -TERM $$`); err != nil {
		t.Fatal(err)
	}
	if ws, err := n.Wait(ctx, p.Inner); err != nil || ws.Signal() != unix.SIGTERM {
		t.Errorf("status %#x (%v)", uint32(ws), err)
	}
	if _, err := n.Spawn(ctx, Spec{Path: "/no/such/program", Argv: []string{"x"}, Dir: "/"}, null); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such program: %v", err)
	}
	if p, err = spawn(0, "sleep 1000"); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(p.PID, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a program outlived its namespace: %v", err)
	}
}

func TestServeElsewhere(t *testing.T) {
	if err := Serve(t.Context()); err == nil {
		t.Error("served outside of a pid namespace")
	}
}
