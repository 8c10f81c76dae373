// Package nsinit runs programs in private namespaces, for `lam proc`: a pid
// and a mount namespace of their own, inside a user namespace of their own
// when the caller is not root, so that processes can be given chosen pids and
// be rebuilt under their old ones.
//
//	caller (Start) --socketpair--> init (Serve), pid 1 of the namespaces
//	                                 `-> programs, with CAP_CHECKPOINT_RESTORE there
//
// Init starts programs as it is told, reaps, and reports exits. It ends when
// the caller ends, and the kernel then kills all that is left. Ids of users
// are the same inside and outside.
//
// A Namespace is safe for concurrent use; it owns one goroutine, which ends
// with Close. Serve is one goroutine and a reader of the socket.
package nsinit
