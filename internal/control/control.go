// Package control is the protocol between the command line (lam, mpirun) and
// lamd: HTTP/1.1 with JSON over the unix socket RUNTIME_DIR/NODE/lamd.sock.
// A lamd that is not the leader passes requests on to it. Lists are arrays,
// streams are JSON lines.
//
//	GET  /v1/nodes                 []Node
//	GET  /v1/jobs                  []Job
//	POST /v1/jobs                  job.Spec -> Submitted; header X-Lam-Key, sent again, answers with the same job
//	GET  /v1/jobs/J                JobDetail
//	GET  /v1/jobs/J/output?from=   stream of podapi.Output, ends with the job
//	POST /v1/jobs/J/stdin?offset=  raw bytes for rank 0 -> StdinTaken; &eof=1 closes it after them
//	POST /v1/jobs/J/checkpoint     Checkpointed
//	POST /v1/jobs/J/{suspend,resume,vacate,kill}
//	POST /v1/jobs/J/restart?epoch=E Submitted: from images only; E=0 is the newest
//	POST /v1/jobs/J/signal?n=15
//	GET  /v1/jobs/J/wait           Ended, when the job has ended
//	GET  /v1/events?follow=1&job=J&after=SEQ stream of Event
//
// The `from` of an output stream is a Cursor in its text form; streams that it
// does not name start at 0. The answer to stdin comes once the bytes are taken,
// which is how a slow reader slows mpirun down; a repeated offset is answered
// as the first was.
//
// Errors are Error bodies with a matching HTTP status; Error.Exit is the exit
// code that the command should end with.
package control

import (
	"time"

	"github.com/lampause/lampause/job"
)

// Socket is the name of lamd's unix socket inside its runtime directory.
const Socket = "lamd.sock"

// Node is a line of `lam nodes`.
type Node struct {
	Node  job.NodeID `json:"node"`
	Addr  string     `json:"addr"`
	State string     `json:"state"` // alive suspect dead left
	Role  string     `json:"role"`  // compute spare
	Slots int        `json:"slots"`
	Ranks []string   `json:"ranks"` // "JOB:RANK"
	Jobs  []job.ID   `json:"job"`
	Boot  job.Boot   `json:"boot"`
	Raft  string     `json:"raft"` // leader voter nonvoter, empty when not known
}

// Job is a line of `lam jobs`.
type Job struct {
	Job        job.ID             `json:"job"`
	Name       string             `json:"name"`
	State      job.State          `json:"state"`
	Ranks      int                `json:"ranks"`
	Nodes      []job.NodeID       `json:"nodes"`
	Epoch      job.Epoch          `json:"epoch"` // newest committed, 0 = none
	Recoveries int                `json:"recoveries"`
	Placement  []job.PodPlacement `json:"placement"`
	ExitCode   *int               `json:"exit_code"` // nil until the job ended
	Protected  string             `json:"protected"` // YES, NO, AT_RISK
}

// JobDetail is `lam job J`.
type JobDetail struct {
	Job
	Spec        job.Spec         `json:"spec"`
	Incarnation job.Incarnation  `json:"incarnation"`
	Book        []job.PodAddress `json:"book"`
	Epochs      []EpochInfo      `json:"epochs"`
	Bills       []Bill           `json:"bills"`
	Reason      string           `json:"reason,omitempty"` // why it failed or is unprotected
	Exits       []job.Exit       `json:"exits,omitempty"`
}

// EpochInfo describes a committed epoch.
type EpochInfo struct {
	Epoch    job.Epoch               `json:"epoch"`
	Bytes    int64                   `json:"bytes"`
	NewBytes int64                   `json:"new_bytes"` // of Bytes: written for this epoch, not shared with earlier ones
	StallMS  float64                 `json:"stall_ms"`
	Time     time.Time               `json:"time"`     // of the leader's wall clock, for people only
	Replicas map[string][]job.NodeID `json:"replicas"` // pod index -> holders
}

// Bill is what one recovery cost, in milliseconds.
type Bill struct {
	Incarnation job.Incarnation    `json:"incarnation"` // that it started
	Epoch       job.Epoch          `json:"epoch"`
	Lost        []job.NodeID       `json:"lost"`
	Spares      []job.NodeID       `json:"spares"`
	MS          map[string]float64 `json:"ms"`                // detect agree fence stop rollback restore rewire refill total lost_work
	Skipped     job.Epoch          `json:"skipped,omitempty"` // newer epoch of which no intact image was left
	Cause       string             `json:"cause,omitempty"`
	AtMS        int64              `json:"at_ms,omitempty"` // end of the recovery, Unix time by the leader's wall clock, for people only
}

// Submitted answers a submission.
type Submitted struct {
	Job job.ID `json:"job"`
}

// Checkpointed answers a checkpoint request once the epoch is committed.
type Checkpointed struct {
	Epoch   job.Epoch `json:"epoch"`
	Bytes   int64     `json:"bytes"`
	StallMS float64   `json:"stall_ms"`
}

// StdinTaken answers bytes sent to stdin: everything below Offset was taken. The
// sender goes on from there, also after a lost connection. Offset may be lower
// than in an earlier answer: a rank that was rebuilt from a checkpoint wants
// again what came after that. No recovery goes back below Safe, so that the
// sender may forget those bytes; SafeEOF says the same of the end of the input.
type StdinTaken struct {
	Offset  int64 `json:"offset"`
	Safe    int64 `json:"safe"`
	SafeEOF bool  `json:"safe_eof,omitempty"`
}

// Ended answers /wait.
type Ended struct {
	ExitCode int    `json:"exit_code"`
	Message  string `json:"message,omitempty"` // one line for stderr when the end was not the program's own
	Summary  string `json:"summary,omitempty"` // one line after recoveries
}

// Event is a line of `lam events`. Data holds the fields named in
// docs/events.md; times there end in _ms.
type Event struct {
	Seq   uint64         `json:"seq"`
	Time  time.Time      `json:"time"`
	Event string         `json:"event"` // "checkpoint.committed", "node.dead", ...
	Job   job.ID         `json:"job,omitempty"`
	Epoch job.Epoch      `json:"epoch,omitempty"`
	Node  job.NodeID     `json:"node,omitempty"`
	Data  map[string]any `json:"data,omitempty"`
}

// Error is the body of every non-2xx answer.
type Error struct {
	Message string `json:"error"`
	Exit    int    `json:"exit"` // suggested exit code of the command
	Status  int    `json:"-"`

	cause error
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Unwrap returns what caused e, if it was made by the client.
func (e *Error) Unwrap() error { return e.cause }
