// Package message knows the sockets that carry messages: unix sockets of all
// types, and UDP. It reads what they hold without taking it, and makes them
// anew. Both pause/ and migrate/ are made of it; it works on descriptors of the
// calling process and knows no processes.
//
// # Unix sockets
//
// A socketpair is made anew as one. A connection that came about through a
// listener is made by connecting to that listener, or to one that lives for the
// moment. Names are bound again; a file that a name left behind is replaced.
// Queued messages are sent again by the socket that sent them, or by one that
// nobody can tell from it, with their descriptors.
//
// # UDP
//
// Datagrams are sent again from the address they came from: by the socket of
// the set that has it, or by one that is bound to it for the moment.
//
// # What it does not do
//
// Credentials on their way (SO_PASSCRED) cannot be told to the kernel and are
// refused. What SO_PEERCRED tells of a connection made anew is who restored it.
// Memberships in multicast groups cannot be read. An empty datagram that was
// seen at one checkpoint is not seen at the next.
//
// # Concurrency
//
// A Unix or UDP value is used by one goroutine at a time. No goroutine outlives
// a call.
package message
