// Package kernel is the only place of lampause that talks to the Linux kernel
// in ways the standard library and x/sys/unix do not offer: ptrace in full,
// remote memory, pagemap scans, userfaultfd write tracking, robust lists,
// descriptors of other processes. It holds the project's only `unsafe`, in
// files named *_unsafe.go.
//
// # Sys
//
// The calls are methods of [Sys], a small value that every tracer carries. A
// Sys can be given a [Hook], which is asked before each call and may answer
// with an errno; that is how tests make the n-th kernel call fail and show
// that a traced program is unharmed. There is no package state.
//
// # Errors
//
// Every failed call returns an *[Error], which names the operation and the
// process and unwraps to its unix.Errno:
//
//	kernel: ptrace seize: pid 4242: operation not permitted
//
// A missing kernel feature is an error that matches [ErrNotSupported]; a wait
// that ran out of time matches [ErrTimeout]; a tracee that ended while it was
// waited for matches [ErrGone].
//
// # Threads
//
// All ptrace calls of one tracee must come from the OS thread that attached to
// it (ptrace(2)): use internal/proc.Tracer. Memory, pagemap, pidfd and wait
// calls may come from any thread. Sys itself is immutable and safe for
// concurrent use; a Hook must be so too.
//
// Only linux/amd64 is supported.
package kernel
