package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/controltest"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

func client(dir string) *control.Client {
	return control.NewClient(controltest.Sockets(dir), dir)
}

func TestNothingBooted(t *testing.T) {
	dir := controltest.Runtime(t)
	_, err := client(dir).Nodes(t.Context())
	if !errors.Is(err, control.ErrNoDaemon) || control.ExitCode(err) != job.ExitNoNodes || !strings.Contains(err.Error(), dir) {
		t.Errorf("%v with exit code %d", err, control.ExitCode(err))
	}
}

func TestAsksAnotherWhenOneIsDead(t *testing.T) {
	dir := controltest.Runtime(t)
	nodes := func(w http.ResponseWriter, _ *http.Request) { controltest.JSON(w, []control.Node{{Node: "n1"}}) }
	stop := controltest.Serve(t, dir, "n1", http.HandlerFunc(nodes))
	controltest.Serve(t, dir, "n2", http.HandlerFunc(nodes))
	c := client(dir)
	for i := range 6 {
		if i == 3 {
			stop()
		}
		if got, err := c.Nodes(t.Context()); err != nil || len(got) != 1 {
			t.Fatalf("call %d: %v, %v", i, got, err)
		}
	}
}

func TestServerErrorIsFinal(t *testing.T) {
	dir := controltest.Runtime(t)
	var asked atomic.Int32
	for _, n := range []job.NodeID{"n1", "n2"} {
		controltest.Serve(t, dir, n, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			controltest.Refuse(w, http.StatusNotFound, job.ExitUsage, "no job 7")
		}))
	}
	_, err := client(dir).Job(t.Context(), 7)
	var e *control.Error
	if !errors.As(err, &e) || e.Status != 404 || e.Exit != job.ExitUsage || e.Message != "no job 7" || asked.Load() != 1 {
		t.Errorf("%#v after %d requests", err, asked.Load())
	}
}

func TestUnreadableErrorIsInternal(t *testing.T) {
	dir := controltest.Runtime(t)
	controltest.Serve(t, dir, "n1", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		_, _ = fmt.Fprint(w, "not json")
	}))
	_, err := client(dir).Jobs(t.Context())
	if control.ExitCode(err) != job.ExitInternal || !strings.Contains(err.Error(), "not json") {
		t.Error(err)
	}
}

func TestNoLeaderIsRetried(t *testing.T) {
	dir := controltest.Runtime(t)
	var asked atomic.Int32
	controltest.Serve(t, dir, "n1", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			controltest.Refuse(w, http.StatusServiceUnavailable, job.ExitNoNodes, "no leader")
			return
		}
		controltest.JSON(w, []control.Job{})
	}))
	if _, err := client(dir).Jobs(t.Context()); err != nil || asked.Load() != 3 {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
}

func TestSubmissionKeepsItsKey(t *testing.T) {
	dir := controltest.Runtime(t)
	keys := make(chan string, 8)
	var asked atomic.Int32
	controltest.Serve(t, dir, "n1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		keys <- r.Header.Get(control.HeaderKey)
		var spec job.Spec
		if err := json.NewDecoder(r.Body).Decode(&spec); err != nil || spec.Ranks != 3 {
			t.Errorf("spec %+v: %v", spec, err)
		}
		if asked.Add(1) == 1 {
			panic(http.ErrAbortHandler) // the answer is lost
		}
		controltest.JSON(w, control.Submitted{Job: 9})
	}))
	id, err := client(dir).Submit(t.Context(), job.Spec{Ranks: 3})
	if a, b := <-keys, <-keys; err != nil || id != 9 || a == "" || a != b {
		t.Errorf("job %v, %v, keys %q and %q", id, err, a, b)
	}
}

func TestSignalIsSentOnce(t *testing.T) {
	dir := controltest.Runtime(t)
	var asked atomic.Int32
	controltest.Serve(t, dir, "n1", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked.Add(1)
		panic(http.ErrAbortHandler)
	}))
	if err := client(dir).Signal(t.Context(), 1, 10); err == nil || asked.Load() != 1 {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
}

// TestOutputGoesOnAfterLoss kills the lamd in the middle of a stream: the next
// one is asked from the reader's position.
func TestOutputGoesOnAfterLoss(t *testing.T) {
	dir := controltest.Runtime(t)
	froms := make(chan string, 8)
	h := func(frames []podapi.Output, abort bool) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			froms <- r.URL.Query().Get("from")
			controltest.Frames(w, frames...)
			if abort {
				panic(http.ErrAbortHandler)
			}
		})
	}
	controltest.Serve(t, dir, "n1", h([]podapi.Output{{Rank: 0, FD: 1, Data: []byte("ab")}}, true))
	at := control.Cursor{}
	var got string
	take := func(o podapi.Output) error {
		got += string(o.Data)
		at[control.Stream{Rank: o.Rank, FD: o.FD}] = o.Offset + int64(len(o.Data))
		if got == "ab" {
			controltest.Serve(t, dir, "n1", h([]podapi.Output{{Rank: 0, FD: 1, Offset: 2, Data: []byte("c")}}, false))
		}
		return nil
	}
	err := client(dir).Output(t.Context(), 1, func() control.Cursor { return at }, take)
	if a, b := <-froms, <-froms; err != nil || got != "abc" || a != "" || b != "0.1:2" {
		t.Errorf("%q, %v; asked from %q and %q", got, err, a, b)
	}
}

func TestOutputEndsWithConsumersError(t *testing.T) {
	dir := controltest.Runtime(t)
	controltest.Serve(t, dir, "n1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		controltest.Frames(w, podapi.Output{FD: 1, Data: []byte("x")})
		<-r.Context().Done()
	}))
	full := errors.New("full")
	err := client(dir).Output(t.Context(), 1, func() control.Cursor { return nil }, func(podapi.Output) error { return full })
	if !errors.Is(err, full) {
		t.Error(err)
	}
}

func TestEventsAreNotRepeated(t *testing.T) {
	dir := controltest.Runtime(t)
	ctx, cancel := context.WithCancel(t.Context())
	afters := make(chan string, 8)
	controltest.Serve(t, dir, "n1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		afters <- r.URL.Query().Get("after")
		for i := range 3 {
			controltest.JSON(w, control.Event{Seq: uint64(i + 1), Event: "e"})
		}
		if len(afters) == 1 {
			panic(http.ErrAbortHandler)
		}
		controltest.JSON(w, control.Event{Seq: 4, Event: "last"})
	}))
	var got []uint64
	err := client(dir).Events(ctx, control.EventFilter{Follow: true}, func(e control.Event) error {
		got = append(got, e.Seq)
		if e.Event == "last" {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || got[len(got)-1] != 4 {
		t.Fatalf("%v, %v", got, err)
	}
	for i, seq := range got {
		if seq != uint64(i+1) {
			t.Fatalf("events %v", got)
		}
	}
}

func TestWaitSurvivesALostAnswer(t *testing.T) {
	dir := controltest.Runtime(t)
	var asked atomic.Int32
	controltest.Serve(t, dir, "n1", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			panic(http.ErrAbortHandler)
		}
		controltest.JSON(w, control.Ended{ExitCode: 5})
	}))
	if e, err := client(dir).Wait(t.Context(), 1); err != nil || e.ExitCode != 5 {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestCallEndsWithContext(t *testing.T) {
	dir := controltest.Runtime(t)
	controltest.Serve(t, dir, "n1", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	time.AfterFunc(20*time.Millisecond, func() { cancel(why) })
	if _, err := client(dir).Wait(ctx, 1); !errors.Is(err, why) {
		t.Error(err)
	}
}

func TestCursorRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := control.Cursor{}
		for range rapid.IntRange(0, 5).Draw(t, "streams") {
			s := control.Stream{Rank: job.Rank(rapid.IntRange(0, job.MaxRanks-1).Draw(t, "rank")), FD: rapid.IntRange(1, 2).Draw(t, "fd")}
			c[s] = rapid.Int64Range(1, 1<<62).Draw(t, "offset")
		}
		got, err := control.ParseCursor(c.String())
		if err != nil || len(got) != len(c) || len(c) > 0 && !reflect.DeepEqual(got, c) {
			t.Fatalf("%v -> %q -> %v, %v", c, c.String(), got, err)
		}
	})
}

func FuzzParseCursor(f *testing.F) {
	for _, s := range []string{"", "0.1:2", "0.1:2,3.2:9", "0.3:1", "x", "1.1:-1", "99999999.1:1", ","} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := control.ParseCursor(text)
		if err != nil {
			return
		}
		again, err := control.ParseCursor(c.String())
		if err != nil {
			t.Fatalf("%q -> %q: %v", text, c.String(), err)
		}
		for s, o := range c {
			if again[s] != o {
				t.Fatalf("%q: %v became %v", text, c, again)
			}
		}
	})
}
