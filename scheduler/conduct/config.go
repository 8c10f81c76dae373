package conduct

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// Pair finds for every pod the marks of the other ends of its connections, and
// refuses a set of marks that is not a consistent cut (an end without its
// other end, a connection being set up, sequence numbers that do not fit).
type Pair func(marks map[job.PodIndex][]podapi.Mark) (map[job.PodIndex][]podapi.Mark, error)

// Config holds the times by which the conductor lives. Zero fields get the
// defaults named here.
type Config struct {
	Pair Pair // required

	// SetDigest makes the digest of an epoch out of those of its pods' images;
	// default: SHA-256 over the lines "POD DIGEST".
	SetDigest func(map[job.PodIndex]string) string

	Lease       time.Duration // of a pod, from sending the renewal; default 2 s
	LeaseMargin time.Duration // added before the leader believes a lease expired; default 500 ms

	Silence time.Duration // of a node with pods that renews no lease, before it counts as dead; default 10 s
	Absence time.Duration // of a pod in its node's roll calls, before it counts as gone; default 3 s

	Settle    time.Duration // between the first verdict on a node and the entry in the log, for others to join; default 100 ms
	CrashHold time.Duration // a crash waits this long, for it may be the echo of a node's death; default 250 ms
	CrashMax  time.Duration // ... and this long at most while a node of the job is under suspicion; default 6 s

	Retry      time.Duration // before an undelivered request is repeated; default 100 ms
	StartMax   time.Duration // StartPod; default 30 s
	FreezeMax  time.Duration // each op between freeze and resume; default 5 s
	WriteMax   time.Duration // OpWrite; default 10 min
	CopyMax    time.Duration // Copy; default 10 min
	CopyTries  time.Duration // a node that cannot be reached for so long is given up for another one; default 20 s
	RestoreMax time.Duration // each op of a recovery; default 60 s
	ProposeMax time.Duration // Propose; default 10 s
	KillMax    time.Duration // KillPod; default 15 s
	SealMax    time.Duration // Seal, OpCommit, OpAbandon, OpSuspend; default 10 s

	RoundRetry    time.Duration // after an abandoned round, doubling up to RoundRetryMax; default 500 ms
	RoundRetryMax time.Duration // default 30 s
}

func (c Config) withDefaults() Config {
	if c.SetDigest == nil {
		c.SetDigest = setDigest
	}
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&c.Lease, 2 * time.Second},
		{&c.LeaseMargin, 500 * time.Millisecond},
		{&c.Silence, 10 * time.Second},
		{&c.Absence, 3 * time.Second},
		{&c.Settle, 100 * time.Millisecond},
		{&c.CrashHold, 250 * time.Millisecond},
		{&c.CrashMax, 6 * time.Second},
		{&c.Retry, 100 * time.Millisecond},
		{&c.StartMax, 30 * time.Second},
		{&c.FreezeMax, 5 * time.Second},
		{&c.WriteMax, 10 * time.Minute},
		{&c.CopyMax, 10 * time.Minute},
		{&c.CopyTries, 20 * time.Second},
		{&c.RestoreMax, time.Minute},
		{&c.ProposeMax, 10 * time.Second},
		{&c.KillMax, 15 * time.Second},
		{&c.SealMax, 10 * time.Second},
		{&c.RoundRetry, 500 * time.Millisecond},
		{&c.RoundRetryMax, 30 * time.Second},
	} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	return c
}

func setDigest(pods map[job.PodIndex]string) string {
	h := sha256.New()
	for _, p := range slices.Sorted(maps.Keys(pods)) {
		fmt.Fprintf(h, "%d %s\n", p, pods[p])
	}
	return hex.EncodeToString(h.Sum(nil))
}
