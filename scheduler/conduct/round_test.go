package conduct

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// answers returns what verbs were answered.
func (w *watched) answers() []Answer { return actionsOf[Answer](w.acts) }

func (s *stepped) checkpoint() {
	s.t.Helper()
	s.open = nil
	s.tell(Verb{Ticket: 77, Job: 1, Kind: VerbCheckpoint})
}

// epochTold returns the commands about epochs that were proposed, in a word.
func (w *watched) epochsSaid() string {
	var out []string
	for _, c := range w.said {
		switch {
		case c.BeginEpoch != nil:
			out = append(out, "begin")
		case c.Commit != nil:
			out = append(out, "commit")
		case c.Abandon != nil:
			out = append(out, "abandon: "+c.Abandon.Reason)
		}
	}
	return strings.Join(out, ", ")
}

var bothOps = map[podapi.Op][]string{ //nolint:gochecknoglobals // a table
	podapi.OpFreeze: {"freeze 0", "freeze 1"}, podapi.OpCaptureSend: {"capture-send 0", "capture-send 1"},
	podapi.OpCaptureRecv: {"capture-recv 0", "capture-recv 1"}, podapi.OpResume: {"resume 0", "resume 1"},
}

var stall = []podapi.Op{podapi.OpFreeze, podapi.OpCaptureSend, podapi.OpCaptureRecv, podapi.OpResume} //nolint:gochecknoglobals // a table

// TestRound plays one from end to end: what is asked, in which order, and what
// comes of it.
func TestRound(t *testing.T) {
	s := newStepped(t, 1, nil)
	var paired map[job.PodIndex][]podapi.Mark
	s.l.cfg.Pair = func(m map[job.PodIndex][]podapi.Mark) (map[job.PodIndex][]podapi.Mark, error) {
		paired = m
		return map[job.PodIndex][]podapi.Mark{0: m[1], 1: m[0]}, nil
	}
	s.checkpoint()
	mark := func(seq, next uint32) Done {
		m := podapi.Mark{Flow: podapi.Flow{Local: "a", Remote: "b"}, WriteSeq: seq, RcvNxt: next}
		return Done{Reply: &podapi.PhaseReply{Marks: []podapi.Mark{m}, TimesMS: map[string]float64{"memory": float64(seq)}}}
	}
	s.until(s.now + 2*time.Millisecond)
	s.answer(Done{}, bothOps[podapi.OpFreeze]...)
	s.until(s.now + 3*time.Millisecond)
	s.answer(mark(5, 0), "capture-send 0")
	s.answer(mark(4, 0), "capture-send 1")
	s.until(s.now + 4*time.Millisecond)
	s.answer(mark(0, 8), "capture-recv 0")
	s.answer(mark(0, 9), "capture-recv 1")
	if d := cmp.Diff(map[job.PodIndex][]podapi.Mark{0: mark(5, 8).Reply.Marks, 1: mark(4, 9).Reply.Marks}, paired); d != "" {
		t.Error(d)
	}
	if q := s.find("resume 0").(Call).Request; q.Epoch != 2 || len(q.Peers) != 1 || q.Peers[0].WriteSeq != 4 { //nolint:errcheck,forcetypeassert // by its name
		t.Errorf("%+v", q)
	}
	s.until(s.now + time.Millisecond)
	s.answer(Done{}, bothOps[podapi.OpResume]...)
	wrote := func(files ...int64) Done {
		w := &podapi.Written{Digest: "d", Files: map[string]podapi.File{}}
		for i, n := range files {
			w.Files[string(rune('a'+i))] = podapi.File{Size: n}
		}
		return Done{Reply: &podapi.PhaseReply{Written: w}}
	}
	s.until(s.now + 50*time.Millisecond)
	s.answer(wrote(3, 4), "write 0")
	s.until(s.now + 10*time.Millisecond)
	s.answer(Done{}, "copy 0")
	d := wrote(1)
	d.Reply.Bytes = 20
	s.answer(d, "write 1")
	if got := s.epochsSaid(); got != "begin" {
		t.Errorf("before all copies: %s", got)
	}
	s.until(s.now + 10*time.Millisecond)
	s.answer(Done{}, "copy 1")
	if got := s.epochsSaid(); got != "begin, commit" {
		t.Fatalf("in the end: %s", got)
	}
	e := s.job().Newest()
	want := map[string]float64{"freeze": 2, "capture": 3, "copy": 4, "resume": 1, "write": 70, "memory": 5}
	if e.StallMS != 10 || e.Bytes != 27 || e.SetDigest != setDigest(map[job.PodIndex]string{0: "d", 1: "d"}) || !maps.Equal(e.TimesMS, want) {
		t.Errorf("%+v", e)
	}
	if got := s.answers(); len(got) != 1 || got[0].Failure != nil || got[0].Epoch != 2 || got[0].Bytes != 27 || got[0].StallMS != 10 {
		t.Errorf("%+v", got)
	}
	if q := s.find("commit 1").(Call).Request; q.SetDigest != e.SetDigest || q.RaftIndex != e.Index || q.Epoch != 2 || e.Index == 0 { //nolint:errcheck,forcetypeassert // by its name
		t.Errorf("%+v", q)
	}
}

// TestRoundThatFails is abandoned; whoever waits for it hears, unless the cause
// may pass.
func TestRoundThatFails(t *testing.T) {
	for _, kind := range []FailureKind{Unreachable, Refused, RefusedNow, FailedForGood} {
		for i, op := range stall {
			s := newStepped(t, 1, nil)
			s.checkpoint()
			for _, before := range stall[:i] {
				s.answer(Done{}, bothOps[before]...)
			}
			s.answer(Done{}, string(op)+" 1")
			s.answer(Done{Failure: &Failure{Kind: kind, Text: "sorry"}}, string(op)+" 0")
			if kind == Unreachable { // is repeated until the stall is too long
				s.until(s.now + s.l.cfg.FreezeMax + s.l.cfg.SealMax)
			}
			if got := s.epochsSaid(); !strings.HasPrefix(got, "begin, abandon: "+string(op)+": ranks [0 1] on n1: ") {
				t.Errorf("%s, %v: %s", op, kind, got)
			}
			again := kind == RefusedNow || kind == Unreachable
			if got := s.answers(); again != (len(got) == 0) || !again && (got[0].Failure == nil || !strings.Contains(got[0].Failure.Text, "sorry")) {
				t.Errorf("%s, %v: %+v", op, kind, got)
			}
			if !s.waits("abandon 0") || !s.waits("abandon 1") || s.job().Unprotected == "" {
				t.Errorf("%s, %v: not all pods hear of it", op, kind)
			}
			s.said, s.l.jobs[1].rounds.at = nil, s.now
			s.tell(Tick{})
			if got := s.epochsSaid(); got != "" {
				t.Errorf("%s, %v: another round before all pods know: %s", op, kind, got)
			}
		}
	}
}

type later bool

func (l later) Error() string { return "no cut" }
func (l later) Retry() bool   { return bool(l) }

// TestMarksThatDoNotFit: the pairing says whether it is worth another try.
func TestMarksThatDoNotFit(t *testing.T) {
	for err, again := range map[error]bool{later(true): true, later(false): false, errors.New("odd"): true} {
		s := newStepped(t, 1, nil)
		s.l.cfg.Pair = func(map[job.PodIndex][]podapi.Mark) (map[job.PodIndex][]podapi.Mark, error) { return nil, err }
		s.checkpoint()
		for _, op := range stall[:3] {
			s.answer(Done{}, bothOps[op]...)
		}
		if got := s.epochsSaid(); got != "begin, abandon: "+err.Error() || again != (len(s.answers()) == 0) {
			t.Errorf("%v: %s, %+v", err, got, s.answers())
		}
	}
}

// TestNoRound: why there is none.
func TestNoRound(t *testing.T) {
	for name, c := range map[string]struct {
		play func(*stepped)
		text string // what the user hears; "" = nothing yet
	}{
		"suspended": {func(s *stepped) {
			s.checkpoint()
			s.log(scheduler.Command{Suspend: &scheduler.Suspend{Job: 1, On: true}})
			s.said = nil
		}, "*"},
		"asked while suspended": {func(s *stepped) {
			s.log(scheduler.Command{Suspend: &scheduler.Suspend{Job: 1, On: true}})
			s.tell(Committed{State: s.st})
			s.checkpoint()
		}, "the job is suspended: resume it first"},
		"a node is through": {func(s *stepped) {
			s.report("n2", 1, 1, 1, job.Exit{Rank: 2})
			s.report("n2", 1, 2, 1, job.Exit{Rank: 3})
			s.checkpoint()
		}, "all ranks of a node have ended"},
		"a rank ended badly": {func(s *stepped) {
			s.report("n2", 1, 1, 1, job.Exit{Rank: 2, Signal: sigkill})
			s.checkpoint()
		}, ""},
		"a pod is gone": {func(s *stepped) {
			s.tell(PodGone{Job: 1, Pod: 1, Node: "n2"})
			s.checkpoint()
		}, ""},
		"pods are told to stand still": {func(s *stepped) {
			s.tell(Verb{Ticket: 5, Job: 1, Kind: VerbSuspend})
			s.tell(Verb{Ticket: 6, Job: 1, Kind: VerbResume})
			s.checkpoint()
		}, ""},
		"one is under way": {func(s *stepped) {
			s.checkpoint()
			s.said = nil
			s.tell(Verb{Ticket: 78, Job: 1, Kind: VerbCheckpoint})
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepped(t, 1, nil)
			c.play(s)
			if got := s.epochsSaid(); got != "" {
				t.Errorf("began: %s", got)
			}
			if c.text == "*" {
				return
			}
			var heard []string
			for _, a := range s.answers() {
				if a.Failure != nil {
					heard = append(heard, a.Failure.Text)
				}
			}
			if c.text == "" && len(heard) > 0 || c.text != "" && !slices.Equal(heard, []string{c.text}) {
				t.Errorf("heard %q", heard)
			}
		})
	}
}

// TestRoundOfAnother: a round that some other leader opened is left alone.
func TestRoundOfAnother(t *testing.T) {
	s := newStepped(t, 1, nil)
	s.log(scheduler.Command{BeginEpoch: &scheduler.BeginEpoch{Job: 1, Incarnation: 1, Term: 9, Attempt: 9}})
	s.tell(Committed{State: s.st})
	s.checkpoint()
	if len(s.open) > 0 || s.epochsSaid() != "begin" || s.job().Open.Attempt != 9 {
		t.Errorf("%s; %d requests", s.epochsSaid(), len(s.open))
	}
}

// TestCopies: where images go, and who is asked for how long.
func TestCopies(t *testing.T) {
	s := newStepped(t, 1, func(sp *job.Spec) { sp.Replicas = 3 })
	s.checkpoint()
	for _, op := range stall {
		s.answer(Done{}, bothOps[op]...)
	}
	written := Done{Reply: &podapi.PhaseReply{Written: &podapi.Written{Digest: "d"}}}
	s.answer(written, "write 0", "write 1")
	var got []string
	for _, a := range actionsOf[Copy](s.open) {
		if a.Urgent || a.Timeout != s.l.cfg.CopyMax || !slices.Equal(a.From, []job.NodeID{s.job().Pods[a.Pod].Node}) {
			t.Errorf("%+v", a)
		}
		got = append(got, string(a.To))
	}
	if want := []string{"n3", "n2", "n3", "n1"}; !slices.Equal(got, want) { // the intended spare first
		t.Errorf("copies to %v", got)
	}
	if n := len(s.open); n != 4 {
		t.Errorf("%d requests", n)
	}
	s.answer(Done{Failure: &Failure{Kind: FailedForGood, Text: "disk full"}}, "copy 0") // to n2; the one to n3 may still come
	if got := s.epochsSaid(); got != "begin" {
		t.Errorf("while a copy is on its way: %s", got)
	}
	s.answer(Done{}, "copy 0")
	if got := s.epochsSaid(); got != "begin, abandon: image of ranks [0 1] on n1 on 2 of 3 nodes: copy to n2: disk full" {
		t.Errorf("no node left: %s", got)
	}
	if drops := actionsOf[Drop](s.acts); len(drops) != 4 {
		t.Errorf("%+v", drops)
	}
	s = newStepped(t, 1, nil)
	s.lose()
	if a := s.find("copy 1").(Copy); !a.Urgent || a.Timeout != s.l.cfg.RestoreMax || a.To != "n3" { //nolint:errcheck,forcetypeassert // by its name
		t.Errorf("%+v", a)
	}
}
