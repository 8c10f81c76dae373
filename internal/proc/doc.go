// Package proc works on other processes from outside: it stops them, reads and
// writes their memory and registers, makes them carry out system calls, and
// lets them go on as if nothing had happened. pause/ and migrate/ are built on
// it. It needs no cooperation of the program and no privilege beyond ptrace of
// a process of the same user.
//
// # Use
//
//	t := proc.NewTracer(kernel.New(nil))
//	defer t.Close()
//	f, err := t.Freeze(ctx, pid)       // every thread is stopped
//	b := f.Batch(f.Leader())           // system calls to inject
//	path := b.String("/tmp/x")
//	open := b.Call(unix.SYS_OPENAT, unix.AT_FDCWD, path, unix.O_RDONLY, 0)
//	err = b.Run(ctx)                   // carried out by the process itself
//	fd := open.Ret
//	err = f.Thaw(ctx)                  // as before, untraced
//
// A tracee is made from another one (a "seed") with [Frozen.CloneProcess]
// (clone3 with chosen pids; the child is attached and stopped before its first
// instruction), turned into another program with [Frozen.Exec], given threads
// with [Frozen.CloneThread], memory with [Frozen.WriteMem], and registers with
// [Frozen.SetRegs], [Frozen.SetXState] and [Frozen.SetSigMask].
//
// # Mechanism
//
// Freezing is PTRACE_SEIZE and PTRACE_INTERRUPT of each thread, repeated until
// /proc/PID/task shows no new one. Injection runs a small loop, the stub, in a
// page mapped into the process for that purpose: {number, six arguments,
// result} records are worked off until an int3 brings the thread back. One
// batch costs two stops, whatever its length. The page itself is mapped and
// unmapped by single-stepping over a `syscall` instruction of the vdso.
// All signals but SIGTRAP are blocked meanwhile. A program that ignores
// SIGTRAP cannot be injected into (the kernel would reset that): Batch refuses.
//
// # Undo before do
//
// After every batch, and on every error path, the thread has its own registers
// and signal mask again. If the tracer is killed between two batches, the
// kernel releases the process, which runs on with at most one extra mapping.
//
// # Threads and locks
//
// The kernel binds a tracee to the OS thread that attached to it. A [Tracer]
// owns one goroutine locked to its OS thread; every method that needs it hops
// there by itself, and [Tracer.Do] runs a whole function there to save hops.
// Do may be nested. Methods of one Frozen must not be called concurrently,
// except ReadMem, ReadMemV, WriteMem and WriteMemV, which are safe from any
// goroutine while the process is frozen. Different Tracers are independent.
//
// # What it does not do
//
// It knows nothing of images, epochs or sockets, and it never stays attached:
// a Frozen is thawed, or killed.
package proc
