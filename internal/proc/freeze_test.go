package proc

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// TestFreezeOfDying has the process end between the first look at it and the
// attempt to attach, with a parent that does not take its status (as one that
// is frozen itself cannot): it is gone. The freeze looked at the zombie until
// its time was over.
func TestFreezeOfDying(t *testing.T) {
	p := start(t, build(t, "count"))
	killed := false
	tr := newTracer(t, func(op string, pid int) unix.Errno {
		if op != "ptrace seize" || killed {
			return 0
		}
		killed = true
		if err := unix.Kill(p.pid(), unix.SIGKILL); err != nil {
			t.Error(err)
		}
		for ctx := testCtx(t); ctx.Err() == nil; {
			if st, err := ReadStat(p.pid()); err != nil || st.State == 'Z' {
				break
			}
		}
		return 0
	})
	if _, err := tr.Freeze(testCtx(t), p.pid()); !errors.Is(err, kernel.ErrGone) {
		t.Errorf("got %v, want ErrGone", err)
	}
	if !killed {
		t.Error("nobody tried to attach")
	}
}
