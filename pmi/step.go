package pmi

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/lampause/lampause/job"
)

// EarlyAfter is how long a rank waits at the fence of MPI_Finalize before the
// server looks for the signs of a hang (package comment).
const EarlyAfter = 500 * time.Millisecond

// stuckLooks is how many looks in a row must find unread bytes.
const stuckLooks = 2

// Event is an input of Step: exactly one of the On types.
type Event interface{ event() }

type (
	// OnLine is a line of a rank, without its newline.
	OnLine struct {
		Rank job.Rank
		Line string
		Now  time.Duration
	}
	// OnFence says that fence Seq is complete, with the puts of all pods.
	OnFence struct {
		Seq  int
		Puts map[string]string
	}
	// OnGone says that the process of a rank has ended.
	OnGone struct{ Rank job.Rank }
	// OnTick is the passing of time, on the driver's monotonic clock.
	OnTick struct{ Now time.Duration }
	// OnProbe answers Probe: whether a waiting rank has unread TCP bytes.
	OnProbe struct {
		Seq    int
		Unread bool
	}
	// OnRestore says that the state was imported: fences that were open are to
	// be posted again, and the newest completed one is to be repeated.
	OnRestore struct{ Now time.Duration }
)

func (OnLine) event()    {}
func (OnFence) event()   {}
func (OnGone) event()    {}
func (OnTick) event()    {}
func (OnProbe) event()   {}
func (OnRestore) event() {}

// Action is an output of Step: exactly one of the Do types, to be carried out
// in order.
type Action interface{ action() }

type (
	// DoReply writes Text (newline included) to a rank.
	DoReply struct {
		Rank job.Rank
		Text string
	}
	// DoFence hands a fence to the Fencer; its answer comes back as OnFence.
	DoFence struct{ Fence Fence }
	// DoProbe looks for unread bytes in the TCP sockets of Ranks and answers
	// with OnProbe.
	DoProbe struct {
		Seq   int
		Ranks []job.Rank
	}
	// DoPhase reports that a rank entered a phase.
	DoPhase struct {
		Rank  job.Rank
		Phase Phase
	}
	// DoFinal says that the fence of MPI_Finalize is complete. It comes before
	// the answers that let the ranks close their connections.
	DoFinal struct{}
	// DoAbort reports MPI_Abort, or a rank that broke the protocol (Err).
	DoAbort struct {
		Rank job.Rank
		Code int
		Text string
		Err  error
	}
)

func (DoReply) action() {}
func (DoFence) action() {}
func (DoProbe) action() {}
func (DoPhase) action() {}
func (DoAbort) action() {}
func (DoFinal) action() {}

// Fence is this pod's part of a job-wide fence.
type Fence struct {
	Seq   int               // from 1
	Puts  map[string]string // of this pod
	Early bool              // complete it now, for all: the hang in MPI_Finalize
	Ask   bool              // no arrival: only wait for its completion
}

// Step maps a state and an event to the next state and the actions to carry
// out. It is pure; s is not changed.
func Step(s State, e Event) (State, []Action) {
	n := s.clone()
	var out []Action
	switch e := e.(type) {
	case OnLine:
		out = n.line(e)
	case OnFence:
		out = n.fence(e)
	case OnGone:
		if st := n.Ranks[e.Rank]; st != nil {
			st.Gone = true
		}
		out = n.post()
	case OnTick:
		out = n.tick(e.Now)
	case OnProbe:
		out = n.probe(e)
	case OnRestore:
		out = n.restore(e.Now)
	}
	return n, out
}

// line serves one request of a rank.
func (s *State) line(e OnLine) []Action {
	st := s.Ranks[e.Rank]
	if st == nil {
		return []Action{DoAbort{Rank: e.Rank, Code: 1, Err: fmt.Errorf("%w: rank %d is not of this pod", ErrProtocol, e.Rank)}}
	}
	if st.Spawn {
		if e.Line == "endcmd" {
			st.Spawn = false
			return []Action{reply(e.Rank, "cmd=spawn_result rc=-1 msg=MPI_Comm_spawn_is_not_supported_by_lampause")}
		}
		return nil
	}
	c, err := parse(e.Line)
	if err != nil {
		return []Action{DoAbort{Rank: e.Rank, Code: 1, Err: err}}
	}
	if st.Phase == Before && c.name != "init" && c.name != "abort" {
		return s.violation(e.Rank, "%q before init", c.name)
	}
	switch c.name {
	case "init":
		return s.initRank(e.Rank, st, c)
	case "put":
		return s.put(e.Rank, st, c)
	case "get":
		st.EverGot = true
		return []Action{reply(e.Rank, s.get(c))}
	case "getbyidx":
		return []Action{reply(e.Rank, s.getByIndex(c))}
	case "barrier_in":
		return s.barrier(e.Rank, st, e.Now)
	case "finalize":
		st.Phase = Finalized
		out := []Action{reply(e.Rank, "cmd=finalize_ack"), DoPhase{Rank: e.Rank, Phase: Finalized}}
		return append(out, s.post()...)
	case "abort":
		return abort(e.Rank, st, c)
	}
	return s.simple(e.Rank, st, c)
}

// simple serves the requests that change nothing.
func (s *State) simple(r job.Rank, st *RankState, c command) []Action {
	switch c.name {
	case "get_maxes":
		return []Action{reply(r, fmt.Sprintf("cmd=maxes kvsname_max=%d keylen_max=%d vallen_max=%d", maxName, maxKey, maxValue))}
	case "get_appnum":
		return []Action{reply(r, "cmd=appnum appnum="+strconv.Itoa(st.App))}
	case "get_my_kvsname":
		return []Action{reply(r, "cmd=my_kvsname kvsname="+s.Job)}
	case "get_universe_size":
		return []Action{reply(r, "cmd=universe_size size="+strconv.Itoa(s.Size))}
	case "spawn":
		st.Spawn = true
		return nil
	case "publish_name":
		return []Action{reply(r, "cmd=publish_result info=MPI_Publish_name_is_not_supported_by_lampause")}
	case "unpublish_name":
		return []Action{reply(r, "cmd=unpublish_result info=MPI_Unpublish_name_is_not_supported_by_lampause")}
	case "lookup_name":
		return []Action{reply(r, "cmd=lookup_result info=MPI_Lookup_name_is_not_supported_by_lampause")}
	}
	return s.violation(r, "unknown command %q", clip(c.name))
}

func (s *State) violation(r job.Rank, format string, args ...any) []Action {
	err := fmt.Errorf("%w: rank %d: "+format, append([]any{ErrProtocol, r}, args...)...)
	return []Action{DoAbort{Rank: r, Code: 1, Err: err}}
}

func reply(r job.Rank, text string) Action { return DoReply{Rank: r, Text: text + "\n"} }

func (s *State) initRank(r job.Rank, st *RankState, c command) []Action {
	if c.args["pmi_version"] != "1" {
		return []Action{reply(r, "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=-1")}
	}
	out := []Action{reply(r, "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0")}
	if st.Phase == Before {
		st.Phase = InMPI
		out = append(out, DoPhase{Rank: r, Phase: InMPI})
	}
	return out
}

func (s *State) put(r job.Rank, st *RankState, c command) []Action {
	key, val := c.args["key"], c.args["value"]
	switch {
	case key == "" || len(key) > maxKey || len(val) > maxValue:
		return []Action{reply(r, "cmd=put_result rc=-1 msg=key_or_value_too_long")}
	case len(s.KVS)+len(s.Own) >= maxKeysPerRank*max(s.Size, 1):
		return []Action{reply(r, "cmd=put_result rc=-1 msg=too_many_keys")}
	}
	if _, dup := s.KVS[key]; dup {
		return []Action{reply(r, "cmd=put_result rc=-1 msg=duplicate_key_"+key)}
	}
	s.Own = maps.Clone(s.Own)
	s.Own[key] = val
	st.Puts++
	st.EverPut = true
	return []Action{reply(r, "cmd=put_result rc=0 msg=success")}
}

// get looks a key up: what fences have agreed, then what this pod has put.
func (s *State) get(c command) string {
	key := c.args["key"]
	val, ok := s.KVS[key]
	if key == "PMI_process_mapping" {
		val, ok = s.Mapping, true
	}
	if !ok {
		val, ok = s.Own[key]
	}
	if !ok {
		return "cmd=get_result rc=-1 msg=key_" + clip(key) + "_not_found value=unknown"
	}
	return "cmd=get_result rc=0 msg=success value=" + val
}

func (s *State) getByIndex(c command) string {
	i, err := strconv.Atoi(c.args["idx"])
	keys := slices.Sorted(maps.Keys(s.KVS))
	if err != nil || i < 0 || i >= len(keys) {
		return "cmd=getbyidx_results rc=-2 reason=no_more_keyvals"
	}
	return fmt.Sprintf("cmd=getbyidx_results rc=0 nextidx=%d key=%s val=%s", i+1, keys[i], s.KVS[keys[i]])
}

func abort(r job.Rank, st *RankState, c command) []Action {
	code, err := strconv.Atoi(c.args["exitcode"])
	if err != nil {
		code = 1
	}
	st.Phase = Aborted
	text := c.args["error_msg"]
	if text == "" {
		text = c.args["msg"]
	}
	return []Action{DoAbort{Rank: r, Code: code, Text: clip(text)}}
}

// barrier lets a rank arrive at its next fence. That fence is complete already
// when it was released early.
func (s *State) barrier(r job.Rank, st *RankState, now time.Duration) []Action {
	if st.Arrived > s.Done {
		return s.violation(r, "barrier_in within a barrier")
	}
	st.Arrived++
	st.Since = now
	if st.Arrived <= s.Done {
		st.Puts = 0
		return []Action{reply(r, "cmd=barrier_out")}
	}
	return s.post()
}

// post hands the open fence to the job once every local rank has arrived.
func (s *State) post() []Action {
	if s.Posted > s.Done || !s.full() {
		return nil
	}
	s.Posted = s.Done + 1
	return []Action{DoFence{Fence{Seq: s.Posted, Puts: maps.Clone(s.Own)}}}
}

// fence completes the fence e.Seq and lets its ranks go.
func (s *State) fence(e OnFence) []Action {
	if e.Seq != s.Done+1 {
		return nil // a repetition
	}
	out := make([]Action, 0, len(s.Ranks)+1)
	if s.finalizing() {
		out = append(out, DoFinal{})
	}
	for _, r := range s.waiting() {
		s.Ranks[r].Puts = 0
		out = append(out, reply(r, "cmd=barrier_out"))
	}
	s.KVS = maps.Clone(s.KVS)
	maps.Copy(s.KVS, s.Own)
	maps.Copy(s.KVS, e.Puts)
	s.History, s.Own = append(s.History, s.Own), map[string]string{}
	s.Done, s.Stuck = e.Seq, 0
	return out
}

// tick looks after a fence at which some ranks have waited for long.
func (s *State) tick(now time.Duration) []Action {
	var late []job.Rank
	for _, r := range s.waiting() {
		if now-s.Ranks[r].Since >= EarlyAfter {
			late = append(late, r)
		}
	}
	if len(late) == 0 || !s.finalizing() {
		return nil
	}
	var out []Action
	if seq := s.Done + 1; s.Posted < seq && s.Asked < seq {
		s.Asked = seq // another pod may release it
		out = append(out, DoFence{Fence{Seq: seq, Ask: true}})
	}
	return append(out, DoProbe{Seq: s.Done + 1, Ranks: late})
}

// probe takes the answer of a look at the sockets of waiting ranks.
func (s *State) probe(e OnProbe) []Action {
	if e.Seq != s.Done+1 || !s.finalizing() {
		return nil
	}
	if !e.Unread {
		s.Stuck = 0
		return nil
	}
	s.Stuck++
	if s.Stuck != stuckLooks {
		return nil
	}
	return []Action{DoFence{Fence{Seq: e.Seq, Puts: maps.Clone(s.Own), Early: true}}}
}

// restore posts again what the epoch had open, and repeats its newest
// completed fence for the pods that did not see it complete.
func (s *State) restore(now time.Duration) []Action {
	s.Posted, s.Asked, s.Stuck = 0, 0, 0
	for _, st := range s.Ranks {
		st.Since = now
	}
	var out []Action
	if s.Done > 0 {
		out = append(out, DoFence{Fence{Seq: s.Done, Puts: maps.Clone(s.History[s.Done-1])}})
	}
	return append(out, s.post()...)
}
