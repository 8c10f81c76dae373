package bench

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestPlainNodes runs a kernel between two network namespaces and sees that
// the ranks are on nodes of their own.
func TestPlainNodes(t *testing.T) {
	needMPI(t)
	for _, tool := range []string{"ip", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	probe := exec.CommandContext(ctx, "unshare", "-Urnmpf", "--mount-proc", "mount", "-t", "sysfs", "sysfs", "/mnt")
	if out, err := probe.CombinedOutput(); err != nil {
		t.Skipf("the kernel does not let this user make such namespaces: %v: %s", err, out)
	}
	s := &Suite{dir: t.TempDir(), cluster: &Cluster{dir: t.TempDir()}, Log: zerolog.New(zerolog.NewTestWriter(t))}
	if err := errors.Join(Build(ctx, s.dir, "cg.S"), scripts(s.dir)); err != nil {
		t.Fatal(err)
	}
	o, err := s.runPlain(ctx, 2, timed, s.path("cg.S"))
	if err != nil || !strings.Contains(o.Stdout, "VERIFICATION SUCCESSFUL") {
		t.Fatalf("%v\n%s%s", err, o.Stdout, o.Stderr)
	}
	o, err = s.runPlain(ctx, 2, nil, "cat", "/sys/class/net/eth0/address")
	if macs := strings.Fields(o.Stdout); err != nil || len(macs) != 2 || macs[0] == macs[1] {
		t.Errorf("%v: hardware addresses %q: want one per node", err, macs)
	}
}

// TestUntilToldEndsAHang: a program that has said its last line and does not
// end is no failure; one that says nothing is.
func TestUntilToldEndsAHang(t *testing.T) {
	s := &Suite{Log: zerolog.New(zerolog.NewTestWriter(t))}
	script := func(text string) func(context.Context) *exec.Cmd {
		return func(ctx context.Context) *exec.Cmd {
			cmd := command(ctx, nil, "/bin/sh", "-c", text)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			return cmd
		}
	}
	o, err := s.untilTold(t.Context(), timed, "x", script("echo '# time 1.5 s'; exec /bin/sleep 600"))
	if v, ok := o.Seconds(); err != nil || !ok || v != 1.5 {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := s.untilTold(t.Context(), timed, "x", script("echo '# time 1.5 s'; exit 3")); err == nil {
		t.Errorf("%+v", o)
	}
}
