// Package podapi is the versioned protocol between lamd and a pod supervisor
// (`lamd pod`): HTTP/1.1 with JSON bodies over the supervisor's unix socket
// PODDIR/pod.sock. lamd proxies the same paths for the coordinator of the job,
// which is the raft leader and may sit on another node:
//
//	leader --TCP--> lamd /v1/pods/JOB/...  --unix--> supervisor /v1/...
//
// Every mutating message carries (term, job, incarnation, attempt). Messages
// of an older term or incarnation are refused with 409; a repeated message is
// answered as the first one was (every step is idempotent).
//
// This package holds types and the client only. It imports job and the
// standard library.
package podapi

import (
	"github.com/lampause/lampause/job"
)

// Version is the protocol version, part of every path ("/v1/..."). A lamd
// refuses to drive a supervisor of another version, and says so.
const Version = 1

// Socket is the name of the unix socket inside a pod's runtime directory.
const Socket = "pod.sock"

// Header identifies the sender's right to command. Term is the raft term of
// the coordinator; Attempt numbers its checkpoint and recovery rounds.
type Header struct {
	Term        uint64          `json:"term"`
	Job         job.ID          `json:"job"`
	Incarnation job.Incarnation `json:"incarnation"`
	Attempt     uint64          `json:"attempt"`
}

// PodSpec is what a supervisor is started with: PODDIR/spec.json, written by
// lamd before it forks the supervisor.
type PodSpec struct {
	Header
	Spec      job.Spec           `json:"spec"`
	Node      job.NodeID         `json:"node"`
	Boot      job.Boot           `json:"boot,omitempty"` // life of Node that the log placed the pod on; another one refuses it
	Placement job.PodPlacement   `json:"placement"`
	Book      []job.PodAddress   `json:"book"`      // all pods of the job
	Layout    []job.PodPlacement `json:"layout"`    // all pods of the job: PMI_process_mapping
	ImageDir  string             `json:"image_dir"` // LAM_STATE_DIR/jobs/JOB, exists, 0700
	TmpDir    string             `json:"tmp_dir"`   // becomes $TMPDIR of the ranks, private to the pod
	Restore   bool               `json:"restore"`   // build the pod but start no ranks: a restore follows
	LeaseMS   int64              `json:"lease_ms"`  // lease length, 0 = no fencing (tests)
	LinkReady bool               `json:"link_ready"`
	// LamdSocket is lamd's socket, for PathFence; empty for DIR/../../lamd.sock.
	LamdSocket string `json:"lamd_socket,omitempty"`
}

// Op is a step that the coordinator asks of every pod of a job, in parallel,
// with a barrier between one op and the next.
type Op string

// Checkpoint ops, in order. A pod whose deadline passes between Freeze and
// Resume resumes by itself and durably voids the attempt: every later op of it
// is refused.
const (
	OpFreeze      Op = "freeze"       // stop all ranks; answer: Marks of every TCP end (refusal: unpaired, connecting)
	OpCaptureSend Op = "capture-send" // copy send queues; starts copying memory; answer: Marks with write_seq
	OpCaptureRecv Op = "capture-recv" // copy receive queues; waits for memory; answer: Marks with rcv_nxt
	OpResume      Op = "resume"       // let the ranks go on; Trim is given
	OpWrite       Op = "write"        // image to local store, fsync; answer: Written
	OpCommit      Op = "commit"       // the log committed Epoch: write COMMITTED, drop the backing of the previous one
	OpAbandon     Op = "abandon"      // the round is void: resume if frozen, drop backing and files of Epoch
)

// Recovery ops, in order. OpStop goes to survivors; OpRestore to pods built
// with PodSpec.Restore; OpRollback to survivors; both kinds answer when their
// ranks are whole and frozen with sockets built; then OpRelease to all.
// Between OpStop and OpRelease a pod never resumes by itself.
const (
	OpStop     Op = "stop"     // freeze; answer: Marks of live TCP ends
	OpRollback Op = "rollback" // memory, files and every connection back to Epoch, in place
	OpRestore  Op = "restore"  // rebuild every rank of the pod from the image of Epoch
	OpRelease  Op = "release"  // leave repair mode, refill send queues, resume
)

// Other ops.
const (
	OpSuspend   Op = "suspend"   // SIGSTOP-like freeze without an image; OpContinue thaws
	OpContinue  Op = "continue"  //
	OpPreflight Op = "preflight" // answer: Obstacles
)

// Flow names one direction-less end of a TCP connection of the job.
type Flow struct {
	Local  string `json:"local"`  // ip:port
	Remote string `json:"remote"` // ip:port
}

// Mark is the state of one TCP end, as far as the other end needs it.
type Mark struct {
	Flow
	Rank     job.Rank `json:"rank"`
	Cookie   uint64   `json:"cookie"` // SO_COOKIE: identity of the live socket
	State    uint8    `json:"state"`  // TCP_ESTABLISHED, ... of linux/tcp_states.h
	WriteSeq uint32   `json:"write_seq"`
	RcvNxt   uint32   `json:"rcv_nxt"`
	SendLen  int      `json:"send_len"` // bytes in the send queue: [WriteSeq-SendLen, WriteSeq)
	RecvLen  int      `json:"recv_len"` // unread bytes: [RcvNxt-RecvLen, RcvNxt)
}

// PhaseRequest is the body of POST /v1/phase.
type PhaseRequest struct {
	Header
	Op         Op                 `json:"op"`
	Epoch      job.Epoch          `json:"epoch"`
	DeadlineMS int64              `json:"deadline_ms"`     // from receipt, CLOCK_MONOTONIC
	Peers      []Mark             `json:"peers,omitempty"` // the other ends of this pod's flows (Resume: at the epoch; Rollback needs none)
	Lost       []job.PodIndex     `json:"lost,omitempty"`  // Rollback: pods that are rebuilt
	Book       []job.PodAddress   `json:"book,omitempty"`  // Rollback, Restore: the new address book
	Placement  []job.PodPlacement `json:"placement,omitempty"`
	SetDigest  string             `json:"set_digest,omitempty"` // Commit
	RaftIndex  uint64             `json:"raft_index,omitempty"` // Commit
	Suspended  bool               `json:"suspended,omitempty"`  // Release: the ranks stand still, and execute nothing before OpContinue
}

// PhaseReply is the answer. A refused phase has HTTP status 409 (out of order,
// stale) or 422 (cannot be done; the ranks are as they were) and an Error.
type PhaseReply struct {
	Marks     []Mark             `json:"marks,omitempty"`
	Written   *Written           `json:"written,omitempty"`
	Obstacles []string           `json:"obstacles,omitempty"`
	TimesMS   map[string]float64 `json:"times_ms,omitempty"` // phase parts, for the bill
	Bytes     int64              `json:"bytes,omitempty"`
	Backing   string             `json:"backing,omitempty"`    // CaptureRecv: how the memory was kept, and why
	LostRanks []job.Rank         `json:"lost_ranks,omitempty"` // ranks that could not be put back: to be restored as lost
	Notes     []string           `json:"notes,omitempty"`      // Rollback, Restore: what is not as it was, such as files that were overwritten
	Exits     []job.Exit         `json:"exits,omitempty"`      // Release: ranks that had ended before the epoch was taken
	Error     string             `json:"error,omitempty"`
	Retry     bool               `json:"retry,omitempty"` // 422: trying again soon may succeed
}

// Written describes the durable image of a pod at an epoch: a directory
// ImageDir/EPOCH/podN of files, to be replicated as they are. A holder of an
// earlier epoch may have some of them already.
type Written struct {
	Dir    string          `json:"dir"`
	Files  map[string]File `json:"files"`  // by name
	Digest string          `json:"digest"` // SHA-256 over the sorted list of files
	Ranks  []job.Rank      `json:"ranks"`

	// NewBytes is how much of the files was written for this epoch; the others
	// are shared with earlier ones.
	NewBytes int64 `json:"new_bytes,omitempty"`
}

// File is the size and SHA-256 (hex) of one image file; that of a page file is
// the SHA-256 of the SHA-256s of its pieces of 4 MB.
type File struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Lease is the body of POST /v1/lease: the supervisor may let its ranks
// compute until TTL after the renewal was *sent* (CLOCK_BOOTTIME).
type Lease struct {
	Header
	TTLMS  int64 `json:"ttl_ms"`
	SentNS int64 `json:"sent_ns"` // CLOCK_BOOTTIME of the local lamd when it asked the leader
}

// StdinTaken answers POST PathStdin: everything below Offset was taken; no
// recovery asks again for what is below Safe, nor, with SafeEOF, for the end.
type StdinTaken struct {
	Offset  int64 `json:"offset"`
	Safe    int64 `json:"safe"`
	SafeEOF bool  `json:"safe_eof,omitempty"`
}

// Fence is one pod's arrival at a PMI fence: POST by the supervisor to its
// lamd, which passes it to the leader; the answer comes when every pod of the
// job has arrived. Repeating it is harmless.
type Fence struct {
	Header
	Pod  job.PodIndex      `json:"pod"`
	Seq  int               `json:"seq"` // numbered from 1 within the incarnation's epoch history
	Puts map[string]string `json:"puts,omitempty"`
	// Early completes the fence now and for all pods, also those that have not
	// arrived and will: the cure for the hang of MPI_Finalize (package pmi).
	Early bool `json:"early,omitempty"`
	// Ask is no arrival: the answer comes when the fence is complete. A pod
	// also repeats its newest completed fence after a rollback, as an arrival,
	// because other pods of the epoch may not have seen it complete.
	Ask bool `json:"ask,omitempty"`
}

// FenceReply carries the union of all pods' puts of that fence.
type FenceReply struct {
	Seq  int               `json:"seq"`
	Puts map[string]string `json:"puts,omitempty"`
}

// Status is the answer of GET /v1/status.
type Status struct {
	Version int `json:"version"`
	Header
	Pod           job.PodIndex `json:"pod"`
	Node          job.NodeID   `json:"node"`
	State         string       `json:"state"` // building running frozen stopped rolled-back restored ended
	Epoch         job.Epoch    `json:"epoch"` // newest epoch seen committed
	Ranks         []RankStatus `json:"ranks"`
	SupervisorPID int          `json:"supervisor_pid"`
	StdinOffset   int64        `json:"stdin_offset"` // where POST /v1/stdin goes on
	OutputGen     int          `json:"output_gen"`   // rollbacks so far, see Output.Gen
	InitPID       int          `json:"init_pid"`     // pod-init as the node sees it; its end is the end of every rank
}

// RankStatus is the state of one rank of a pod. PID is as the supervisor sees
// it, InnerPID as the rank does.
type RankStatus struct {
	Rank     job.Rank  `json:"rank"`
	PID      int       `json:"pid"`
	InnerPID int       `json:"inner_pid"`
	Exit     *job.Exit `json:"exit,omitempty"`
	InMPI    bool      `json:"in_mpi"` // between MPI_Init and MPI_Finalize
}

// Event is one line of the stream GET /v1/events?from=N (JSON lines): what a
// supervisor reports upwards. Seq counts from 1 and survives reconnects: a new
// leader reads the stream again from the start. Incarnation is the job's at
// the time of the event.
type Event struct {
	Seq         uint64          `json:"seq"`
	Incarnation job.Incarnation `json:"incarnation"`
	Kind        string          `json:"kind"` // started, exit, abort, ready, lease-frozen, lease-thawed
	Rank        job.Rank        `json:"rank"`
	Exit        *job.Exit       `json:"exit,omitempty"`
	Text        string          `json:"text,omitempty"`
}

// Output is a frame of the stream GET /v1/output?rank=R&fd=1&from=OFFSET, or
// of the merged stream without rank: JSON lines.
type Output struct {
	Rank   job.Rank `json:"rank"`
	FD     int      `json:"fd"`     // 1 or 2
	Offset int64    `json:"offset"` // of Data[0] in that stream
	Data   []byte   `json:"data"`
	EOF    bool     `json:"eof,omitempty"`
	// Gen counts the rollbacks of the pod. A frame with a new Gen, no Data and
	// an Offset below what was read says that the bytes from Offset on were
	// taken back: those that follow are new.
	Gen int `json:"gen,omitempty"`
}

// Other paths of a supervisor:
//
//	POST /v1/link    Link: the link of the pod is in its network namespace
//	POST /v1/signal  Signal
//	POST /v1/stdin?offset=N[&eof=1]  raw bytes for rank 0, at offset N of stdin
//	GET  /v1/fences  []Fence: every fence at which the pod ever arrived, with
//	                 its own puts; asked by a new leader
//	POST /v1/kill    ends the pod: answers once pod-init has been reaped, that
//	                 is when no process of the pod is left
const (
	PathPhase  = "/v1/phase"
	PathLease  = "/v1/lease"
	PathFence  = "/v1/fence"  // at lamd, not at the supervisor
	PathFences = "/v1/fences" // GET: []Fence, every fence at which this pod ever arrived, oldest first
	PathStatus = "/v1/status"
	PathEvents = "/v1/events"
	PathOutput = "/v1/output"
	PathLink   = "/v1/link"
	PathSignal = "/v1/signal"
	PathStdin  = "/v1/stdin"
	PathKill   = "/v1/kill"
)

// Link tells the supervisor which interface of its network namespace is the
// pod's; the supervisor names it eth0 and configures it.
type Link struct {
	Name string `json:"name"`
}

// Signal asks for a signal to every rank of the pod.
type Signal struct {
	Header
	Signal int `json:"signal"`
}
