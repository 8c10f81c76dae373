package lamd

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
	"github.com/lampause/lampause/scheduler/conduct"
)

// wideActions is one action of each kind for each of n nodes.
func wideActions(n int) []conduct.Action {
	var out []conduct.Action
	env := []string{"TOKEN=" + strings.Repeat("x", 100)}
	record := &scheduler.Job{ID: 7, Spec: job.Spec{Name: "app", Env: env}}
	epoch := scheduler.Epoch{Epoch: 3, Images: []scheduler.PodImage{{Pod: 0, Written: podapi.Written{Digest: "d"}}}}
	ref := conduct.Ref(0)
	for i := range n {
		id, pod := nodeName(i), job.PodIndex(i)
		next := func() conduct.Ref { ref++; return ref }
		spec := podapi.PodSpec{Header: podapi.Header{Job: 7}, Spec: record.Spec, Placement: job.PodPlacement{Pod: pod}}
		out = append(out,
			conduct.StartPod{Ref: next(), Job: 7, Pod: pod, Node: id, Spec: spec, Timeout: time.Minute},
			conduct.KillPod{Ref: next(), Job: 7, Pod: pod, Node: id, UpTo: 2, Timeout: time.Minute},
			conduct.Copy{Ref: next(), Job: 7, Epoch: 3, Pod: pod, To: id, From: []job.NodeID{"n00", "n01"}, Urgent: true, Timeout: time.Minute},
			conduct.Seal{Ref: next(), Node: id, Job: record, Epoch: epoch, Timeout: time.Minute},
			conduct.PullFences{Ref: next(), Job: 7, Pod: pod, Node: id, Timeout: time.Second},
			conduct.Copy{Ref: next(), Job: 7, Epoch: 3, Pod: pod, To: id, Timeout: time.Minute},
		)
	}
	return out
}

// podOf is what the node of that name has.
func podOf(id job.NodeID) job.PodIndex {
	n, _ := strconv.Atoi(strings.TrimPrefix(string(id), "n"))
	return job.PodIndex(n)
}

// answerAll is a node that takes everything; n03 cannot find the program, n04
// finds no intact image, and n05 is out of order.
func answerAll(t *testing.T) func(context.Context, job.NodeID, treePart) (any, int, error) {
	return func(_ context.Context, id job.NodeID, p treePart) (any, int, error) {
		if id == "n05" {
			return nil, 0, unavailable("supervisor of job 7: broken pipe")
		}
		switch p.Kind {
		case treeStart:
			return carryOut(t.Context(), p, func(_ context.Context, s podapi.PodSpec) error {
				if s.Placement.Pod != podOf(id) || s.Spec.Name != "app" || len(s.Spec.Env) != 1 {
					t.Errorf("%s starts %+v", id, s)
				}
				if id == "n03" {
					return &control.Error{Message: "no such program", Exit: job.ExitUsage, Status: http.StatusUnprocessableEntity}
				}
				return nil
			})
		case treeKill:
			return carryOut(t.Context(), p, func(_ context.Context, r killRequest) error {
				if r != (killRequest{Job: 7, Pod: podOf(id), UpTo: 2}) {
					t.Errorf("%s kills %+v", id, r)
				}
				return nil
			})
		case treeSeal:
			return carryOut(t.Context(), p, func(_ context.Context, r sealRequest) error {
				var j scheduler.Job
				if err := json.Unmarshal(r.Commit.Record, &j); err != nil || j.Spec.Name != "app" || r.Commit.Epoch != 3 {
					t.Errorf("%s seals %+v", id, r)
				}
				return nil
			})
		case treeCopy:
			out := copyReply{Damaged: []job.NodeID{"n01"}}
			if id == "n04" {
				out = copyReply{Damaged: []job.NodeID{"n00", "n01"}, Failed: "no holder could give it"}
			}
			return out, http.StatusOK, nil
		case treeFences:
			return []podapi.Fence{{Pod: podOf(id), Seq: 1}}, http.StatusOK, nil
		}
		return nil, 0, badRequest("part of kind " + string(p.Kind))
	}
}

// TestEverythingWideGoesThroughTheTree: what goes to more nodes than the tree
// is wide goes through it, each node gets its own, and every answer means what
// it means when a node is asked directly.
func TestEverythingWideGoesThroughTheTree(t *testing.T) {
	const n = 20
	f := newForest(n, 4, testLog(t))
	f.perform = answerAll(t)
	f.dead["n06"] = true
	rest, batches := f.all["n00"].split(wideActions(n))
	if len(rest) != n || len(batches) != 5 {
		t.Fatalf("%d batches, %d others", len(batches), len(rest))
	}
	for _, acts := range batches {
		dones := f.all["n00"].call(testContext(t), acts)
		if len(dones) != n {
			t.Errorf("%d answers", len(dones))
		}
		for i, d := range dones {
			a, _ := askOf(acts[i])
			if d.Ref != a.ref {
				t.Errorf("answer %d to %d", d.Ref, a.ref)
			}
			checkWide(t, a, d)
		}
	}
}

func checkWide(t *testing.T, a treeAsk, d conduct.Done) {
	t.Helper()
	var kind conduct.FailureKind
	exit := 0
	switch {
	case a.node == "n05" || a.node == "n06":
		kind, exit = conduct.Unreachable, job.ExitNoNodes
		if a.node == "n06" {
			exit = 0
		}
	case a.node == "n03" && a.kind == treeStart:
		kind, exit = conduct.Refused, job.ExitUsage
	case a.node == "n04" && a.kind == treeCopy:
		kind = conduct.NoIntactCopy
	case a.kind == treeCopy:
		if !slices.Equal(d.Damaged, []job.NodeID{"n01"}) {
			t.Errorf("%s: damaged %v", a.node, d.Damaged)
		}
	case a.kind == treeFences:
		if len(d.Fences) != 1 || d.Fences[0].Pod != podOf(a.node) {
			t.Errorf("%s: fences %+v", a.node, d.Fences)
		}
	}
	if (kind == 0) != (d.Failure == nil) || d.Failure != nil && (d.Failure.Kind != kind || d.Failure.Exit != exit) {
		t.Errorf("%s %s: %+v, want kind %d, exit %d", a.kind, a.node, d.Failure, kind, exit)
	}
}

// A node carries parts out as its node API does.
func TestNodePerforms(t *testing.T) {
	n, _ := testNode(t, "n1")
	written := writeImage(t, n.store)
	body := func(v any) json.RawMessage { return mustJSON(t, v) }
	for name, c := range map[string]struct {
		part   treePart
		status int
		want   string
	}{
		"phase without a pod": {treePart{Kind: treePhase, Job: 7, Body: body(podapi.PhaseRequest{})}, http.StatusNotFound, ""},
		"malformed phase":     {treePart{Kind: treePhase, Body: body(3)}, http.StatusBadRequest, ""},
		"malformed start":     {treePart{Kind: treeStart, Body: body(3)}, http.StatusBadRequest, ""},
		"malformed copy":      {treePart{Kind: treeCopy, Body: body(3)}, http.StatusBadRequest, ""},
		"start on another boot": {
			treePart{Kind: treeStart, Body: body(podapi.PodSpec{Boot: 99})}, http.StatusConflict, "",
		},
		"kill of none":      {treePart{Kind: treeKill, Body: body(killRequest{Job: 7, UpTo: 1})}, http.StatusOK, "{}"},
		"copy that is here": {treePart{Kind: treeCopy, Body: body(copyRequest{Job: 7, Epoch: 3, Written: written, Urgent: true})}, http.StatusOK, "{}"},
		"seal of no images": {treePart{Kind: treeSeal, Body: body(sealRequest{})}, http.StatusInternalServerError, ""},
		"fences of none":    {treePart{Kind: treeFences, Job: 7}, http.StatusNotFound, ""},
		"unknown":           {treePart{Kind: "dance"}, http.StatusBadRequest, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fanout{self: "n1", local: n, log: testLog(t)}
			d := f.performOne(testContext(t), c.part)
			if d.Status != c.status || string(d.Reply) != c.want || (d.Error == "") != (c.status == http.StatusOK) {
				t.Errorf("%+v", d)
			}
		})
	}
}
