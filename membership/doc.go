// Package membership tells which nodes of the cluster live: hashicorp/memberlist
// gossip underneath, and above it a table of our own that weighs all evidence
// about a node before a verdict leaves the package. Gossip only suggests;
// whoever consumes Events puts the suggestion to the agreed log.
//
// # Mechanism
//
// A member is named NODE#BOOT in the gossip, so a node that started anew is a
// different member from the one that died. What is said about a member comes
// from several sources of different speed (see Source): a newer boot of the
// same node, an operator, connections that were reset or timed out as lamd
// reports them, memberlist's verdict, failing dials. Any accusation makes the
// Cluster probe the member itself: a gossip ping and a TCP dial of its gossip
// port, every ProbeEvery. The dial tells three cases apart that all look silent
// from afar:
//
//	unreachable  nothing answers         the node is lost: Dead when a second source agrees
//	refused      kernel answers, no lamd lamd restarts: Dead only after RestartGrace
//	accepted     lamd hangs              stopped or starved: Dead only after RestartGrace
//
// Whoever cannot reach a member tells all others (a user message of the gossip);
// they look for themselves, and two such voices and our own probes are enough,
// without waiting for memberlist's suspicion timeout. A member that is starved of
// CPU is not killed that way: its kernel still accepts.
//
// An answer of any kind clears the accusation. A local stall (this process was
// not scheduled) voids the failures counted meanwhile, and when most other
// members seem lost at once, the fault is probably here and the verdicts wait
// (IsolationHold). Dead members are dialled again with growing pauses, so that a
// healed partition finds together.
//
// # Goroutines
//
// Run owns all of them: one loop that owns the table and delivers events, one
// joiner, at most one prober per accused member, and memberlist's own, which end
// with its Shutdown. The table (table.go, verdict.go) is pure: no clock, no
// goroutine, no I/O.
//
// # Locks
//
// mailbox.mu is a leaf: memberlist's callbacks run under memberlist's node lock
// and only append to the mailbox. Nothing else is held while calling memberlist.
//
// # What it does not do
//
// It decides nothing: numbered views, boots and fencing belong to the scheduler
// and the pod supervisors. It carries no job data; see package
// membership/tree for reaching all members of a view.
package membership
