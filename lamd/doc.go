// Package lamd is the node daemon: it wires membership, the scheduler, the
// image store, the pods of this node and the control API together. It is the
// only package that knows all of them; they meet here through interfaces.
//
// What runs where. Every daemon runs membership, a raft member or a mere
// follower of one, an HTTP server on the node's address (node API: other
// daemons), one on a unix socket (control API: lam and mpirun), the manager of
// this node's pods and the lease loop. The daemon that leads raft also runs one
// conductor per job that is not final (lead.go), each a pure core from
// scheduler/conduct driven by one goroutine.
//
// What lamd does not do: it never touches a rank. The pod supervisor does, and
// it outlives this daemon; a restarted daemon finds running supervisors by
// their sockets (adopt.go).
//
// Lock order: pods.busy is held, per job, while a request to the supervisor of
// that job is under way, and nodeAPI.copying, per image, while it is fetched.
// Daemon.mu, pods.mu, lead.mu and news.mu are leaves and are never held while
// another is taken or while a request is under way.
package lamd
