package pmi

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/job"
)

// run steps through lines of the form "rank: line" and returns what the
// actions say, one per line.
func run(s State, now time.Duration, lines ...string) (State, []string) {
	var said []string
	for _, l := range lines {
		var r job.Rank
		who, line, _ := strings.Cut(l, ": ")
		if _, err := fmt.Sscan(who, &r); err != nil {
			panic(err)
		}
		var acts []Action
		s, acts = Step(s, OnLine{Rank: r, Line: line, Now: now})
		said = append(said, words(acts)...)
	}
	return s, said
}

func words(acts []Action) []string {
	var out []string
	for _, a := range acts {
		switch a := a.(type) {
		case DoReply:
			out = append(out, fmt.Sprintf("%d< %s", a.Rank, strings.TrimSuffix(a.Text, "\n")))
		case DoFence:
			out = append(out, fmt.Sprintf("fence %d puts %d early %v ask %v", a.Fence.Seq, len(a.Fence.Puts), a.Fence.Early, a.Fence.Ask))
		case DoProbe:
			out = append(out, fmt.Sprintf("probe %d %v", a.Seq, a.Ranks))
		case DoPhase:
			out = append(out, fmt.Sprintf("%d is %s", a.Rank, a.Phase))
		case DoFinal:
			out = append(out, "final")
		case DoAbort:
			out = append(out, fmt.Sprintf("abort %d code %d protocol %v", a.Rank, a.Code, errors.Is(a.Err, ErrProtocol)))
		}
	}
	return out
}

func wantWords(t *testing.T, got []string, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("actions (-want +got):\n%s", d)
	}
}

// inInit is a pod of ranks 0 and 1 of four, after the two fences of MPI_Init.
func inInit(t *testing.T) State {
	t.Helper()
	s := NewState("kvs", "(vector,(0,2,2))", 4, []job.Rank{0, 1})
	s, _ = run(s, 0, "0: cmd=init pmi_version=1 pmi_subversion=1", "1: cmd=init pmi_version=1 pmi_subversion=1",
		"0: cmd=barrier_in", "1: cmd=barrier_in")
	s, _ = Step(s, OnFence{Seq: 1})
	s, _ = run(s, 0, "0: cmd=put kvsname=kvs key=a0 value=x", "1: cmd=put kvsname=kvs key=a1 value=y", "0: cmd=barrier_in", "1: cmd=barrier_in")
	s, _ = Step(s, OnFence{Seq: 2, Puts: map[string]string{"a0": "x", "a1": "y", "a2": "z", "a3": "w"}})
	s, said := run(s, 0, "0: cmd=get kvsname=kvs key=a3", "1: cmd=get kvsname=kvs key=a2")
	wantWords(t, said, "0< cmd=get_result rc=0 msg=success value=w", "1< cmd=get_result rc=0 msg=success value=z")
	return s
}

// What MPICH 4.0.2 says from start to end.
func TestMPICHTranscript(t *testing.T) {
	s := NewState("kvs", "(vector,(0,1,2))", 2, []job.Rank{0, 1})
	s.Ranks[1].App = 3 // of the fourth program
	s, said := run(s, 0, "1: cmd=init pmi_version=1 pmi_subversion=1", "1: cmd=get_appnum")
	wantWords(t, said, "1< cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0", "1 is in-mpi", "1< cmd=appnum appnum=3")
	s, said = run(s, 0,
		"0: cmd=init pmi_version=1 pmi_subversion=1", "0: cmd=get_maxes", "0: cmd=get_appnum", "0: cmd=get_my_kvsname",
		"0: cmd=get_universe_size", "0: cmd=get kvsname=kvs key=PMI_process_mapping",
		"0: cmd=put kvsname=kvs key=-allgather-shm-1-0 value=20C7", "0: cmd=barrier_in", "1: cmd=barrier_in")
	wantWords(t, said,
		"0< cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0", "0 is in-mpi",
		"0< cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024", "0< cmd=appnum appnum=0",
		"0< cmd=my_kvsname kvsname=kvs", "0< cmd=universe_size size=2",
		"0< cmd=get_result rc=0 msg=success value=(vector,(0,1,2))",
		"0< cmd=put_result rc=0 msg=success", "fence 1 puts 1 early false ask false")
	s, acts := Step(s, OnFence{Seq: 1, Puts: map[string]string{"-allgather-shm-1-0": "20C7"}})
	wantWords(t, words(acts), "0< cmd=barrier_out", "1< cmd=barrier_out")
	_, acts = Step(s, OnFence{Seq: 1})
	wantWords(t, words(acts)) // a repetition
	s, said = run(s, 0, "1: cmd=get kvsname=kvs key=-allgather-shm-1-0", "1: cmd=get kvsname=kvs key=none",
		"0: cmd=getbyidx kvsname=kvs idx=0", "0: cmd=getbyidx kvsname=kvs idx=1", "0: cmd=finalize", "1: cmd=finalize")
	wantWords(t, said,
		"1< cmd=get_result rc=0 msg=success value=20C7", "1< cmd=get_result rc=-1 msg=key_none_not_found value=unknown",
		"0< cmd=getbyidx_results rc=0 nextidx=1 key=-allgather-shm-1-0 val=20C7", "0< cmd=getbyidx_results rc=-2 reason=no_more_keyvals",
		"0< cmd=finalize_ack", "0 is finalized", "1< cmd=finalize_ack", "1 is finalized")
	if s.Done != 1 {
		t.Errorf("%d fences done", s.Done)
	}
}

func TestRefusedByName(t *testing.T) {
	s := inInit(t)
	_, said := run(s, 0, "0: mcmd=spawn", "0: nprocs=2", "0: execname=x", "0: endcmd",
		"0: cmd=publish_name service=s port=p", "0: cmd=lookup_name service=s", "0: cmd=unpublish_name service=s", "0: cmd=get_appnum")
	wantWords(t, said,
		"0< cmd=spawn_result rc=-1 msg=MPI_Comm_spawn_is_not_supported_by_lampause",
		"0< cmd=publish_result info=MPI_Publish_name_is_not_supported_by_lampause",
		"0< cmd=lookup_result info=MPI_Lookup_name_is_not_supported_by_lampause",
		"0< cmd=unpublish_result info=MPI_Unpublish_name_is_not_supported_by_lampause",
		"0< cmd=appnum appnum=0")
}

func TestBadClients(t *testing.T) {
	for _, line := range []string{
		"0: hello", "0: cmd=", "0: cmd=eat_me", "0: cmd=init cmd=init", "9: cmd=get_maxes", "0: x=1 y=2",
		"0: " + strings.Repeat("x", MaxLine+1), "0: cmd=get\x00",
	} {
		_, said := run(inInit(t), 0, line)
		if len(said) != 1 || !strings.Contains(said[0], "protocol true") {
			t.Errorf("%.40q: %v", line, said)
		}
	}
	s := NewState("kvs", "", 2, []job.Rank{0, 1})
	if _, said := run(s, 0, "0: cmd=put key=a value=b"); !strings.Contains(said[0], "protocol true") {
		t.Errorf("put before init: %v", said)
	}
	if _, said := run(inInit(t), 0, "0: cmd=barrier_in", "0: cmd=barrier_in"); !strings.Contains(said[len(said)-1], "protocol true") {
		t.Errorf("barrier within a barrier: %v", said)
	}
}

func TestLimits(t *testing.T) {
	s := inInit(t)
	_, said := run(s, 0, "0: cmd=put key="+strings.Repeat("k", maxKey+1)+" value=v", "0: cmd=put key=k value="+strings.Repeat("v", maxValue+1), "0: cmd=put key=a0 value=again")
	wantWords(t, said, "0< cmd=put_result rc=-1 msg=key_or_value_too_long", "0< cmd=put_result rc=-1 msg=key_or_value_too_long",
		"0< cmd=put_result rc=-1 msg=duplicate_key_a0")
	full := 0
	for i := range maxKeysPerRank*s.Size + 10 {
		s, said = run(s, 0, fmt.Sprintf("0: cmd=put key=k%d value=v", i))
		if strings.Contains(said[0], "too_many") {
			full++
		}
	}
	if full == 0 || len(s.Own)+len(s.KVS) > maxKeysPerRank*s.Size {
		t.Errorf("%d keys accepted", len(s.Own))
	}
}

func TestAbort(t *testing.T) {
	_, said := run(inInit(t), 0, "1: cmd=abort exitcode=7 error_msg=it is over")
	wantWords(t, said, "abort 1 code 7 protocol false")
}

// Ranks that ended are not waited for.
func TestGoneRank(t *testing.T) {
	s := inInit(t)
	s, said := run(s, 0, "0: cmd=barrier_in")
	wantWords(t, said)
	_, acts := Step(s, OnGone{Rank: 1})
	wantWords(t, words(acts), "fence 3 puts 0 early false ask false")
}

func TestEarlyFence(t *testing.T) {
	at := func(ms int) OnTick { return OnTick{Now: time.Duration(ms) * time.Millisecond} }
	s := inInit(t)
	s, said := run(s, time.Second, "0: cmd=barrier_in")
	wantWords(t, said)
	s, acts := Step(s, at(1400))
	wantWords(t, words(acts)) // not long enough
	s, acts = Step(s, at(1600))
	wantWords(t, words(acts), "fence 3 puts 0 early false ask true", "probe 3 [0]")
	s, acts = Step(s, OnProbe{Seq: 3, Unread: false})
	wantWords(t, words(acts)) // a rank that only computes longer
	s, acts = Step(s, at(1700))
	wantWords(t, words(acts), "probe 3 [0]")
	s, acts = Step(s, OnProbe{Seq: 3, Unread: true})
	wantWords(t, words(acts))
	s, acts = Step(s, OnProbe{Seq: 3, Unread: true})
	wantWords(t, words(acts), "fence 3 puts 0 early true ask false")
	s, acts = Step(s, OnProbe{Seq: 3, Unread: true})
	wantWords(t, words(acts)) // said once
	s, acts = Step(s, OnFence{Seq: 3})
	wantWords(t, words(acts), "final", "0< cmd=barrier_out")
	_, said = run(s, 2*time.Second, "1: cmd=barrier_in") // the late one
	wantWords(t, said, "1< cmd=barrier_out")
}

// A fence of MPI_Init is never completed early, whatever is unread.
func TestInitFenceIsNotEarly(t *testing.T) {
	s := NewState("kvs", "", 2, []job.Rank{0, 1})
	s, _ = run(s, 0, "0: cmd=init pmi_version=1 pmi_subversion=1", "1: cmd=init pmi_version=1 pmi_subversion=1", "0: cmd=barrier_in")
	for i := range 3 {
		var acts []Action
		s, acts = Step(s, OnTick{Now: time.Duration(i+1) * time.Minute})
		wantWords(t, words(acts))
		s, acts = Step(s, OnProbe{Seq: 1, Unread: true})
		wantWords(t, words(acts))
	}
	s, _ = run(s, 0, "1: cmd=barrier_in")
	s, _ = Step(s, OnFence{Seq: 1})
	s, _ = run(s, 0, "0: cmd=put key=a value=b", "0: cmd=barrier_in")
	_, acts := Step(s, OnTick{Now: time.Hour})
	wantWords(t, words(acts))
}

// After a rollback the newest completed fence is repeated and the open one
// posted, so that pods of the same epoch on both sides of a fence meet.
func TestRestore(t *testing.T) {
	s := inInit(t)
	s, _ = run(s, 0, "0: cmd=barrier_in", "1: cmd=barrier_in")
	s, acts := Step(s, OnRestore{})
	wantWords(t, words(acts), "fence 2 puts 2 early false ask false", "fence 3 puts 0 early false ask false")
	if got := s.fences(); len(got) != 3 || got[1].Seq != 2 || len(got[1].Puts) != 2 {
		t.Errorf("fences %+v", got)
	}
}

// Step leaves its argument alone.
func TestStepIsPure(t *testing.T) {
	s := inInit(t)
	before := fmt.Sprint(s.KVS, s.Own, *s.Ranks[0], s.Done, len(s.History))
	n, _ := run(s, 0, "0: cmd=put key=n value=v", "0: cmd=barrier_in", "1: cmd=barrier_in")
	n, _ = Step(n, OnFence{Seq: 3})
	if after := fmt.Sprint(s.KVS, s.Own, *s.Ranks[0], s.Done, len(s.History)); after != before {
		t.Errorf("state changed:\n%s\n%s", before, after)
	}
	if n.Done != 3 {
		t.Errorf("done %d", n.Done)
	}
}

func TestMapping(t *testing.T) {
	pods := func(ranks ...[]job.Rank) []job.PodPlacement {
		var out []job.PodPlacement
		for i, r := range ranks {
			out = append(out, job.PodPlacement{Pod: job.PodIndex(i), Ranks: r})
		}
		return out
	}
	for _, c := range []struct {
		layout []job.PodPlacement
		want   string
	}{
		{pods([]job.Rank{0, 1}, []job.Rank{2, 3}), "(vector,(0,2,2))"},
		{pods([]job.Rank{0, 2}, []job.Rank{1, 3}), "(vector,(0,2,1))"},
		{pods([]job.Rank{0, 1, 2}, []job.Rank{3}), "(vector,(0,1,3),(1,1,1))"},
		{pods([]job.Rank{0}), "(vector,(0,1,1))"},
		{pods([]job.Rank{5}), ""},
	} {
		if got := Mapping(c.layout); got != c.want {
			t.Errorf("Mapping(%v) = %s, want %s", c.layout, got, c.want)
		}
	}
}

func FuzzStep(f *testing.F) {
	f.Add("cmd=init pmi_version=1 pmi_subversion=1\ncmd=put kvsname=k key=a value=b\ncmd=barrier_in\ncmd=finalize")
	f.Add("mcmd=spawn\nnprocs=1\nendcmd\ncmd=abort exitcode=-1 error_msg=x y z")
	f.Add("cmd=get key=\ncmd=getbyidx idx=99999999999999999999")
	f.Fuzz(func(t *testing.T, input string) {
		s := NewState("kvs", "", 2, []job.Rank{0, 1})
		for i, line := range strings.Split(input, "\n") {
			before := s.Done
			var acts []Action
			s, acts = Step(s, OnLine{Rank: job.Rank(i % 2), Line: line})
			for _, a := range acts {
				if r, ok := a.(DoReply); ok && (!strings.HasSuffix(r.Text, "\n") || strings.Count(r.Text, "\n") != 1 || len(r.Text) > MaxLine) {
					t.Errorf("answer %q to %q", r.Text, line)
				}
				if fe, ok := a.(DoFence); ok {
					s, _ = Step(s, OnFence{Seq: fe.Fence.Seq, Puts: fe.Fence.Puts})
				}
			}
			if s.Done < before || len(s.KVS)+len(s.Own) > 2*maxKeysPerRank*s.Size {
				t.Fatalf("state after %q: %+v", line, s)
			}
		}
	})
}

func FuzzImport(f *testing.F) {
	f.Add([]byte(`{"version":1,"state":{"ranks":{"0":{"phase":"in-mpi"}},"kvs":{}},"pipes":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := decodeBlob(b)
		if err != nil {
			return
		}
		s, _ := Step(x.State, OnRestore{})
		for _, r := range slices.Sorted(func(yield func(job.Rank) bool) {
			for r := range s.Ranks {
				if !yield(r) {
					return
				}
			}
		}) {
			s, _ = Step(s, OnLine{Rank: r, Line: "cmd=barrier_in"})
		}
	})
}
