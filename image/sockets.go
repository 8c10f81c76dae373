package image

// UnixNamed is what a unix socket has beside the queue of a socketpair: names,
// a listener's queue, descriptors on their way. Names are those of sun_path: a
// path without the closing zero, or an abstract name, which begins with a zero.
type UnixNamed struct {
	Name    []byte `json:"name,omitempty"`    // empty: not bound
	NameDir string `json:"nameDir,omitempty"` // what a relative path is relative to
	Mode    uint32 `json:"mode,omitempty"`    // permissions of the file with the name
	Deleted bool   `json:"deleted,omitempty"` // there was no such file any more
	Gone    bool   `json:"gone,omitempty"`    // it had another end, which was closed
	Remote  []byte `json:"remote,omitempty"`  // name of the other end
	Listen  bool   `json:"listen,omitempty"`
	Backlog int    `json:"backlog,omitempty"`
	// Waiting are the descriptions of the sockets that wait to be accepted, in
	// order.
	Waiting []int `json:"waiting,omitempty"`
	// From are the names of the senders, one per message of Queue; empty
	// when no sender had a name. Datagrams only.
	From [][]byte `json:"from,omitempty"`
	// Passed are the descriptors that come with messages of Queue.
	Passed  []Passed       `json:"passed,omitempty"`
	Options map[string]int `json:"options,omitempty"`
}

// Passed are descriptors on their way through a unix socket (SCM_RIGHTS).
type Passed struct {
	Message int   `json:"message"` // index into the queue
	Descs   []int `json:"descs"`   // descriptions, in order
}

// UDPEnd is a UDP socket. Addresses are ip:port.
type UDPEnd struct {
	Family  int            `json:"family"`           // AF_INET, AF_INET6
	Local   string         `json:"local,omitempty"`  // empty: not bound
	Remote  string         `json:"remote,omitempty"` // empty: not connected
	Queue   []Datagram     `json:"queue,omitempty"`  // unread
	Options map[string]int `json:"options,omitempty"`
}

// Datagram is a message that was received and not read.
type Datagram struct {
	From string `json:"from"` // ip:port
	Data []byte `json:"data"`
}
