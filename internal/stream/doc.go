// Package stream captures the TCP connections of a pod at a checkpoint and
// puts them back at a recovery: in live processes, which keep their sockets
// and descriptors, and for rebuilt processes, which get new sockets with the
// old addresses. It works from the supervisor of the pod, on processes that are
// frozen, through duplicates of their descriptors; the processes do not
// cooperate and nothing needs root: CAP_NET_ADMIN in the user namespace that
// owns the pod's network namespace is enough.
//
// # Checkpoint
//
//	set, err := streams.Scan(ctx, procs)   // op freeze: marks := set.Marks()
//	err = set.CaptureSend(ctx)             // op capture-send, on every pod before
//	err = set.CaptureRecv(ctx)             // op capture-recv; marks := set.Marks()
//	rec := set.Record()
//	err = set.Close()                      // before the ranks go on
//	err = rec.Trim(peers)                  // op resume, or later
//
// The coordinator joins the marks of all pods with [Pair] and gives every pod
// the marks of the other ends. Send queues are copied before receive queues
// everywhere: what a sender still holds then covers what its receiver had not
// yet. A byte that is in both copies is cut out of the sender's by Trim, so
// that an image holds every byte of a stream exactly once.
//
// Capturing uses TCP_REPAIR for some microseconds per connection. It sends
// nothing, and whatever fails, the socket is as it was before.
//
// # Recovery
//
//	live, err := streams.Scan(ctx, procs)             // op stop; nil for a new pod
//	back, err := streams.Restore(ctx, rec, live, gen) // op rollback, restore
//	items := back.Plan(pid, slots)                    // what a process lacks
//	err = Install(ctx, frozen, items)                 // often nothing
//	rec = back.Record()                               // identities as they are now
//	err = back.Release(ctx)                           // op release, after the barrier
//	err = back.Close()                                // before the ranks go on
//
// Both ends of every connection of the epoch are put back to the epoch, each
// without asking the other and without a packet: the socket is disconnected
// under TCP_REPAIR (which keeps the file, its descriptors, its epoll
// registrations and its identity), given the sequence numbers, connected, told
// what the handshake had agreed on, and its unread bytes are pushed into its
// receive queue. Only a socket that the process closed since the epoch, or one
// of a rebuilt process, is a new one and must be installed. Unsent bytes are
// written at release, when both halves of every connection exist.
//
// Because neither the network nor the other end takes part, it does not matter
// whether the live connection was still whole, reset by a dying peer, or full
// of bytes of the abandoned future. Those bytes may still be on their way,
// also from a pod that was declared lost and is not quite dead. So the
// connection comes back in another region of the sequence space, chosen by a
// hash of the recovery's generation and the direction, which both ends compute
// alike; and until release a packet filter on the socket drops every segment
// that is not of that region, and every reset.
//
// # Half-closed connections
//
// When the peer's FIN was received, the bytes before it come back and then the
// end of the stream (shutdown for reading, which is not visible to the peer);
// the peer's end is not needed. When our FIN was sent, it is sent again after
// the unsent bytes.
//
// # What it does not do
//
// Connections to programs outside of the job have an end that does not roll
// back; they are refused by Pair, as are connections in the middle of a
// handshake (both can be tried again later). Urgent data, MPTCP, kernel TLS and
// peek offsets are refused by Scan, by name. Filters attached by the program
// and TCP MD5 keys are not brought back. Congestion state starts anew.
//
// # Concurrency
//
// A Set or Restored belongs to one goroutine at a time; Streams is safe for
// concurrent use. No goroutine outlives a call.
package stream
