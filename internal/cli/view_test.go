package cli

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/controltest"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// updateGolden rewrites testdata instead of comparing.
var updateGolden = flag.Bool("update", false, "rewrite the golden files")

// viewServer is a cluster with two jobs, as a lamd shows it.
func viewServer(t *testing.T) http.Handler {
	t.Helper()
	code := 75
	at := time.Date(2026, 3, 1, 12, 0, 0, 250e6, time.Local)
	place := []job.PodPlacement{{Pod: 0, Node: "n1", Ranks: []job.Rank{0, 1}}, {Pod: 1, Node: "n5", Ranks: []job.Rank{2, 3}}}
	running := control.Job{
		Job: 3, Name: "cg.B", State: job.Running, Ranks: 4, Nodes: []job.NodeID{"n1", "n5"}, Epoch: 12,
		Recoveries: 1, Placement: place, Protected: "YES",
	}
	failed := control.Job{
		Job: 2, Name: "mg.B", State: job.Failed, Ranks: 2, Nodes: []job.NodeID{}, Placement: []job.PodPlacement{}, ExitCode: &code, Protected: "NO",
	}
	detail := control.JobDetail{
		Job: running,
		Spec: job.Spec{
			Argv: []string{"/opt/cg.B", "-v"}, Dir: "/home/u", CkptInterval: 30 * time.Second, Replicas: 2,
			OnFailure: "pause", NoSpare: "wait", Files: "truncate", Output: "live",
		},
		Incarnation: 2,
		Book: []job.PodAddress{
			{Pod: 0, IP: netip.MustParseAddr("10.131.0.1"), Hostname: "lam-j3-p0"},
			{Pod: 1, IP: netip.MustParseAddr("10.131.0.2"), Hostname: "lam-j3-p1"},
		},
		Epochs: []control.EpochInfo{{
			Epoch: 12, Bytes: 484_123_456, NewBytes: 71_500_000, StallMS: 19.25, Time: at,
			Replicas: map[string][]job.NodeID{"1": {"n5", "n2"}, "0": {"n1", "n5"}},
		}},
		Bills: []control.Bill{{
			Incarnation: 2, Epoch: 11, Lost: []job.NodeID{"n2"}, Spares: []job.NodeID{"n5"},
			MS:      map[string]float64{"detect": 900, "agree": 12.5, "fence": 2000, "rollback": 92, "restore": 80.25, "total": 101, "lost_work": 12000},
			Skipped: 12, Cause: "lost node n2", AtMS: at.UnixMilli(),
		}},
		Reason: "last round abandoned: rank 2 was connecting",
		Exits:  []job.Exit{{Rank: 1, Signal: 11, Core: true}, {Rank: 0}},
	}
	events := []control.Event{
		{Seq: 1, Time: at, Event: "node.joined", Node: "n1", Data: map[string]any{"boot": 1, "role": "compute"}},
		{Seq: 2, Time: at, Event: "checkpoint.committed", Job: 3, Epoch: 12, Data: map[string]any{"stall_ms": 19.25, "bytes": 484123456, "replicas": 2, "scan_ms": 1.5}},
		{Seq: 3, Time: at, Event: "recovery.done", Job: 3, Epoch: 11, Data: map[string]any{"lost": []string{"n2"}, "reason": "two words"}},
	}
	mux := http.NewServeMux()
	nodes := []control.Node{
		{Node: "n1", Addr: "10.77.0.11", State: "alive", Role: "compute", Slots: 4, Ranks: []string{"3:0", "3:1", "3:2", "12:0"}, Jobs: []job.ID{3, 12}, Boot: 1, Raft: "leader"},
		{Node: "n2", Addr: "10.77.0.12", State: "dead", Role: "spare", Slots: 4, Boot: 2},
	}
	mux.HandleFunc("GET /v1/nodes", func(w http.ResponseWriter, _ *http.Request) { controltest.JSON(w, nodes) })
	mux.HandleFunc("GET /v1/jobs", func(w http.ResponseWriter, _ *http.Request) { controltest.JSON(w, []control.Job{failed, running}) })
	mux.HandleFunc("GET /v1/jobs/3", func(w http.ResponseWriter, _ *http.Request) { controltest.JSON(w, detail) })
	mux.HandleFunc("GET /v1/jobs/9", func(w http.ResponseWriter, _ *http.Request) {
		controltest.Refuse(w, http.StatusNotFound, job.ExitUsage, "no job 9; `lam jobs` lists them")
	})
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		for _, e := range events {
			if id := r.URL.Query().Get("job"); id == "" || id == e.Job.String() {
				controltest.JSON(w, e)
			}
		}
	})
	mux.HandleFunc("POST /v1/jobs/3/checkpoint", func(w http.ResponseWriter, _ *http.Request) {
		controltest.JSON(w, control.Checkpointed{Epoch: 13, Bytes: 1_500_000, StallMS: 8.04})
	})
	mux.HandleFunc("POST /v1/jobs/3/restart", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("epoch") == "99" {
			controltest.Refuse(w, http.StatusNotFound, job.ExitUsage, "job 3 has no epoch 99")
			return
		}
		controltest.JSON(w, control.Submitted{Job: 3})
	})
	mux.HandleFunc("POST /v1/jobs/3/suspend", func(w http.ResponseWriter, _ *http.Request) { controltest.JSON(w, struct{}{}) })
	mux.HandleFunc("POST /v1/jobs/3/vacate", func(w http.ResponseWriter, _ *http.Request) {
		controltest.Refuse(w, http.StatusConflict, job.ExitNoNodes, "job 3 is recovering")
	})
	mux.HandleFunc("GET /v1/jobs/3/wait", func(w http.ResponseWriter, _ *http.Request) { controltest.JSON(w, control.Ended{ExitCode: 5}) })
	mux.HandleFunc("GET /v1/jobs/3/output", func(w http.ResponseWriter, _ *http.Request) {
		controltest.Frames(w, podapi.Output{Rank: 2, FD: 1, Data: []byte("hello\n")})
	})
	return mux
}

// lam runs one command line against a runtime directory.
func lam(t *testing.T, runtime string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	env := map[string]string{"LAM_RUNTIME_DIR": runtime, "LAM_STATE_DIR": runtime}
	a := &App{
		Stdin: strings.NewReader(""), Stdout: &out, Stderr: &err, Format: formatTable,
		Env: paths.Env{Get: func(k string) string { return env[k] }, UID: os.Getuid(), Temp: os.TempDir()},
	}
	code = a.Run(t.Context(), args)
	return code, out.String(), err.String()
}

func TestViews(t *testing.T) {
	dir := controltest.Runtime(t)
	controltest.Serve(t, dir, "n1", viewServer(t))
	for name, args := range map[string]string{
		"jobs": "jobs", "jobs.json": "jobs -o json", "jobs-wide": "jobs -o wide", "nodes": "nodes", "nodes-wide": "nodes -o wide",
		"job": "job 3", "job.json": "job 3 -o json",
		"events": "events", "events.json": "events -o json", "events-wide": "events -o wide", "events-job": "events --job 3",
		"checkpoint": "checkpoint 3", "checkpoint.json": "checkpoint 3 -o json", "restart": "restart 3@11",
		"restart.json": "restart 3 -o json", "suspend": "suspend 3",
	} {
		t.Run(name, func(t *testing.T) {
			code, out, stderr := lam(t, dir, strings.Fields(args)...)
			if code != 0 || stderr != "" {
				t.Fatalf("exit code %d, %s", code, stderr)
			}
			if zone := time.Now().Format("-07:00"); strings.Contains(name, ".json") && zone != "+00:00" {
				t.Skip("the golden files hold UTC times")
			}
			golden := filepath.Join("testdata", name+".golden")
			if *updateGolden {
				if err := os.WriteFile(golden, []byte(out), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), out); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestListingsHaveTheContractsFields checks what scripts rely on.
func TestListingsHaveTheContractsFields(t *testing.T) {
	dir := controltest.Runtime(t)
	controltest.Serve(t, dir, "n1", viewServer(t))
	_, out, _ := lam(t, dir, "jobs", "-o", "json")
	var jobs []map[string]any
	if err := json.Unmarshal([]byte(out), &jobs); err != nil || len(jobs) != 2 {
		t.Fatalf("%v: %s", err, out)
	}
	for _, field := range strings.Fields("job name state ranks nodes epoch recoveries placement exit_code protected") {
		if _, ok := jobs[1][field]; !ok {
			t.Errorf("lam jobs: no %s", field)
		}
	}
	_, out, _ = lam(t, dir, "events", "-o", "json")
	line, _, _ := strings.Cut(strings.SplitN(out, "\n", 3)[1], "\n")
	var e map[string]any
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	for _, field := range strings.Fields("time event job epoch stall_ms bytes replicas") {
		if _, ok := e[field]; !ok {
			t.Errorf("lam events: no %s in %s", field, line)
		}
	}
}

func TestViewErrors(t *testing.T) {
	dir := controltest.Runtime(t)
	controltest.Serve(t, dir, "n1", viewServer(t))
	tests := []struct {
		args, want string
		code       int
	}{
		{"job", "missing JOB", job.ExitUsage},
		{"job x", `job id "x": not a positive number`, job.ExitUsage},
		{"job 9", "no job 9", job.ExitUsage},
		{"restart 3@x", `epoch "x": not a positive number`, job.ExitUsage},
		{"restart 3@99", "job 3 has no epoch 99", job.ExitUsage},
		{"vacate 3", "job 3 is recovering", job.ExitNoNodes},
		{"events --jobb 3", "did you mean --job?", job.ExitUsage},
		{"jbos", `did you mean "jobs"?`, job.ExitUsage},
		{"run --nosuch x", "unknown option --nosuch", job.ExitUsage},
	}
	for _, tt := range tests {
		code, _, stderr := lam(t, dir, strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("lam %s: exit code %d, %q", tt.args, code, stderr)
		}
	}
	if code, _, stderr := lam(t, controltest.Runtime(t), "jobs"); code != job.ExitNoNodes || !strings.Contains(stderr, "lam boot") {
		t.Errorf("no cluster: exit code %d, %q", code, stderr)
	}
}

func TestAttachEndsWithTheJobsCode(t *testing.T) {
	dir := controltest.Runtime(t)
	controltest.Serve(t, dir, "n1", viewServer(t))
	for _, args := range []string{"attach 3 -l", "restart 3 --attach"} {
		code, out, stderr := lam(t, dir, strings.Fields(args)...)
		if code != 5 || !strings.HasSuffix(out, "hello\n") || stderr != "" {
			t.Errorf("%s: exit code %d, %q, %q", args, code, out, stderr)
		}
	}
}

func TestFoldNodes(t *testing.T) {
	for want, nodes := range map[string][]job.NodeID{
		"":                    {},
		"n1":                  {"n1"},
		"n[1-3,5]":            {"n2", "n1", "n3", "n5"},
		"host,a[1,3],b7":      {"host", "a1", "b7", "a3"},
		"n0[1-2]":             {"n01", "n02"},
		"rack1-n[9-11],login": {"rack1-n9", "rack1-n10", "login", "rack1-n11"},
	} {
		if got := foldNodes(nodes); got != want {
			t.Errorf("%v: %q, want %q", nodes, got, want)
		}
	}
}

func TestSizeText(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 999: "999B", 1000: "1.0kB", 484_123_456: "484.1MB", 2_000_000_000_000_000: "2000.0TB"} {
		if got := sizeText(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}
