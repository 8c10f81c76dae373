// Package pid1 is what the inits of this project have in common: pod-init
// (lamd/pod) and the init of `lam proc` (internal/nsinit). Each is pid 1 of a
// pid namespace, starts processes under chosen numbers as it is told, reaps,
// and reports ends; it ends with the process that started it, and the kernel
// then kills all that is left in the namespace (pid_namespaces(7)).
//
//	starter (Client) --SOCK_SEQPACKET socketpair--> init (Serve)
//	                                                 `-> processes
//
// The protocol is JSON, one message per packet, with descriptors beside it. The
// starter asks, init answers with the same ID; ID 0 marks what init says by
// itself. What may be large (arguments, environment) travels in a memory file.
// Both ends are the same program, so the protocol has no version.
//
// Making the namespaces, and completing them (mounts, capabilities), is the
// users' part. A Client is safe for concurrent use. Serve is one goroutine on
// one locked thread, because tracing and the wanted number belong to a thread,
// and a reader of the socket.
package pid1
