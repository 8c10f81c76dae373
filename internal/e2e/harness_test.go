package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// ordinaryUID is the user that tests become when they are run as root.
const ordinaryUID = 1500

// built is what all tests share: binaries and example programs.
type built struct {
	dir string
	err error
}

// build makes the binaries and the example programs once per test binary.
var build = sync.OnceValue(func() built { //nolint:gochecknoglobals // computed once, never changed
	dir, err := os.MkdirTemp("", "lam-e2e-")
	if err != nil {
		return built{err: err}
	}
	b := built{dir: dir, err: os.Chmod(dir, 0o755)}
	run := func(wd, name string, args ...string) {
		if b.err != nil {
			return
		}
		cmd := exec.CommandContext(context.Background(), name, args...)
		cmd.Dir = wd
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	run("../..", "go", "build", "-o", dir+"/", "./cmd/lam", "./cmd/lamd", "./cmd/mpirun")
	sources, err := filepath.Glob("../../examples/*.c")
	b.err = errors.Join(b.err, err)
	for _, src := range sources {
		run(".", "mpicc", "-O2", "-o", filepath.Join(dir, strings.TrimSuffix(filepath.Base(src), ".c")), src)
	}
	for _, k := range []string{"cg", "ep", "is", "mg"} {
		run("../../bench/nas", "mpicc", "-O2", "-DCLASS='S'", "-o", filepath.Join(dir, k+".S"), k+".c", "nas.c", "-lm")
	}
	return b
})

func TestMain(m *testing.M) {
	code := m.Run()
	if b := build(); b.dir != "" {
		_ = os.RemoveAll(b.dir)
	}
	os.Exit(code)
}

// user is who runs a test.
type user struct {
	name string
	cred *syscall.Credential // nil: as we are
	uid  int
}

// asUsers runs a test as every user that the machine allows.
func asUsers(t *testing.T, test func(t *testing.T, u user)) {
	if testing.Short() {
		t.Skip("boots clusters; not with -short")
	}
	if _, err := exec.LookPath("mpicc"); err != nil {
		t.Skip("no mpicc: apt-get install mpich libmpich-dev")
	}
	if b := build(); b.err != nil {
		t.Fatal(b.err)
	}
	users := []user{{name: "self", uid: os.Getuid()}}
	if os.Getuid() == 0 {
		users = []user{
			{name: "root"},
			{name: "ordinary", uid: ordinaryUID, cred: &syscall.Credential{Uid: ordinaryUID, Gid: ordinaryUID, NoSetGroups: false}},
		}
	}
	for _, u := range users {
		t.Run(u.name, func(t *testing.T) { test(t, u) })
	}
}

// asOneUser runs a test once: as an ordinary user if the machine allows. What it
// shows does not depend on who runs it.
func asOneUser(t *testing.T, test func(t *testing.T, u user)) {
	t.Helper()
	asUsers(t, func(t *testing.T, u user) {
		if u.name == "root" {
			t.Skip("runs as an ordinary user below")
		}
		test(t, u)
	})
}

// cluster is a running local cluster of one test.
type cluster struct {
	t    *testing.T
	u    user
	dir  string
	env  []string
	bins string
}

// boot starts a cluster and makes sure that nothing of it is left at the end.
func boot(t *testing.T, u user, nodes, spares int) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "lam-e2e-c-") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, u: u, dir: dir, bins: build().dir}
	if u.cred != nil {
		if err := os.Chown(dir, u.uid, u.uid); err != nil {
			t.Fatal(err)
		}
	}
	c.env = append(os.Environ(), "LAM_RUNTIME_DIR="+dir+"/r", "LAM_STATE_DIR="+dir+"/s", "HOME="+dir,
		"XDG_RUNTIME_DIR=", "XDG_CONFIG_HOME=", "PATH="+c.bins+":"+os.Getenv("PATH"))
	t.Cleanup(c.end)
	c.bootAgain(nodes, spares)
	return c
}

// bootAgain boots in the same directories.
func (c *cluster) bootAgain(nodes, spares int) {
	c.t.Helper()
	c.must("lam", "boot", "--local", fmt.Sprint(nodes), "--spares", fmt.Sprint(spares))
}

// end halts the cluster, and fails the test when something is left.
func (c *cluster) end() {
	if c.t.Failed() {
		c.showLogs()
	}
	out, err := c.command(30*time.Second, "lam", "halt").CombinedOutput()
	if err != nil && !strings.Contains(string(out), "no local cluster") {
		c.t.Errorf("lam halt: %v\n%s", err, out)
	}
	for _, p := range leftovers(c.dir) {
		c.t.Errorf("left behind: %s", p)
	}
	if err := os.RemoveAll(c.dir); err != nil {
		c.t.Error(err)
	}
}

// leftovers lists processes that have dir in their environment.
func leftovers(dir string) []string {
	var out []string
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, e := range environs {
		b, err := os.ReadFile(e)
		if err == nil && bytes.Contains(b, []byte(dir)) {
			cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(e), "cmdline"))
			out = append(out, filepath.Base(filepath.Dir(e))+" "+string(bytes.ReplaceAll(cmd, []byte{0}, []byte{' '})))
		}
	}
	return out
}

// showLogs prints what the daemons said, and the events.
func (c *cluster) showLogs() {
	if out, err := c.command(5*time.Second, "lam", "events").Output(); err == nil {
		c.t.Logf("events:\n%s", out)
	}
	logs, _ := filepath.Glob(c.dir + "/r/*/lamd.log")
	pods, _ := filepath.Glob(c.dir + "/r/*/pods/*/pod.log")
	for _, l := range append(logs, pods...) {
		b, _ := os.ReadFile(l)
		if len(b) > 6000 {
			b = b[len(b)-6000:]
		}
		c.t.Logf("%s:\n%s", strings.TrimPrefix(l, c.dir), b)
	}
}

// command prepares a command of the cluster's user, bounded in time.
func (c *cluster) command(limit time.Duration, name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	context.AfterFunc(ctx, cancel)
	path := name
	if !strings.Contains(name, "/") {
		path = filepath.Join(c.bins, name)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Dir = c.env, c.dir
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.u.cred}
	return cmd
}

// must runs a command that has to succeed, and returns its output.
func (c *cluster) must(name string, args ...string) string {
	c.t.Helper()
	cmd := c.command(60*time.Second, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		c.t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// run is a program under mpirun.
type run struct {
	c        *cluster
	cmd      *exec.Cmd
	out, err bytes.Buffer
	done     chan struct{}
	waited   error
}

// start starts mpirun in the background; the job has limit to end.
func (c *cluster) start(limit time.Duration, args ...string) *run {
	c.t.Helper()
	r := &run{c: c, done: make(chan struct{})}
	r.cmd = c.command(limit, "mpirun", args...)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.err
	if err := r.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		r.waited = r.cmd.Wait()
		close(r.done)
	}()
	c.t.Cleanup(func() { // of a test that failed before its end
		_ = r.cmd.Process.Kill()
		<-r.done
	})
	return r
}

// wait returns the exit code and the standard output without timing lines.
func (r *run) wait() (int, string) {
	r.c.t.Helper()
	<-r.done
	var exit *exec.ExitError
	if r.waited != nil && !errors.As(r.waited, &exit) {
		r.c.t.Fatalf("mpirun %v: %v\n%s", r.cmd.Args[1:], r.waited, r.err.String())
	}
	return r.cmd.ProcessState.ExitCode(), withoutComments(r.out.String())
}

// mpirun runs a program that has to end with code 0, and returns its output.
func (c *cluster) mpirun(limit time.Duration, args ...string) string {
	c.t.Helper()
	r := c.start(limit, args...)
	code, out := r.wait()
	if code != 0 {
		c.t.Fatalf("mpirun %v: exit code %d\n%s\n%s", args, code, out, r.err.String())
	}
	return out
}

// withoutComments drops lines that begin with '#': timings and host names.
func withoutComments(s string) string {
	var out []string
	for line := range strings.SplitSeq(s, "\n") {
		if !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// job returns what is known of a job; nothing when it is not known yet, or
// while there is no leader.
func (c *cluster) job(id job.ID) control.JobDetail {
	c.t.Helper()
	var d control.JobDetail
	out, err := c.command(20*time.Second, "lam", "job", id.String(), "-o", "json").Output()
	if err != nil {
		return d
	}
	if err := json.Unmarshal(out, &d); err != nil {
		c.t.Fatal(err)
	}
	return d
}

// await polls until ok, for at most limit.
func (c *cluster) await(limit time.Duration, what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// awaitEpoch waits until the job has committed an epoch above after.
func (c *cluster) awaitEpoch(id job.ID, after job.Epoch) job.Epoch {
	c.t.Helper()
	var now job.Epoch
	c.await(60*time.Second, fmt.Sprintf("an epoch of job %d after %d", id, after), func() bool {
		now = c.job(id).Epoch
		return now > after
	})
	return now
}

// nodeOf returns the node of a pod of a running job.
func (c *cluster) nodeOf(id job.ID, pod int) job.NodeID {
	c.t.Helper()
	d := c.job(id)
	if pod >= len(d.Placement) {
		c.t.Fatalf("job %d has no pod %d: %+v", id, pod, d.Job)
	}
	return d.Placement[pod].Node
}

// undisturbed returns what a program prints under the MPI's own launcher.
func (c *cluster) undisturbed(ranks int, args ...string) string {
	c.t.Helper()
	hydra := append([]string{"-n", fmt.Sprint(ranks)}, args...)
	cmd := c.command(2*time.Minute, "/usr/bin/mpiexec.hydra", hydra...)
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("mpiexec.hydra %v: %v", args, err)
	}
	return withoutComments(string(out))
}
