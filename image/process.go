package image

// This file holds the vocabulary of a process image: what pause/ captures and
// migrate/ rebuilds. All of it is data; numbers are the kernel's own (signal
// numbers, PROT_*, MAP_*, O_*), addresses are of the process.

// Process is the state of one process at an epoch, without its memory pages.
type Process struct {
	PID        int          `json:"pid"`  // in the pid namespace of the pod
	PPID       int          `json:"ppid"` // 0: parent is outside of the image
	PGID       int          `json:"pgid"`
	SID        int          `json:"sid"`
	Exe        MappedFile   `json:"exe"`
	Cwd        string       `json:"cwd"`
	Umask      uint32       `json:"umask"`
	Comm       string       `json:"comm"`
	Dumpable   int          `json:"dumpable"`
	Nice       int          `json:"nice"`
	Rlimits    []Rlimit     `json:"rlimits"`
	MM         MM           `json:"mm"`
	Maps       []Mapping    `json:"maps"`
	Threads    []Thread     `json:"threads"` // Threads[0] is the leader: TID == PID
	Actions    []SigAction  `json:"actions"` // index = signal number - 1, 64 of them
	Pending    [][]byte     `json:"pending"` // shared pending siginfo_t, 128 bytes each
	ITimers    [3]ITimer    `json:"itimers"`
	PTimers    []PosixTimer `json:"posix_timers"`
	FDs        []FD         `json:"fds"` // ascending by Num
	Seccomp    int          `json:"seccomp"`
	NoNewPriv  bool         `json:"no_new_privs"`
	Zombies    []Zombie     `json:"zombies,omitempty"`
	Foreground bool         `json:"foreground,omitempty"` // of the group that its terminal belonged to
	Locks      []FileLock   `json:"locks,omitempty"`      // of kind posix
	Exited     *int         `json:"exited,omitempty"`     // wait status: the process had ended before the epoch
}

// MM is what PR_SET_MM_MAP takes (prctl(2), struct prctl_mm_map).
type MM struct {
	StartCode, EndCode, StartData, EndData uint64
	StartBrk, Brk, StartStack              uint64
	ArgStart, ArgEnd, EnvStart, EnvEnd     uint64
	Auxv                                   []byte
}

// MappedFile identifies a file that must be the same one at a restart.
type MappedFile struct {
	Path    string `json:"path"`
	Dev     uint64 `json:"dev"`
	Ino     uint64 `json:"ino"`
	Size    int64  `json:"size"`
	BuildID string `json:"build_id,omitempty"` // hex, of ELF files
	SHA256  string `json:"sha256,omitempty"`   // hex, of small files without a build-id
}

// Mapping is one line of /proc/PID/maps plus what smaps tells of it.
type Mapping struct {
	Start, End uint64
	Prot       uint32 // PROT_*
	Shared     bool   // MAP_SHARED
	Offset     uint64 // of a file mapping
	Kind       MapKind
	File       *MappedFile `json:",omitempty"` // file, shared-file, deleted
	Object     int         `json:",omitempty"` // 1-based index into Manifest.Objects: shared anonymous memory, memfd, deleted files
	Grows      bool        // MAP_GROWSDOWN
	Advice     []string    `json:",omitempty"` // VmFlags that matter: hg nh dd wf dc um io lo
}

// MapKind tells mappings apart by how they come back.
type MapKind string

// The kinds of mappings. Everything else is an obstacle, named at checkpoint.
const (
	MapAnon       MapKind = "anon"
	MapPrivate    MapKind = "private-file"
	MapSharedFile MapKind = "shared-file" // existing regular file
	MapObject     MapKind = "object"      // shared anonymous, memfd, unlinked shm: contents are in the image
	MapHeap       MapKind = "heap"
	MapStack      MapKind = "stack"
	MapVDSO       MapKind = "vdso"
	MapVVAR       MapKind = "vvar" // [vvar] and [vvar_vclock]
	MapVsyscall   MapKind = "vsyscall"
)

// Thread is one task. Regs is struct user_regs_struct as the kernel gives it
// (27 words), normalised: an interrupted system call that must run again has
// rip at its syscall instruction and orig_rax = -1.
type Thread struct {
	TID        int        `json:"tid"`
	Comm       string     `json:"comm"`
	Regs       [27]uint64 `json:"regs"`
	XState     []byte     `json:"xstate"`
	SigMask    uint64     `json:"sigmask"`
	AltStack   AltStack   `json:"altstack"`
	Pending    [][]byte   `json:"pending"` // siginfo_t, 128 bytes each
	RobustHead uint64     `json:"robust_head"`
	RobustLen  uint64     `json:"robust_len"`
	ClearTID   uint64     `json:"clear_tid"`
	RseqAddr   uint64     `json:"rseq_addr"`
	RseqLen    uint32     `json:"rseq_len"`
	RseqSig    uint32     `json:"rseq_sig"`
	Affinity   []uint64   `json:"affinity"` // cpu bits
	Nice       int        `json:"nice"`
	Policy     int        `json:"policy"`
	Priority   int        `json:"priority"`
	PDeathSig  int        `json:"pdeathsig"`
}

// AltStack is stack_t of sigaltstack(2).
type AltStack struct {
	SP    uint64 `json:"sp"`
	Flags int32  `json:"flags"`
	Size  uint64 `json:"size"`
}

// SigAction is the kernel's struct sigaction.
type SigAction struct {
	Handler  uint64 `json:"h"`
	Flags    uint64 `json:"f"`
	Restorer uint64 `json:"r"`
	Mask     uint64 `json:"m"`
}

// Rlimit is one resource of prlimit(2).
type Rlimit struct {
	Resource int    `json:"resource"`
	Cur      uint64 `json:"cur"`
	Max      uint64 `json:"max"`
}

// ITimer is struct itimerval in microseconds.
type ITimer struct {
	IntervalUS int64 `json:"interval_us"`
	ValueUS    int64 `json:"value_us"`
}

// PosixTimer is a timer of timer_create(2).
type PosixTimer struct {
	ID         int    `json:"id"`
	Clock      int    `json:"clock"`
	Notify     int    `json:"notify"` // SIGEV_*
	Signal     int    `json:"signal"`
	TID        int    `json:"tid"`
	Value      uint64 `json:"value"` // sigev_value
	IntervalNS int64  `json:"interval_ns"`
	ValueNS    int64  `json:"value_ns"`
	Overrun    int    `json:"overrun"`
}

// Zombie is a child that ended and was not yet waited for.
type Zombie struct {
	PID    int `json:"pid"`
	Status int `json:"status"`
}

// FDKind tells descriptors apart by how they come back.
type FDKind string

// The kinds of descriptors. Everything else is an obstacle.
const (
	FDFile     FDKind = "file"   // regular file or directory
	FDDevice   FDKind = "device" // /dev/null, zero, full, random, urandom
	FDPipe     FDKind = "pipe"
	FDFifo     FDKind = "fifo"
	FDEventfd  FDKind = "eventfd"
	FDEpoll    FDKind = "epoll"
	FDTimerfd  FDKind = "timerfd"
	FDSignalfd FDKind = "signalfd"
	FDMemfd    FDKind = "memfd"
	FDUnixPair FDKind = "unix-pair"
	FDUnix     FDKind = "unix" // unix sockets with names, listeners, unconnected ones
	FDUDP      FDKind = "udp"
	FDTCP      FDKind = "tcp"
	FDListener FDKind = "tcp-listener"
	FDTTY      FDKind = "tty"
	FDExternal FDKind = "external" // given by the supervisor (stdio, PMI): named, not stored
)

// FD is one descriptor. Descriptors with the same Desc share one open file
// description, also across processes.
type FD struct {
	Num     int  `json:"num"`
	CloExec bool `json:"cloexec,omitempty"`
	Desc    int  `json:"desc"` // 1-based index into Manifest.Descriptions
}

// Description is an open file description.
type Description struct {
	Kind     FDKind      `json:"kind"`
	Flags    int         `json:"flags"` // O_* of fcntl(F_GETFL)
	Path     string      `json:"path,omitempty"`
	File     *FileState  `json:"file,omitempty"`
	Object   int         `json:"object,omitempty"` // memfd, deleted file: index into Manifest.Objects
	Pipe     *PipeEnd    `json:"pipe,omitempty"`
	Event    *EventState `json:"event,omitempty"`
	Epoll    []EpollItem `json:"epoll,omitempty"`
	Timer    *TimerState `json:"timer,omitempty"`
	SigMask  uint64      `json:"sigmask,omitempty"`
	Unix     *UnixEnd    `json:"unix,omitempty"`
	TCP      *TCPEnd     `json:"tcp,omitempty"`
	UDP      *UDPEnd     `json:"udp,omitempty"`
	External string      `json:"external,omitempty"` // "stdin" "stdout" "stderr" "pmi"
	Locks    []FileLock  `json:"locks,omitempty"`    // of kinds ofd and flock
	Terminal *Terminal   `json:"terminal,omitempty"` // of external ones
}

// FileState is a regular file behind a description.
type FileState struct {
	MappedFile
	Offset  int64  `json:"offset"`
	Mode    uint32 `json:"mode"` // st_mode: type and permissions
	Deleted bool   `json:"deleted,omitempty"`
	// Stamp is set for files open for writing whose contents are not stored.
	Stamp *FileStamp `json:"stamp,omitempty"`
}

// PipeEnd joins the two ends of a pipe by ID; Data is stored once, with the
// first end met.
type PipeEnd struct {
	ID    uint64 `json:"id"` // inode
	Write bool   `json:"write"`
	Size  int    `json:"size"` // F_GETPIPE_SZ
	Data  []byte `json:"data,omitempty"`
}

// EventState is an eventfd.
type EventState struct {
	Count     uint64 `json:"count"`
	Semaphore bool   `json:"semaphore,omitempty"`
}

// EpollItem is one registration: a `tfd:` line of fdinfo.
type EpollItem struct {
	FD     int    `json:"fd"`
	Events uint32 `json:"events"`
	Data   uint64 `json:"data"`
	Desc   int    `json:"desc"` // the registered description
}

// TimerState is a timerfd.
type TimerState struct {
	Clock      int    `json:"clock"`
	Flags      int    `json:"flags"`
	Ticks      uint64 `json:"ticks"`
	ValueNS    int64  `json:"value_ns"`
	IntervalNS int64  `json:"interval_ns"`
}

// UnixEnd is one end of a socketpair; Peer is the description of the other.
type UnixEnd struct {
	Type  int      `json:"type"` // SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM
	Peer  int      `json:"peer"`
	Queue [][]byte `json:"queue"` // unread, by message; one element for streams
	ShutR bool     `json:"shut_r,omitempty"`
	ShutW bool     `json:"shut_w,omitempty"`
	UnixNamed
}

// TCPEnd is one end of a connection, or a listener. Recv are the unread bytes;
// Send the bytes that the peer had not received (already trimmed to the
// peer's rcv_nxt, which is SendSeq).
type TCPEnd struct {
	Local      string         `json:"local"`  // ip:port
	Remote     string         `json:"remote"` // empty for listeners
	State      uint8          `json:"state"`
	Backlog    int            `json:"backlog,omitempty"`
	SendSeq    uint32         `json:"send_seq"`
	RecvSeq    uint32         `json:"recv_seq"` // rcv_nxt
	Recv       []byte         `json:"recv,omitempty"`
	Send       []byte         `json:"send,omitempty"`
	EOF        bool           `json:"eof,omitempty"`     // the peer's FIN was received
	Closed     bool           `json:"closed,omitempty"`  // our FIN was sent
	Options    map[string]int `json:"options,omitempty"` // nodelay, keepalive, ...: see internal/stream
	MSS        uint32         `json:"mss"`
	SndWScale  uint8          `json:"snd_wscale"`
	RcvWScale  uint8          `json:"rcv_wscale"`
	SACK       bool           `json:"sack"`
	Timestamps bool           `json:"timestamps"`
	TSVal      uint32         `json:"tsval"`
	Cookie     uint64         `json:"cookie"`              // SO_COOKIE of the live socket at the epoch: its identity
	Family     int            `json:"family"`              // AF_INET, AF_INET6
	MaxWindow  uint32         `json:"max_window"`          // largest window that the peer ever offered, bytes
	PeerGone   bool           `json:"peer_gone,omitempty"` // no process holds the other end
	Pending    bool           `json:"pending,omitempty"`   // the other end waits in a listener's queue; only in images of a process tree
	Reset      bool           `json:"reset,omitempty"`     // the peer's reset was received and not told yet; likewise
	Congestion string         `json:"congestion,omitempty"`
}
