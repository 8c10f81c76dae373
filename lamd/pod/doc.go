// Package pod is what holds the ranks of one job on one node, and what runs
// beside them: the supervisor (`lamd pod DIR`), and pod-init (`lamd podinit`),
// which is pid 1 of the pod.
//
//	lamd --Starter--> lamd pod DIR        launcher: maps the owner, ends at once
//	                     `-> supervisor   uid 0 of user namespace S, which owns
//	                          |           the pod's network namespace
//	                          `-> pod-init    pid 1; user namespace R inside S
//	                               `-> ranks  the owner's uid, one capability
//
// The supervisor does not depend on lamd: it is a session of its own, its
// parent is gone when it starts to work, and lamd finds it again by its socket
// DIR/pod.sock (internal/podapi). It is the tracer of the ranks (only during
// an operation), their PMI server, the collector of their output, the keeper
// of the pod's lease. If the supervisor dies, pod-init dies, and the kernel
// kills every process of the pid namespace with it.
//
// # Namespaces
//
// S is made by the launcher with the owner as uid 0; the supervisor stays in
// the pid and mount namespaces of the node. R is made by the supervisor with
// the owner's own number, and owns the pod's pid, mount, ipc and uts
// namespaces. Nothing here needs root: root, or the local cluster's user
// namespace, only adds the link (lamd/nodelink).
//
// # Goroutines and locks
//
// supervisor.Run owns all goroutines in one errgroup. Each part (outputs,
// stdin, eventLog, exitBook, phases, pmi.Server) has one mutex of its own and
// calls no other part while holding it, except that phases, which runs one
// operation at a time, calls all others. pod-init is one goroutine on one
// thread, plus a reader of its socket.
//
// # Files in DIR
//
//	spec.json   podapi.PodSpec, written by lamd
//	pod.sock    the supervisor's socket, 0600
//	pod.log     log of supervisor and pod-init
//	exits.json  how ranks ended, replaced atomically
//	void.json   attempts that this pod voided, replaced atomically, durable
//	out/R.F     what rank R wrote to descriptor F
//	stdin       input of rank 0 that may have to be given again
package pod
