package local

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

func TestNamesAndAddresses(t *testing.T) {
	got := names(2, 1)
	if d := cmp.Diff([]job.NodeID{"n1", "n2", "n3"}, got); d != "" {
		t.Error(d)
	}
	seen := map[netip.Addr]bool{}
	macs := map[string]bool{}
	for i := range MaxNodes {
		a := address(DefaultSubnet(), i)
		if !DefaultSubnet().Contains(a) || seen[a] || macs[nodeMAC(i).String()] {
			t.Errorf("node %d: address %v, MAC %v", i, a, nodeMAC(i))
		}
		seen[a], macs[nodeMAC(i).String()] = true, true
	}
	if a := address(DefaultSubnet(), 0); a.String() != "10.77.0.11" {
		t.Errorf("n1 is %v", a)
	}
}

func TestOptions(t *testing.T) {
	dirs := paths.Dirs{Runtime: "/run/lam", State: "/var/lib/lam"}
	for _, tc := range []struct {
		name string
		o    Options
		exit int // 0 = fine
		text string
	}{
		{"fine", Options{Dirs: dirs, Nodes: 4, Spares: 1}, 0, ""},
		{"no nodes", Options{Dirs: dirs}, job.ExitUsage, "at least 1"},
		{"negative", Options{Dirs: dirs, Nodes: -1}, job.ExitUsage, "at least 1"},
		{"negative spares", Options{Dirs: dirs, Nodes: 1, Spares: -1}, job.ExitUsage, "spares"},
		{"too many", Options{Dirs: dirs, Nodes: MaxNodes, Spares: 1}, job.ExitUsage, "at most"},
		{"slots", Options{Dirs: dirs, Nodes: 1, Slots: -2}, job.ExitUsage, "slots"},
		{"subnet", Options{Dirs: dirs, Nodes: 1, Subnet: netip.MustParsePrefix("10.1.1.0/24")}, job.ExitUsage, "/16"},
		{"IPv6", Options{Dirs: dirs, Nodes: 1, Subnet: netip.MustParsePrefix("fd00::/16")}, job.ExitUsage, "IPv4"},
		{"long path", Options{Dirs: paths.Dirs{Runtime: "/" + strings.Repeat("r", 99), State: "/s"}, Nodes: 1}, job.ExitConfig, "LAM_RUNTIME_DIR"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.o.complete()
			if tc.exit == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantRefused(t, err, tc.exit, tc.text)
		})
	}
}

// wantRefused checks exit code and wording of a refusal.
func wantRefused(t *testing.T, err error, exit int, text string) {
	t.Helper()
	var r *Refused
	if !errors.As(err, &r) || r.Exit != exit || !strings.Contains(r.Error(), text) {
		t.Fatalf("error %v, want exit code %d and %q", err, exit, text)
	}
}

func TestParseStartTime(t *testing.T) {
	const tail = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20"
	for _, tc := range []struct {
		stat string
		want uint64
		ok   bool
	}{
		{"12 (lamd) S" + tail, 777, true},
		{"12 (a) b) (c) S" + tail, 777, true},
		{"12 (lamd) Z" + tail, 777, true},
		{"12 (lamd) S 1 2", 0, false},
		{"nonsense", 0, false},
	} {
		got, err := parseStartTime(tc.stat)
		if got != tc.want || (err == nil) != tc.ok {
			t.Errorf("%q: %d, %v", tc.stat, got, err)
		}
	}
	if n, err := startTime(os.Getpid()); err != nil || n == 0 {
		t.Errorf("own start time %d, %v", n, err)
	}
}

func FuzzParseStartTime(f *testing.F) {
	f.Add("12 (lamd) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20")
	f.Add(")")
	f.Fuzz(func(_ *testing.T, s string) { _, _ = parseStartTime(s) })
}

func TestInnermostPID(t *testing.T) {
	for status, want := range map[string]int{
		"Name:\tx\nNSpid:\t4711\t12\t3\nThreads:\t1\n": 3,
		"NSpid:\t9\n":     9,
		"NSpid:\n":        0,
		"Name:\tx\n":      0,
		"NSpid:\t1\tzwei": 0,
	} {
		if got := innermostPID(status); got != want {
			t.Errorf("%q: %d, want %d", status, got, want)
		}
	}
}

func TestBootNumbersRise(t *testing.T) {
	dir := t.TempDir()
	for want := job.Boot(1); want <= 3; want++ {
		got, err := nextBoot(dir)
		if err != nil || got != want {
			t.Fatalf("boot %d, %v; want %d", got, err, want)
		}
	}
	if got, err := lastBoot(dir); err != nil || got != 3 {
		t.Errorf("last boot %d, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, bootFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := nextBoot(dir); err == nil {
		t.Error("a damaged boot number was taken")
	}
}

func testDirs(t *testing.T) paths.Dirs {
	base := t.TempDir()
	return paths.Dirs{Runtime: filepath.Join(base, "run"), State: filepath.Join(base, "state")}
}

func TestClaimExcludes(t *testing.T) {
	d := testDirs(t)
	l, err := claim(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if !l.made {
		t.Error("the runtime directory was made, but is not known to be")
	}
	_, err = claim(t.Context(), d)
	wantRefused(t, err, job.ExitConfig, "LAM_RUNTIME_DIR")
	other := paths.Dirs{Runtime: d.Runtime + "2", State: d.State}
	_, err = claim(t.Context(), other)
	wantRefused(t, err, job.ExitConfig, "LAM_STATE_DIR")
	l.close()
	l, err = claim(t.Context(), d)
	if err != nil {
		t.Fatalf("after the end of the first: %v", err)
	}
	l.close()
}

// A lock on a file that was removed meanwhile excludes nobody, and is not
// taken for one.
func TestLockFollowsTheName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := lockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := lockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockFile(path); !errors.Is(err, errLocked) {
		t.Errorf("third: %v", err)
	}
	_, _ = first.Close(), second.Close()
}

func TestStaleDirectories(t *testing.T) {
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		c    func(paths.Dirs) Cluster
		raw  string
		exit int // 0 = cleaned
		text string
	}{
		{name: "other boot of the machine", c: func(d paths.Dirs) Cluster {
			return Cluster{Version: Version, Dirs: d, HolderPID: os.Getpid(), HolderStart: start, BootID: "other"}
		}},
		{name: "pid in other hands", c: func(d paths.Dirs) Cluster {
			return Cluster{Version: Version, Dirs: d, HolderPID: os.Getpid(), HolderStart: start - 1, BootID: boot}
		}},
		{name: "not JSON", raw: "what?", exit: job.ExitConfig, text: "remove it"},
		{name: "of a later version", raw: `{"version": 99}`, exit: job.ExitConfig, text: "version 99"},
		{name: "of another directory", raw: `{"version": 1, "runtime_dir": "/elsewhere"}`, exit: job.ExitConfig, text: "/elsewhere"},
		{name: "evil node name", c: func(d paths.Dirs) Cluster {
			return Cluster{Version: Version, Dirs: d, Nodes: []Node{{Node: "../.."}}}
		}, exit: job.ExitConfig, text: "node name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := testDirs(t)
			if err := os.MkdirAll(d.Node("n1"), 0o700); err != nil {
				t.Fatal(err)
			}
			if tc.c != nil {
				c := tc.c(d)
				if c.Nodes == nil {
					c.Nodes = []Node{{Node: "n1"}}
				}
				if err := writeCluster(&c); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(d.ClusterFile(), []byte(tc.raw), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := claim(t.Context(), d)
			defer l.close()
			if tc.exit != 0 {
				wantRefused(t, err, tc.exit, tc.text)
				return
			}
			if err != nil || l.note == "" {
				t.Fatalf("error %v, note %q", err, l.note)
			}
			if _, err := os.Stat(d.Node("n1")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the node's directory: %v", err)
			}
		})
	}
}

// A holder that holds no lock but still is there is waited for, and in the end
// refused.
func TestAwaitGone(t *testing.T) {
	boot, _ := bootID()
	start, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{HolderPID: os.Getpid(), HolderStart: start, BootID: boot}
	if err := awaitGone(t.Context(), c, 150*time.Millisecond); err == nil {
		t.Error("this very process is said to be gone")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := awaitGone(ctx, c, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestReleaseState(t *testing.T) {
	for _, tc := range []struct {
		name   string
		images bool
		purge  bool
		kept   bool
	}{
		{"nothing worth keeping", false, false, false},
		{"images", true, false, true},
		{"images, purged", true, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := testDirs(t)
			if err := os.MkdirAll(d.NodeState("n1"), 0o700); err != nil {
				t.Fatal(err)
			}
			if _, err := nextBoot(d.NodeState("n1")); err != nil {
				t.Fatal(err)
			}
			if tc.images {
				if err := os.MkdirAll(filepath.Join(d.JobState("n1", 1), "3", "pod0"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			// A file of the user's is not ours to remove, whatever is asked.
			other := filepath.Join(d.State, "notes")
			if err := os.WriteFile(other, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			kept, err := releaseState(d, tc.purge)
			if err != nil || kept != tc.kept {
				t.Fatalf("kept %v, %v", kept, err)
			}
			if _, err := os.Stat(d.NodeState("n1")); (err == nil) != tc.kept {
				t.Errorf("state of n1: %v", err)
			}
			if _, err := os.Stat(other); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNotAlive(t *testing.T) {
	c := &Cluster{Nodes: []Node{{Node: "n1", State: NodeUp, Boot: 1}, {Node: "n2", State: NodeUp, Boot: 2}, {Node: "n3", State: NodeDown, Boot: 1}}}
	alive := []control.Node{{Node: "n1", State: "alive", Boot: 1}, {Node: "n2", State: "alive", Boot: 2}}
	if s := notAlive(c, "n1", alive); s != "" {
		t.Error(s)
	}
	alive[1].Boot = 1 // it still speaks of the life before
	if s := notAlive(c, "n1", alive); !strings.Contains(s, "n2") {
		t.Errorf("%q", s)
	}
	if s := notAlive(c, "n1", alive[:1]); !strings.Contains(s, "unknown") {
		t.Errorf("%q", s)
	}
}

func TestExplainNamesTheLog(t *testing.T) {
	d := testDirs(t)
	if err := os.MkdirAll(d.Node("n1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.NodeLog("n1"), []byte("a\nb\nc\nd\ne\nlast words\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := explain(refuse(job.ExitNoNodes, "missing"), &Cluster{Dirs: d, Nodes: []Node{{Node: "n1"}}})
	wantRefused(t, err, job.ExitNoNodes, "last words")
	if strings.Contains(err.Error(), "\n    a\n") {
		t.Errorf("too much of the log: %v", err)
	}
}
