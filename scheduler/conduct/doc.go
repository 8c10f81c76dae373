// Package conduct is what the raft leader does beyond keeping the log: it
// launches jobs, conducts their checkpoint rounds, decides from suspicions and
// evidence that nodes died, conducts recoveries, keeps leases and fences,
// brokers PMI fences and ends jobs.
//
// It is a pure core: no clock, goroutine, lock, input or output. A Leader is
// made when this node becomes leader and thrown away when it ceases to be one;
// everything it must not forget is in the replicated scheduler.State. The
// driver (package lamd) feeds it Events and carries out the Actions that it
// returns:
//
//	l := conduct.NewLeader(cfg, term, now)
//	acts := l.Step(now, conduct.Committed{State: st})   // and on every event:
//	... carry out acts; arm a timer for l.Next(); when it fires, Step(now, Tick{})
//
// now is any clock that never goes back and counts while the machine sleeps
// (CLOCK_BOOTTIME). An action with a Ref is answered by exactly one Done of
// the same Ref, at the latest after its Timeout; an answer that comes twice or
// too late is ignored, and one that never comes is treated as unreachable a
// little later. All requests are idempotent: the conductor repeats those that
// could not be delivered.
//
// Thread-safety: a Leader belongs to one goroutine.
package conduct
