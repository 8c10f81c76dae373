// Package pmi answers the PMI-1 protocol that MPICH speaks at start-up: the
// ranks of a pod learn their number, exchange their addresses and meet at
// barriers ("fences") through it.
//
// The package is split into a pure core and a thin driver. State holds
// everything that matters: the key-value space, what each rank has sent and
// how far it is, and the number of completed fences. Step maps a state and an
// event (a line from a rank, a completed fence, the passing of time) to the
// actions that the driver carries out; it knows no clock, no socket and no
// goroutine. Server is the driver: one goroutine per rank reads its inherited
// socketpair (PMI_FD), one per outstanding fence waits for the job.
//
// # Fences
//
// A fence is a barrier of all ranks of the job, numbered from 1. When every
// local rank has arrived, the pod's part (its puts since the last fence) goes
// to the Fencer, which answers with the puts of all pods when all have
// arrived. Fences are idempotent: after a rollback each pod repeats its newest
// completed fence, because another pod of the same epoch may have been stopped
// before it saw that fence complete.
//
// # The hang in MPI_Finalize
//
// Stock MPICH 4.0 over UCX TCP can hang in MPI_Finalize: a rank flushes its
// connections and waits for answers of ranks that already sit in the last PMI
// barrier, where their UCX makes no progress. The cure is to complete that
// last fence early. It is applied only when three things hold:
//
//  1. the fence looks like the one of MPI_Finalize to every local rank that
//     waits: the rank has put and got keys in earlier rounds, and put nothing
//     since its last fence;
//  2. some of the job's ranks have waited for more than EarlyAfter while
//     others have not arrived;
//  3. a waiting rank has unread bytes in a TCP socket, for two looks in a row.
//     A rank in the barrier has completed its own communication, so the bytes
//     can only come from one that waits for an answer. A rank that merely
//     computes longer than the others sends them nothing, and its fence is
//     never completed early.
//
// Releasing is harmless for the receivers: a rank in this barrier has flushed
// what it sent, the kernel delivers it although the process ends (the pod's
// network namespace outlives its ranks until the whole job has ended), and the
// late rank's own arrival finds the fence completed.
//
// # Limits
//
// Every line, key, value and the whole key-value space are bounded. Spawning
// and publishing are refused by name. A rank that breaks the protocol is
// reported, and the job is to fail.
//
// What this package does not do: PMI-2, PMIx, and starting processes.
package pmi
