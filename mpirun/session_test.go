package mpirun

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/controltest"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// fakeJob is the lamd of a cluster with one job, number 3.
type fakeJob struct {
	nodes  []control.Node
	frames []podapi.Output
	held   bool // the job ends by finish only
	reads  bool // a held job ends with its input, too
	silent int  // so many output streams bring nothing and do not end
	ended  control.Ended
	onVerb func(verb string)

	mu     sync.Mutex
	spec   job.Spec
	verbs  []string
	input  []byte
	eof    bool
	finish chan struct{}
	froms  []string
}

func newFakeJob(frames ...podapi.Output) *fakeJob {
	f := &fakeJob{frames: frames, finish: make(chan struct{})}
	for i := range 3 {
		f.nodes = append(f.nodes, control.Node{Node: job.NodeID("n" + strconv.Itoa(i+1)), State: "alive", Role: "compute"})
	}
	return f
}

func (f *fakeJob) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/nodes", func(w http.ResponseWriter, _ *http.Request) { controltest.JSON(w, f.nodes) })
	mux.HandleFunc("POST /v1/jobs", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		_ = json.NewDecoder(r.Body).Decode(&f.spec)
		controltest.JSON(w, control.Submitted{Job: 3})
	})
	mux.HandleFunc("GET /v1/jobs/3", func(w http.ResponseWriter, _ *http.Request) {
		controltest.JSON(w, control.JobDetail{Job: control.Job{Job: 3}})
	})
	mux.HandleFunc("GET /v1/jobs/3/output", f.output)
	mux.HandleFunc("GET /v1/jobs/3/wait", func(w http.ResponseWriter, r *http.Request) {
		if f.held {
			select {
			case <-f.finish:
			case <-r.Context().Done():
				return
			}
		}
		controltest.JSON(w, f.ended)
	})
	mux.HandleFunc("POST /v1/jobs/3/stdin", f.stdin)
	mux.HandleFunc("POST /v1/jobs/3/{verb}", func(w http.ResponseWriter, r *http.Request) {
		verb := r.PathValue("verb")
		if n := r.URL.Query().Get("n"); n != "" {
			verb += " " + n
		}
		f.mu.Lock()
		f.verbs = append(f.verbs, verb)
		f.mu.Unlock()
		if f.onVerb != nil {
			f.onVerb(verb)
		}
		controltest.JSON(w, struct{}{})
	})
	mux.ServeHTTP(w, r)
}

func (f *fakeJob) output(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.froms = append(f.froms, r.URL.Query().Get("from"))
	silent := len(f.froms) <= f.silent
	f.mu.Unlock()
	if silent {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return
	}
	controltest.Frames(w, f.frames...)
	if f.held {
		_ = http.NewResponseController(w).Flush()
		select {
		case <-f.finish:
		case <-r.Context().Done():
		}
	}
}

// stdin takes at most 5 bytes at a time.
func (f *fakeJob) stdin(w http.ResponseWriter, r *http.Request) {
	offset, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	data, rerr := io.ReadAll(r.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil || rerr != nil || offset != int64(len(f.input)) {
		controltest.Refuse(w, http.StatusBadRequest, job.ExitInternal, fmt.Sprintf("stdin at %d, not %d", offset, len(f.input)))
		return
	}
	if len(data) > 5 {
		data = data[:5]
	} else if r.URL.Query().Get("eof") == "1" && !f.eof {
		f.eof = true
		if f.reads {
			close(f.finish)
		}
	}
	f.input = append(f.input, data...)
	controltest.JSON(w, control.StdinTaken{Offset: int64(len(f.input))})
}

// start serves f as n1 and returns a process in its cluster.
func (f *fakeJob) start(t *testing.T) (p Process, stdout, stderr *buffer, signals chan os.Signal) {
	t.Helper()
	// Connections of calls that a test's end cut off may outlive it by a moment.
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	dir := controltest.Runtime(t)
	controltest.Serve(t, dir, "n1", f)
	stdout, stderr = &buffer{}, &buffer{}
	signals = make(chan os.Signal, 4)
	return Process{
		Name: "mpirun", Stdin: strings.NewReader(""), Stdout: stdout, Stderr: stderr,
		Environ: []string{"PATH=/bin:/usr/bin"}, Dir: t.TempDir(), Dirs: paths.Dirs{Runtime: dir, State: dir},
		Signals: signals, Stop: func() {}, Version: "lampause test",
	}, stdout, stderr, signals
}

func TestMainRunsAJob(t *testing.T) {
	f := newFakeJob(frame(0, 0, "hello\n"), frame(1, 0, "world\n"), podapi.Output{Rank: 1, FD: 2, Data: []byte("oops\n")})
	f.ended = control.Ended{ExitCode: 7, Summary: "job 3 (sh): 1 recovery"}
	p, stdout, stderr, _ := f.start(t)
	if code := Main(t.Context(), p, []string{"-n", "2", "-l", "sh"}); code != 7 {
		t.Errorf("exit code %d", code)
	}
	if stdout.String() != "[0] hello\n[1] world\n" || stderr.String() != "[1] oops\nmpirun: job 3 (sh): 1 recovery\n" {
		t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
	}
	if f.spec.Ranks != 2 || f.spec.OnFailure != job.OnFailurePause || f.spec.PPN != 0 {
		t.Errorf("submitted %+v", f.spec)
	}
	if entries, err := os.ReadDir(p.Dirs.Runtime); err != nil || len(entries) != 1 {
		t.Errorf("left in the runtime directory: %v, %v", entries, err)
	}
}

func TestMainFitsTheCluster(t *testing.T) {
	tests := []struct {
		alive     int
		args      string
		onFailure string
		ppn       int
		note      bool
	}{
		{3, "-n 4 sh", job.OnFailurePause, 0, false},
		{2, "-n 4 sh", job.OnFailureAbort, 0, false},
		{2, "-n 4 --ckpt-interval 5s sh", job.OnFailureAbort, 0, true},
		{2, "-n 4 --on-failure pause sh", job.OnFailurePause, 0, false},
		{3, "-n 4 --oversubscribe sh", job.OnFailurePause, 2, false},
		{3, "-n 5 --oversubscribe -H n1,n2 sh", job.OnFailurePause, 3, false},
	}
	for _, tt := range tests {
		f := newFakeJob()
		f.nodes = f.nodes[:tt.alive]
		p, _, stderr, _ := f.start(t)
		if code := Main(t.Context(), p, strings.Fields(tt.args)); code != 0 {
			t.Errorf("%s: exit code %d: %s", tt.args, code, stderr.String())
		}
		if f.spec.OnFailure != tt.onFailure || f.spec.PPN != tt.ppn || (stderr.String() != "") != tt.note {
			t.Errorf("%s on %d nodes: %s, ppn %d, %q", tt.args, tt.alive, f.spec.OnFailure, f.spec.PPN, stderr.String())
		}
	}
}

func TestMainForwardsStdin(t *testing.T) {
	f := newFakeJob()
	f.held, f.reads = true, true
	p, _, stderr, _ := f.start(t)
	p.Stdin = strings.NewReader("a longer text than is taken at once")
	if code := Main(t.Context(), p, []string{"cat"}); code != 0 {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	if string(f.input) != "a longer text than is taken at once" || !f.eof {
		t.Errorf("%q, end %v", f.input, f.eof)
	}
}

func TestMainWithoutACluster(t *testing.T) {
	var stderr buffer
	p := Process{Name: "mpirun", Stderr: &stderr, Environ: []string{"PATH=/bin"}, Dir: "/", Dirs: paths.Dirs{Runtime: t.TempDir()}}
	if code := Main(t.Context(), p, []string{"sh"}); code != job.ExitNoNodes || !strings.Contains(stderr.String(), "lam boot") {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
	for args, want := range map[string]int{"-n 0 sh": job.ExitUsage, "nosuchprogram": job.ExitUsage, "/bin": job.ExitPermission, "-f /nofile sh": job.ExitConfig} {
		if code := Main(t.Context(), p, strings.Fields(args)); code != want {
			t.Errorf("%s: exit code %d, want %d", args, code, want)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	var stdout buffer
	p := Process{Name: "lam run", Stdout: &stdout, Version: "lampause test"}
	if Main(t.Context(), p, []string{"--help"}) != 0 || !strings.HasPrefix(stdout.String(), "Usage: lam run [OPTIONS]") {
		t.Errorf("%q", stdout.String())
	}
	if Main(t.Context(), p, []string{"-V"}) != 0 || !strings.HasSuffix(stdout.String(), "lampause test\n") {
		t.Errorf("%q", stdout.String())
	}
}

// runUntil runs a held job; the verbs that the fake gets decide when it ends.
func runUntil(t *testing.T, f *fakeJob, script func(signals chan os.Signal), args ...string) (int, string, string) {
	t.Helper()
	f.held = true
	p, stdout, stderr, signals := f.start(t)
	script(signals)
	code := Main(t.Context(), p, append(args, "--stdin", "none", "sh"))
	return code, stdout.String(), stderr.String()
}

func TestCtrlCOnceAndTwice(t *testing.T) {
	f := newFakeJob()
	f.ended.ExitCode = 143
	code, _, stderr := runUntil(t, f, func(s chan os.Signal) {
		f.onVerb = func(string) { close(f.finish) }
		s <- syscall.SIGINT
	})
	if code != 143 || !slices.Equal(f.verbs, []string{"signal 15"}) || !strings.Contains(stderr, "once more to kill it") {
		t.Errorf("once: exit code %d, %q, %q", code, f.verbs, stderr)
	}
	f = newFakeJob()
	_, _, _ = runUntil(t, f, func(s chan os.Signal) {
		f.onVerb = func(v string) {
			if v == "kill" {
				close(f.finish)
			}
		}
		s <- syscall.SIGTERM
		s <- syscall.SIGINT
	})
	if !slices.Equal(f.verbs, []string{"signal 15", "kill"}) {
		t.Errorf("twice: %q", f.verbs)
	}
}

func TestSuspendAndForward(t *testing.T) {
	f := newFakeJob()
	_, _, _ = runUntil(t, f, func(s chan os.Signal) {
		f.onVerb = func(v string) {
			if v == "signal 12" {
				close(f.finish)
			}
		}
		s <- syscall.SIGCONT // without a suspension: ignored
		s <- syscall.SIGTSTP
		s <- syscall.SIGCONT
		s <- syscall.SIGUSR2
	})
	if !slices.Equal(f.verbs, []string{"suspend", "resume", "signal 12"}) {
		t.Errorf("%q", f.verbs)
	}
}

func TestHangUpLeavesTheJobToAttach(t *testing.T) {
	f := newFakeJob(frame(0, 0, "one\ntwo"))
	f.held = true
	p, stdout, stderr, signals := f.start(t)
	p.Stdin = nil
	f.onVerb = func(v string) { t.Errorf("the job got %s", v) }
	hangUp := &hook{buffer: stdout, want: "one\n", do: func() { signals <- syscall.SIGHUP }}
	p.Stdout = hangUp
	if code := Main(t.Context(), p, []string{"--stdin", "none", "sh"}); code != 129 || !strings.Contains(stderr.String(), "lam attach 3") {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
	// "two" was printed when mpirun ended, as an unfinished line.
	f.frames = []podapi.Output{frame(0, 0, "one\ntwo"), frame(0, 7, " three\n")}
	close(f.finish)
	p.Stdout = stdout
	if code := Attach(t.Context(), p, 3, AttachOptions{}); code != 0 || stdout.String() != "one\ntwo three\n" {
		t.Errorf("exit code %d, stdout %q", code, stdout.String())
	}
	if last := f.froms[len(f.froms)-1]; last != "0.1:7" {
		t.Errorf("attached from %q", last)
	}
}

// hook does something once when a text has been written.
type hook struct {
	*buffer
	want string
	once sync.Once
	do   func()
}

func (h *hook) Write(p []byte) (int, error) {
	n, err := h.buffer.Write(p)
	if strings.Contains(h.String(), h.want) {
		h.once.Do(h.do)
	}
	return n, err
}

func TestReaderGoneEndsTheJob(t *testing.T) {
	f := newFakeJob(frame(0, 0, "line\n"))
	f.held = true
	f.ended.ExitCode = 143
	p, _, stderr, _ := f.start(t)
	p.Stdout = brokenWriter{syscall.EPIPE}
	f.onVerb = func(string) { close(f.finish) }
	if code := Main(t.Context(), p, []string{"--stdin", "none", "yes"}); code != 141 {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
	if !slices.Equal(f.verbs, []string{"signal 15"}) {
		t.Errorf("%q", f.verbs)
	}
}

// TestSilentStreamIsOpenedAnew: the lamd that sends the output loses its power
// without a word; the job ends, and its last lines come from another one.
func TestSilentStreamIsOpenedAnew(t *testing.T) {
	f := newFakeJob()
	f.silent = 1
	f.frames = []podapi.Output{frame(0, 0, "last words\n")}
	p, stdout, stderr, _ := f.start(t)
	if code := Main(t.Context(), p, []string{"--stdin", "none", "sh"}); code != 0 || stdout.String() != "last words\n" {
		t.Errorf("exit code %d, %q, %q", code, stdout.String(), stderr.String())
	}
	if len(f.froms) != 2 {
		t.Errorf("the stream was opened %d times", len(f.froms))
	}
}

func TestAttachUnknownJob(t *testing.T) {
	dir := controltest.Runtime(t)
	controltest.Serve(t, dir, "n1", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		controltest.Refuse(w, http.StatusNotFound, job.ExitUsage, "no job 9")
	}))
	var stderr buffer
	p := Process{Name: "lam attach", Stderr: &stderr, Dirs: paths.Dirs{Runtime: dir}}
	if code := Attach(context.Background(), p, 9, AttachOptions{}); code != job.ExitUsage || stderr.String() != "lam attach: no job 9\n" {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
}

func TestStdinSenderChecksTheAnswer(t *testing.T) {
	for _, offset := range []int64{-1, 99} {
		err := pumpStdin(t.Context(), answer(offset), 1, strings.NewReader("abc"))
		if err == nil {
			t.Errorf("offset %d was believed", offset)
		}
	}
	if err := pumpStdin(t.Context(), gone{}, 1, strings.NewReader("abc")); err != nil {
		t.Errorf("a job that reads no more: %v", err)
	}
}

type answer int64

func (a answer) Stdin(context.Context, job.ID, int64, []byte, bool) (control.StdinTaken, error) {
	return control.StdinTaken{Offset: int64(a)}, nil
}

type gone struct{}

func (gone) Stdin(context.Context, job.ID, int64, []byte, bool) (control.StdinTaken, error) {
	return control.StdinTaken{}, &control.Error{Status: http.StatusGone}
}
