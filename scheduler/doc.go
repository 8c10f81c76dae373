// Package scheduler holds what the whole cluster agrees on: nodes, views,
// jobs, placements, epochs, recoveries and events.
//
// It has two halves. The core is pure: Step maps a State and a Command to the
// next State and the Actions that follow, without clock, randomness, input or
// output, so that every node that applies the same log has the same state and
// every failure story can be told as a text script (testdata/). The driver
// (Scheduler) runs the core over hashicorp/raft with the log store of package
// raftlog.
//
// Gossip only suggests, the log decides: a node is dead when a DeclareDead
// command says so, and that same entry holds the new view, the epoch that
// every affected job returns to, its new placement, its address book and its
// incarnation.
//
// The leader's volatile work (calling pods, deadlines, leases, fences) is in
// scheduler/conduct, a pure core of its own that reads State and proposes
// Commands. See DESIGN.md beside this file.
//
// A State and everything it refers to is immutable once Step has returned it;
// it may be shared by any number of goroutines and must not be written to.
package scheduler
