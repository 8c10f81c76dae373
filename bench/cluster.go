package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// Cluster is a local cluster in a private directory, driven through the lam
// command. Its methods are safe for concurrent use.
type Cluster struct {
	lam    string   // the lam program
	dir    string   // holds runtime and state directories
	boot   []string // arguments of lam boot
	client *control.Client
}

// BootOptions say what to boot.
type BootOptions struct {
	Lam    string // the lam program; lamd stands next to it
	Dir    string // private directory, short enough for sockets; made by the caller
	Nodes  int
	Spares int
	Slots  int // per node; 0 is the number of cores
}

// Boot starts a cluster. The caller ends it with Halt, also after an error of
// anything else; after an error of Boot nothing is left.
//
// Expected errors: what lam boot said.
func Boot(ctx context.Context, o BootOptions) (*Cluster, error) {
	c := &Cluster{
		lam: o.Lam, dir: o.Dir,
		boot: []string{"boot", "--local", strconv.Itoa(o.Nodes), "--spares", strconv.Itoa(o.Spares)},
	}
	if o.Slots > 0 {
		c.boot = append(c.boot, "--slots", strconv.Itoa(o.Slots))
	}
	c.client = control.NewClient(func() []string {
		found, err := filepath.Glob(filepath.Join(c.runtime(), "*", control.Socket))
		if err != nil {
			return nil
		}
		return found
	}, c.runtime())
	for _, d := range []string{c.runtime(), c.state()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("bench: boot: %w", err)
		}
	}
	return c, c.Boot(ctx)
}

func (c *Cluster) runtime() string { return filepath.Join(c.dir, "r") }
func (c *Cluster) state() string   { return filepath.Join(c.dir, "s") }

// Env is the environment in which commands reach the cluster.
func (c *Cluster) Env() []string {
	env := make([]string, 0, len(os.Environ())+2)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "LAM_") {
			env = append(env, kv)
		}
	}
	return append(env, "LAM_RUNTIME_DIR="+c.runtime(), "LAM_STATE_DIR="+c.state())
}

// Client returns a client of the cluster's daemons.
func (c *Cluster) Client() *control.Client { return c.client }

// Boot starts the cluster again after Halt, with the state it had.
//
// Expected errors: what lam boot said.
func (c *Cluster) Boot(ctx context.Context) error {
	_, err := c.Lam(ctx, c.boot...)
	return err
}

// Halt ends the cluster and keeps the images. It takes a context of its own
// kind: it must also work when the caller's was cancelled.
//
// Expected errors: what lam halt said.
func (c *Cluster) Halt(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	_, err := c.Lam(ctx, "halt")
	return err
}

// Fail takes a node's power away.
//
// Expected errors: what lam fail said.
func (c *Cluster) Fail(ctx context.Context, n job.NodeID) error {
	_, err := c.Lam(ctx, "fail", string(n))
	return err
}

// Revive boots a failed node.
//
// Expected errors: what lam revive said.
func (c *Cluster) Revive(ctx context.Context, n job.NodeID) error {
	_, err := c.Lam(ctx, "revive", string(n))
	return err
}

// Lam runs one lam command and returns its stdout.
//
// Expected errors: one with the command's stderr.
func (c *Cluster) Lam(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.lam, args...)
	cmd.Env = c.Env()
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("lam %s: %w: %s", args[0], err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// Run is an MPI run that was started.
type Run struct {
	cmd   *exec.Cmd
	start time.Time
	took  time.Duration
	out   *lineBuffer
	said  bytes.Buffer
	id    chan job.ID
	ended chan struct{} // closed when the launcher has ended, with err
	err   error
}

// Outcome is how a run ended.
type Outcome struct {
	Stdout  string
	Stderr  string
	Code    int
	Elapsed time.Duration // from the start of the launcher to its end
}

// Seconds returns what the program itself measured: its line "# time X s".
func (o Outcome) Seconds() (float64, bool) {
	for line := range strings.Lines(o.Stdout) {
		f := strings.Fields(line)
		if len(f) == 4 && f[0] == "#" && f[1] == "time" && f[3] == "s" {
			v, err := strconv.ParseFloat(f[2], 64)
			return v, err == nil
		}
	}
	return 0, false
}

// Start runs `lam run ARGS`. each, unless nil, gets every line of stdout as it
// comes, without its end.
//
// Expected errors: those of starting a process.
func (c *Cluster) Start(ctx context.Context, each func(line string), args ...string) (*Run, error) {
	return start(command(ctx, c.Env(), c.lam, append([]string{"run", "-v", "--stdin", "none"}, args...)...), each)
}

// command prepares a launcher. When ctx ends it is asked to end its ranks.
func command(ctx context.Context, env []string, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = env
	cmd.WaitDelay = 5 * time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return cmd
}

func start(cmd *exec.Cmd, each func(string)) (*Run, error) {
	r := &Run{cmd: cmd, out: &lineBuffer{each: each}, id: make(chan job.ID, 1), ended: make(chan struct{})}
	r.cmd.Stdout = r.out
	r.cmd.Stderr = io.MultiWriter(&r.said, &jobFinder{found: r.id})
	r.start = time.Now()
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("bench: start %s: %w", cmd.Path, err)
	}
	go func() {
		r.err = r.cmd.Wait()
		r.took = time.Since(r.start)
		close(r.ended)
	}()
	return r, nil
}

// Job waits until the job's number is known.
//
// Expected errors: the context's; the launcher ended before there was a job.
func (r *Run) Job(ctx context.Context) (job.ID, error) {
	select {
	case id := <-r.id:
		r.id <- id
		return id, nil
	case <-r.ended:
		return 0, fmt.Errorf("bench: no job: %w: %s", r.err, strings.TrimSpace(r.said.String()))
	case <-ctx.Done():
		return 0, fmt.Errorf("bench: number of the job: %w", context.Cause(ctx))
	}
}

// Wait returns how the run ended. A program's exit code is no error.
//
// Expected errors: the run was killed because its context ended.
func (r *Run) Wait() (Outcome, error) {
	<-r.ended
	err := r.err
	o := Outcome{Stdout: r.out.String(), Stderr: r.said.String(), Elapsed: r.took, Code: r.cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || o.Code < 0) {
		return o, fmt.Errorf("bench: %s: %w: %s", filepath.Base(r.cmd.Path), err, strings.TrimSpace(o.Stderr))
	}
	return o, nil
}

// lineBuffer keeps what is written and hands on whole lines.
type lineBuffer struct {
	mu   sync.Mutex
	all  bytes.Buffer
	next int // start of the line that is not complete
	each func(string)
}

// Write implements io.Writer.
func (b *lineBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all.Write(p)
	for {
		line, _, complete := bytes.Cut(b.all.Bytes()[b.next:], []byte{'\n'})
		if !complete {
			return len(p), nil
		}
		b.next += len(line) + 1
		if b.each != nil {
			b.each(string(line))
		}
	}
}

// String returns all that was written.
func (b *lineBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

// jobFinder looks for the line "...: job N" of a verbose launcher.
type jobFinder struct {
	text  []byte
	found chan<- job.ID
	done  bool
}

// Write implements io.Writer.
func (f *jobFinder) Write(p []byte) (int, error) {
	if f.done {
		return len(p), nil
	}
	f.text = append(f.text, p...)
	for line := range bytes.Lines(f.text) {
		_, number, ok := strings.Cut(strings.TrimSuffix(string(line), "\n"), ": job ")
		if id, err := job.ParseID(number); ok && err == nil && bytes.HasSuffix(line, []byte{'\n'}) {
			f.done, f.text = true, nil
			f.found <- id
			break
		}
	}
	return len(p), nil
}

// AwaitState waits until a job is in one of the states.
//
// Expected errors: the job ended in another state; the context's.
func (c *Cluster) AwaitState(ctx context.Context, id job.ID, states ...job.State) (control.JobDetail, error) {
	for {
		d, err := c.client.Job(ctx, id)
		if err != nil {
			return d, err
		}
		for _, s := range states {
			if d.State == s {
				return d, nil
			}
		}
		if d.State.Final() {
			return d, fmt.Errorf("bench: job %v is %s: %s", id, d.State, d.Reason)
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return d, err
		}
	}
}

// AwaitEvent waits for the first event after seq that match accepts.
//
// Expected errors: the context's; *control.Error.
func (c *Cluster) AwaitEvent(ctx context.Context, after uint64, match func(control.Event) bool) (control.Event, error) {
	var found control.Event
	err := c.client.Events(ctx, control.EventFilter{After: after, Follow: true}, func(e control.Event) error {
		if match(e) {
			found = e
			return errFound
		}
		return nil
	})
	if errors.Is(err, errFound) {
		return found, nil
	}
	return found, fmt.Errorf("bench: await event: %w", err)
}

var errFound = errors.New("found")

// LastEvent returns the number of the newest event.
//
// Expected errors: *control.Error.
func (c *Cluster) LastEvent(ctx context.Context) (uint64, error) {
	var last uint64
	err := c.client.Events(ctx, control.EventFilter{}, func(e control.Event) error {
		last = e.Seq
		return nil
	})
	return last, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
