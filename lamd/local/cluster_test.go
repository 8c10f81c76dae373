package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

// The tests in this file boot real clusters, with a fake daemon on their
// nodes. TestAsOrdinaryUser runs them again without root.

// needNamespaces skips a test where clusters cannot be made at all.
func needNamespaces(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^$")
	cmd.SysProcAttr = namespaces()
	if err := cmd.Run(); errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("the kernel does not let this user make namespaces: %v", err)
	}
}

// lab is a cluster under test and what it must not leave behind.
type lab struct {
	t     *testing.T
	o     Options
	links []string
	ns    map[string]uint64 // its namespaces, with the latest start of a process seen in them
	pids  map[int]uint64    // its processes, with start times
}

func newLab(t *testing.T, nodes, spares int) *lab {
	t.Helper()
	needNamespaces(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Short: socket paths have 107 bytes.
	dir, err := os.MkdirTemp("", "lam")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{
		t: t, links: linkNames(t), ns: map[string]uint64{}, pids: map[int]uint64{},
		o: Options{
			Dirs:  paths.Dirs{Runtime: filepath.Join(dir, "r"), State: filepath.Join(dir, "s")},
			Nodes: nodes, Spares: spares, Lamd: exe, Wait: time.Minute,
		},
	}
	t.Cleanup(func() {
		_, err := Halt(context.WithoutCancel(t.Context()), l.o.Dirs, true)
		if err != nil && !errors.Is(err, ErrNoCluster) {
			t.Errorf("halt at the end: %v", err)
		}
		l.nothingLeft()
		if err := os.Remove(dir); err != nil { // not RemoveAll: it must be empty
			t.Errorf("files are left: %v", err)
			_ = os.RemoveAll(dir)
		}
	})
	return l
}

func (l *lab) boot() *Cluster {
	l.t.Helper()
	b, err := Boot(l.t.Context(), l.o)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.note(b.Cluster)
}

// note remembers processes and namespaces of a running cluster, as soon as the
// holder knows all of them.
func (l *lab) note(c *Cluster) *Cluster {
	l.t.Helper()
	c = await(l.t, c.Dirs, "daemon on every node", func(c *Cluster) bool {
		return !slices.ContainsFunc(c.Nodes, func(n Node) bool { return n.State == NodeUp && n.DaemonPID == 0 })
	})
	all := []int{c.HolderPID}
	for _, n := range c.Nodes {
		if n.State == NodeUp {
			all = append(all, n.InitPID, n.DaemonPID)
		}
	}
	for _, pid := range all {
		start, err := startTime(pid)
		if err != nil {
			l.t.Fatalf("process %d of the cluster: %v", pid, err)
		}
		l.pids[pid] = start
		for _, kind := range []string{"net", "pid", "mnt", "user", "ipc", "uts"} {
			id, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
			mine, _ := os.Readlink("/proc/self/ns/" + kind)
			if err == nil && id != mine {
				l.ns[id] = max(l.ns[id], start)
			}
		}
	}
	return c
}

// living reports whether the process still runs.
func living(pid int, start uint64) bool {
	boot, _ := bootID()
	return holderAlive(&Cluster{HolderPID: pid, HolderStart: start, BootID: boot})
}

// nothingLeft checks that no process, namespace, link or mount survived.
func (l *lab) nothingLeft() {
	l.t.Helper()
	for pid, start := range l.pids {
		if living(pid, start) {
			l.t.Errorf("process %d is left", pid)
		}
	}
	held, err := filepath.Glob("/proc/[0-9]*/ns/*")
	if err != nil {
		l.t.Fatal(err)
	}
	for _, link := range held {
		// Numbers of namespaces are used again, by processes that started later.
		pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
		start, err := startTime(pid)
		if err != nil {
			continue
		}
		if id, err := os.Readlink(link); err == nil && start <= l.ns[id] {
			l.t.Errorf("namespace %s is left, held by %s", id, link)
		}
	}
	for _, name := range linkNames(l.t) {
		if !slices.Contains(l.links, name) && strings.HasPrefix(name, switchName) {
			l.t.Errorf("link %s is left", name)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		l.t.Fatal(err)
	}
	if strings.Contains(string(mounts), l.o.Dirs.Runtime) {
		l.t.Errorf("a mount is left")
	}
}

func linkNames(t *testing.T) []string {
	t.Helper()
	ifs, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range ifs {
		names = append(names, i.Name)
	}
	return names
}

func TestBootShowsRealNodes(t *testing.T) {
	l := newLab(t, 2, 1)
	b, err := Boot(t.Context(), l.o)
	if err != nil {
		t.Fatal(err)
	}
	b.Cluster = l.note(b.Cluster)
	if len(b.Nodes) != 3 || b.Nodes[2].Role != roleSpare || b.Nodes[2].Node != "n3" {
		t.Errorf("nodes %+v", b.Nodes)
	}
	canary := filepath.Join("/dev/shm", filepath.Base(filepath.Dir(l.o.Dirs.Runtime)))
	if err := os.WriteFile(canary, nil, 0o600); err == nil {
		defer func() { _ = os.Remove(canary) }()
	}
	for _, n := range b.Cluster.Nodes {
		var i inside
		if err := ask(t.Context(), l.o.Dirs.NodeSocket(n.Node), http.MethodGet, "/inside", &i); err != nil {
			t.Fatal(err)
		}
		slices.Sort(i.Links)
		if i.Hostname != string(n.Node) || i.PPID != 1 || !slices.Equal(i.Links, []string{"eth0", "lo"}) {
			t.Errorf("node %s sees %+v", n.Node, i)
		}
		if slices.Contains(i.Shm, filepath.Base(canary)) {
			t.Errorf("node %s shares /dev/shm", n.Node)
		}
		if slices.Contains(i.Sys, "eth0") && len(i.Sys) != 2 {
			t.Errorf("node %s: /sys/class/net has %v", n.Node, i.Sys)
		}
		if i.TmpDir != l.o.Dirs.NodeTmp(n.Node) {
			t.Errorf("node %s: temporary directory %s", n.Node, i.TmpDir)
		}
	}
}

func TestSideBySide(t *testing.T) {
	a, b := newLab(t, 1, 1), newLab(t, 2, 0)
	a.boot()
	b.boot()
	_, err := Boot(t.Context(), a.o)
	wantRefused(t, err, job.ExitConfig, "LAM_RUNTIME_DIR")
	if _, err := Halt(t.Context(), a.o.Dirs, false); err != nil {
		t.Fatal(err)
	}
	a.nothingLeft()
	c, err := Find(t.Context(), b.o.Dirs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AwaitNodes(t.Context(), c, time.Minute); err != nil {
		t.Errorf("the other cluster suffered: %v", err)
	}
	_, err = Find(t.Context(), a.o.Dirs)
	wantRefused(t, err, job.ExitNoNodes, "no local cluster")
}

func TestFailAndRevive(t *testing.T) {
	l := newLab(t, 2, 0)
	before := l.boot()
	n2, _ := before.Find("n2")
	l.askText("n1", "/hold?addr="+n2.Addr.String())
	c, err := Fail(t.Context(), l.o.Dirs, "n2")
	if err != nil {
		t.Fatal(err)
	}
	if got := l.askText("n1", "/held"); got != "open" {
		t.Errorf("connection to a node whose power was cut: %s; nobody may hear the node die", got)
	}
	if n, _ := c.Find("n2"); n.State != NodeDown || n.InitPID != 0 {
		t.Errorf("after fail: %+v", n)
	}
	for _, pid := range []int{n2.InitPID, n2.DaemonPID} {
		if living(pid, l.pids[pid]) {
			t.Errorf("process %d of the failed node lives", pid)
		}
	}
	if _, err := AwaitNodes(t.Context(), c, time.Minute); err != nil {
		t.Errorf("the rest: %v", err)
	}
	_, err = Fail(t.Context(), l.o.Dirs, "n2")
	wantExit(t, err, job.ExitUsage, "down already")
	_, err = Fail(t.Context(), l.o.Dirs, "n9")
	wantExit(t, err, job.ExitUsage, "n1 to n2")
	_, err = Revive(t.Context(), l.o.Dirs, "n1")
	wantExit(t, err, job.ExitUsage, "is up")

	if c, err = Revive(t.Context(), l.o.Dirs, "n2"); err != nil {
		t.Fatal(err)
	}
	if _, err := AwaitNodes(t.Context(), c, time.Minute); err != nil {
		t.Fatal(err)
	}
	if n, _ := c.Find("n2"); n.Boot != n2.Boot+1 || n.State != NodeUp {
		t.Errorf("after revive: %+v", n)
	}
}

// askText gets a text from a node's fake daemon.
func (l *lab) askText(id job.NodeID, what string) string {
	l.t.Helper()
	var text string
	if err := ask(l.t.Context(), l.o.Dirs.NodeSocket(id), http.MethodGet, what, &text); err != nil {
		l.t.Fatal(err)
	}
	return text
}

// wantExit checks a refusal that came over the holder's socket.
func wantExit(t *testing.T, err error, exit int, text string) {
	t.Helper()
	var e *control.Error
	if !errors.As(err, &e) || e.Exit != exit || !strings.Contains(e.Message, text) {
		t.Fatalf("error %v, want exit code %d and %q", err, exit, text)
	}
}

func TestDaemonComesBack(t *testing.T) {
	l := newLab(t, 2, 0)
	c := l.boot()
	before, _ := c.Find("n1")
	if err := unix.Kill(before.DaemonPID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c = await(t, l.o.Dirs, "another daemon on n1", func(c *Cluster) bool {
		n, _ := c.Find("n1")
		return n.Session > before.Session
	})
	if _, err := AwaitNodes(t.Context(), c, time.Minute); err != nil {
		t.Fatal(err)
	}
	after, _ := c.Find("n1")
	if after.InitPID != before.InitPID || after.Boot != before.Boot {
		t.Errorf("the node itself changed: %+v, then %+v", before, after)
	}
}

func TestNodeInitKilled(t *testing.T) {
	l := newLab(t, 2, 0)
	c := l.boot()
	n1, _ := c.Find("n1")
	if err := unix.Kill(n1.InitPID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, l.o.Dirs, "n1 without power", func(c *Cluster) bool {
		n, _ := c.Find("n1")
		return n.State == NodeDown
	})
	if living(n1.DaemonPID, l.pids[n1.DaemonPID]) {
		t.Error("the daemon outlived its node")
	}
	c, err := Revive(t.Context(), l.o.Dirs, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AwaitNodes(t.Context(), c, time.Minute); err != nil {
		t.Error(err)
	}
}

// await polls the holder until ok.
func await(t *testing.T, d paths.Dirs, what string, ok func(*Cluster) bool) *Cluster {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		c, err := Find(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if ok(c) {
			return c
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("no %s", what)
	return nil
}

func TestHolderKilled(t *testing.T) {
	for _, then := range []string{"halt", "boot"} {
		t.Run("then "+then, func(t *testing.T) {
			l := newLab(t, 2, 0)
			c := l.boot()
			if err := unix.Kill(c.HolderPID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if then == "halt" {
				if _, err := Halt(t.Context(), l.o.Dirs, false); err != nil {
					t.Fatal(err)
				}
				l.nothingLeft()
				if _, err := os.Stat(l.o.Dirs.Runtime); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("runtime directory: %v", err)
				}
				return
			}
			b, err := Boot(t.Context(), l.o)
			if err != nil {
				t.Fatal(err)
			}
			if b.Note == "" {
				t.Error("nothing is said about the remains")
			}
			l.nothingLeft()
			l.note(b.Cluster)
			if n, _ := b.Cluster.Find("n1"); n.Boot != 2 {
				t.Errorf("n1 is in boot %d", n.Boot)
			}
		})
	}
}

func TestBootThatFails(t *testing.T) {
	t.Run("useless daemon", func(t *testing.T) {
		l := newLab(t, 2, 0)
		l.o.Daemon, l.o.Wait = []string{l.o.Lamd, "crash"}, 2*time.Second
		_, err := Boot(t.Context(), l.o)
		wantRefused(t, err, job.ExitNoNodes, "no use today")
		gone(t, l.o.Dirs)
	})
	t.Run("no daemon", func(t *testing.T) {
		l := newLab(t, 1, 0)
		l.o.Lamd = filepath.Join(filepath.Dir(l.o.Dirs.Runtime), "lamd")
		_, err := Boot(t.Context(), l.o)
		wantRefused(t, err, job.ExitConfig, "no lamd at")
		gone(t, l.o.Dirs)
	})
	t.Run("interrupted", func(t *testing.T) {
		l := newLab(t, 1, 0)
		l.o.Daemon = []string{l.o.Lamd, "crash"}
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		defer cancel()
		_, err := Boot(ctx, l.o)
		wantRefused(t, err, job.ExitInternal, "interrupted")
		gone(t, l.o.Dirs)
	})
}

// gone checks that neither directory exists.
func gone(t *testing.T, d paths.Dirs) {
	t.Helper()
	for _, dir := range []string{d.Runtime, d.State} {
		if entries, err := os.ReadDir(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left with %v", dir, entries)
		}
	}
}

// Many commands at once: each either does its part or is refused, and the
// cluster is whole in the end.
func TestConcurrentSwitching(t *testing.T) {
	l := newLab(t, 3, 0)
	l.boot()
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			id := job.NodeID(fmt.Sprintf("n%d", i%3+1))
			do := Fail
			if i%2 == 1 {
				do = Revive
			}
			var e *control.Error
			if _, err := do(t.Context(), l.o.Dirs, id); err != nil && (!errors.As(err, &e) || e.Exit != job.ExitUsage) {
				t.Errorf("node %s: %v", id, err)
			}
		}()
	}
	wg.Wait()
	c, err := Find(t.Context(), l.o.Dirs)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		if n.State == NodeUp {
			continue
		}
		if c, err = Revive(t.Context(), l.o.Dirs, n.Node); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := AwaitNodes(t.Context(), c, time.Minute); err != nil {
		t.Fatal(err)
	}
	c, err = Find(t.Context(), l.o.Dirs)
	if err != nil {
		t.Fatal(err)
	}
	l.note(c)
}

// TestAsOrdinaryUser runs the tests above as uid 1500.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user; the other tests ran as one")
	}
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip("no setpriv (util-linux) to become another user with")
	}
	dir, err := os.MkdirTemp("", "lam-user")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	const uid = 1500
	raw, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "local.test")
	if err := os.WriteFile(exe, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, uid, uid)); err != nil {
		t.Fatal(err)
	}
	id := strconv.Itoa(uid)
	args := []string{"--reuid", id, "--regid", id, "--clear-groups", exe, "-test.v", "-test.timeout", "4m"}
	cmd := exec.CommandContext(t.Context(), setpriv, args...)
	cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP: TestFailAndRevive") {
		t.Skipf("as uid %d:\n%s", uid, out)
	}
}
