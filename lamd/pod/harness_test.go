package pod

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/lamd/nodelink"
)

// harness is the least that pods need of lamd: links, and a broker of fences.
type harness struct {
	t         *testing.T
	dir       string
	jobID     job.ID
	header    podapi.Header
	spec      job.Spec
	book      []job.PodAddress
	layout    []job.PodPlacement
	lease     int64
	pods      map[job.PodIndex]*testPod
	broker    *broker
	epoch     job.Epoch // newest committed
	suspended bool      // the job is: recoveries leave it so
}

// testPod is a running supervisor.
type testPod struct {
	h      *harness
	index  job.PodIndex
	dir    string
	client *http.Client
	status podapi.Status
}

// compile builds a program of testdata with mpicc.
func compile(t *testing.T, name string) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), name)
	src := filepath.Join(filepath.Dir(os.Args[0]), "testdata", name+".c")
	if out, err := exec.CommandContext(t.Context(), "mpicc", "-O1", "-o", exe, src).CombinedOutput(); err != nil {
		t.Fatalf("mpicc %s: %v\n%s", name, err, out)
	}
	return open(t, exe)
}

// compileNAS builds a NAS kernel, such as "is.W".
func compileNAS(t *testing.T, name string) string {
	t.Helper()
	src := filepath.Join(filepath.Dir(os.Args[0]), "nas")
	if _, err := os.Stat(src); err != nil {
		t.Skipf("no NAS kernels: %v", err)
	}
	kernel, class, _ := strings.Cut(name, ".")
	exe := filepath.Join(t.TempDir(), name)
	cmd := exec.CommandContext(t.Context(), "mpicc", "-O3", "-std=gnu11", "-DCLASS='"+class+"'", "-o", exe, kernel+".c", "nas.c", "-lm")
	cmd.Dir = src
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mpicc %s: %v\n%s", name, err, out)
	}
	return open(t, exe)
}

// open lets every user reach exe.
func open(t *testing.T, exe string) string {
	t.Helper()
	for d := filepath.Dir(exe); d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return exe
}

// newHarness describes a job of pods x each ranks; start starts a pod.
func newHarness(t *testing.T, pods, each int, argv ...string) *harness {
	t.Helper()
	dir, err := os.MkdirTemp("", "h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(os.TempDir(), 0o755)); err != nil {
		t.Fatal(err)
	}
	h := &harness{
		t: t, dir: dir, jobID: 7, pods: map[job.PodIndex]*testPod{},
		header: podapi.Header{Term: 1, Job: 7, Incarnation: 1},
		spec: job.Spec{
			Name: filepath.Base(argv[0]), Argv: argv, Env: os.Environ(), Dir: "/", Ranks: pods * each, Replicas: 1,
			MapBy: job.MapByBlock, OnFailure: job.OnFailurePause, NoSpare: job.NoSpareWait, Output: job.OutputLive, Files: "truncate",
		},
	}
	for p := range pods {
		pl := job.PodPlacement{Pod: job.PodIndex(p), Node: job.NodeID("n" + strconv.Itoa(p+1))}
		for r := range each {
			pl.Ranks = append(pl.Ranks, job.Rank(p*each+r))
		}
		h.layout = append(h.layout, pl)
		h.book = append(h.book, job.PodAddress{
			Pod: pl.Pod, IP: netip.AddrFrom4([4]byte{10, 9, 8, byte(10 + p)}),
			MAC: testMAC(dir, 1, p), Hostname: "pod" + strconv.Itoa(p),
		})
	}
	h.broker = newBroker(t, h, filepath.Join(dir, "lamd.sock"))
	return h
}

// testMAC is the hardware address of a pod, another one for every harness and
// incarnation: the link of a killed pod may live a moment longer.
func testMAC(dir string, inc job.Incarnation, pod int) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(dir)) // never fails
	s := h.Sum32()
	return fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", byte(s>>16), byte(s>>8), byte(s), byte(inc), 10+pod)
}

// start builds one pod on the link of a node (0 or 1).
func (h *harness) start(p job.PodIndex, node int, restore bool) *testPod {
	h.t.Helper()
	tp, err := h.tryStart(p, node, restore)
	if err != nil {
		h.t.Fatalf("start pod %d: %v\n%s", p, err, h.logOf(p))
	}
	return tp
}

func (h *harness) logOf(p job.PodIndex) string {
	var all []byte
	files, _ := filepath.Glob(filepath.Join(h.dir, fmt.Sprintf("pod%d.*", p), logFile))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		all = append(all, b...)
	}
	return string(all)
}

func (h *harness) tryStart(p job.PodIndex, node int, restore bool) (*testPod, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	dir := filepath.Join(h.dir, fmt.Sprintf("pod%d.%d", p, h.header.Incarnation))
	images := filepath.Join(h.dir, fmt.Sprintf("images%d", node))
	tmp := filepath.Join(dir, "tmp")
	for _, d := range []string{dir, images, tmp} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	spec := podapi.PodSpec{
		Header: h.header, Spec: h.spec, Node: "n" + job.NodeID(strconv.Itoa(node+1)), Placement: h.layout[p], Book: h.book, Layout: h.layout,
		ImageDir: images, TmpDir: tmp, Restore: restore, LeaseMS: h.lease, LamdSocket: h.broker.path,
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, specFile), b, 0o600); err != nil {
		return nil, err
	}
	if err := (Starter{}).Start(ctx, dir); err != nil {
		return nil, err
	}
	tp := &testPod{h: h, index: p, dir: dir, client: newLamdClient(filepath.Join(dir, podapi.Socket))}
	h.pods[p] = tp
	h.t.Cleanup(func() { tp.kill() })
	if err := tp.call(ctx, http.MethodGet, podapi.PathStatus, nil, &tp.status); err != nil {
		return nil, err
	}
	mac, err := net.ParseMAC(h.book[p].MAC)
	if err != nil {
		return nil, err
	}
	link := nodelink.Link{NetnsPID: tp.status.SupervisorPID, MAC: mac}
	if err := nodelink.NewMacvlan("node"+strconv.Itoa(node)).Attach(ctx, link); err != nil {
		return nil, err
	}
	if err := tp.call(ctx, http.MethodPost, podapi.PathLink, podapi.Link{Name: nodelink.Name}, nil); err != nil {
		return nil, err
	}
	return tp, tp.call(ctx, http.MethodGet, podapi.PathStatus, nil, &tp.status)
}

// startAll builds all pods, one per node in turn.
func (h *harness) startAll() {
	h.t.Helper()
	for p := range h.layout {
		h.start(job.PodIndex(p), p%2, false)
	}
}

// call is one request to the supervisor.
func (p *testPod) call(ctx context.Context, method, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return p.raw(ctx, method, path, bytes.NewReader(b), out)
}

func (p *testPod) raw(ctx context.Context, method, path string, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://pod"+path, body)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= 300 {
		b, _ := io.ReadAll(resp.Body)
		e := &control.Error{Status: resp.StatusCode}
		if json.Unmarshal(b, e) != nil || e.Message == "" {
			e.Message = string(b)
		}
		e.Status = resp.StatusCode
		return e
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

func (p *testPod) kill() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = p.raw(ctx, http.MethodPost, podapi.PathKill, nil, nil) // gone already is fine
	p.client.CloseIdleConnections()
	if p.h.t.Failed() {
		b, _ := os.ReadFile(filepath.Join(p.dir, logFile))
		p.h.t.Logf("pod %d in %s:\n%s", p.index, p.dir, b)
	}
}

// events follows the event stream until stop says so.
func (p *testPod) events(ctx context.Context, stop func(podapi.Event) bool) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://pod"+podapi.PathEvents+"?from=1", nil)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	dec := json.NewDecoder(resp.Body)
	for {
		var e podapi.Event
		if err := dec.Decode(&e); err != nil {
			return err
		}
		if stop(e) {
			return nil
		}
	}
}

// wait returns how the pod's ranks ended.
func (p *testPod) wait(limit time.Duration) map[job.Rank]job.Exit {
	p.h.t.Helper()
	ctx, cancel := context.WithTimeout(p.h.t.Context(), limit)
	defer cancel()
	exits := map[job.Rank]job.Exit{}
	err := p.events(ctx, func(e podapi.Event) bool {
		if e.Kind == evExit {
			exits[e.Rank] = *e.Exit
		}
		return len(exits) == len(p.h.layout[p.index].Ranks)
	})
	if err != nil {
		p.h.t.Fatalf("pod %d: ranks did not end: %v; ended: %v", p.index, err, exits)
	}
	return exits
}

// waitAll returns how all ranks of the job ended.
func (h *harness) waitAll(limit time.Duration) map[job.Rank]job.Exit {
	h.t.Helper()
	all := map[job.Rank]job.Exit{}
	for _, p := range h.pods {
		maps.Copy(all, p.wait(limit))
	}
	return all
}

// output returns what a rank wrote so far.
func (p *testPod) output(r job.Rank, fd int) string {
	p.h.t.Helper()
	_, s := p.outputFrom(r, fd)
	return s
}

// outputFrom returns what is kept of the output of a rank, and where it
// begins.
func (p *testPod) outputFrom(r job.Rank, fd int) (int64, string) {
	p.h.t.Helper()
	var b bytes.Buffer
	at := int64(-1)
	path := fmt.Sprintf("%s?rank=%d&fd=%d&from=0&follow=0", podapi.PathOutput, r, fd)
	req, err := http.NewRequestWithContext(p.h.t.Context(), http.MethodGet, "http://pod"+path, nil)
	if err != nil {
		p.h.t.Fatal(err)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		p.h.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	dec := json.NewDecoder(resp.Body)
	for {
		var f podapi.Output
		err := dec.Decode(&f)
		if errors.Is(err, io.EOF) {
			return max(at, 0), b.String()
		}
		if err != nil {
			p.h.t.Fatal(err)
		}
		if at < 0 {
			at = f.Offset
		}
		b.Write(f.Data)
	}
}
