// Package migrate rebuilds the processes of a pod that is lost, from their
// image, in the namespaces of a new pod: the same pids and thread ids, the
// same memory at the same addresses, the same descriptors.
//
// # Mechanism
//
// The pod holds a seed: a program of a few bytes that only waits (SeedFile).
// It is frozen with internal/proc and made to clone the skeleton of the
// process tree: clone3 with the wanted pids, the first processes as children
// of the seed's own parent (pod-init), the others of their parents. Each
// skeleton executes the old program, so that /proc/PID/exe is right, and is
// stopped at its first instruction; then everything the kernel mapped is
// thrown away but the vdso, which is moved to its old place. The old mappings
// are made, pages are stored from outside by several goroutines, and what the
// kernel keeps of a process is set by injected system calls: signal handlers,
// thread ids, timers, limits, and the rest.
//
// Open file descriptions (files, pipes, sockets, ...) are made by the calling
// process and travel over the seed's socket with SCM_RIGHTS, so that a
// description that several processes share is one again. Descriptions that
// belong to the world outside of the image (stdio, PMI, TCP) come from the
// caller through Sources.
//
// Order, per seed: check -> skeleton -> per process: exec, layout, fill (other
// goroutines) -> per process: protections, mm, descriptors, epoll sets,
// attributes, threads, signals, registers -> all frozen -> Release.
//
// # Undo
//
// Nothing is started before the whole image was verified and fits the host.
// On any error all half-built processes are killed and the seeds are released;
// the caller may try again in the same pod, with new seeds.
//
// # Goroutines and locks
//
// Each seed has one proc.Tracer; its goroutine and the page writers are owned
// by Restore. A Restored is used by one goroutine at a time; Process is safe
// from any.
//
// # What it does not do
//
// It decides nothing about epochs and knows nothing of pods, networks or MPI.
package migrate
