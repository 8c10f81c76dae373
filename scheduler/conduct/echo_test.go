package conduct

import (
	"testing"
	"time"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// A rank is killed together with the daemon of its node; the first that is heard
// is that a peer aborts, its connection broken. The verdict waits for the daemon
// to be back, and then it is the kill that counts. A daemon that does not come
// back is not waited for for ever.
func TestTheEchoOfAKillIsHeardFirst(t *testing.T) {
	for name, back := range map[string]bool{"daemon comes back": true, "daemon does not": false} {
		t.Run(name, func(t *testing.T) {
			w := newWatched(t, 1, nil)
			renew := func() {
				for _, n := range []job.NodeID{"n1", "n2"} {
					w.l.Renew(w.now, scheduler.NodeRef{Node: n, Boot: 1})
				}
			}
			w.until(w.now + 100*time.Millisecond)
			renew()
			start := w.now
			w.until(w.now + 100*time.Millisecond)
			w.report("n1", 0, 1, 1, job.Exit{Rank: 0, Code: 15})
			for range 6 {
				w.until(w.now + 250*time.Millisecond)
				w.l.Renew(w.now, scheduler.NodeRef{Node: "n1", Boot: 1})
			}
			if got := w.verdict(); got != "" {
				t.Fatalf("before n2 was heard: %s", got)
			}
			if back {
				w.l.Renew(w.now, scheduler.NodeRef{Node: "n2", Boot: 1})
				w.report("n2", 1, 1, 1, job.Exit{Rank: 2, Signal: sigkill})
			}
			w.until(start + w.l.cfg.CrashMax + time.Second)
			want := "recover [0 1] killed"
			if !back {
				want = "end 15"
			}
			if got := w.verdict(); got != want {
				t.Errorf("%s, not %s", got, want)
			}
		})
	}
}
