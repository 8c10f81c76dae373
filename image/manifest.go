package image

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// Version of the format that this package writes, and the only one it reads.
const Version = 2

// ManifestName is the file name of the manifest in a pod directory.
const ManifestName = "manifest"

// Identity says whose state an image is. It is part of every file.
type Identity struct {
	Job         job.ID          `json:"job"`
	Pod         job.PodIndex    `json:"pod"`
	Epoch       job.Epoch       `json:"epoch"`
	Incarnation job.Incarnation `json:"incarnation"`
}

// Manifest is all state of a pod at an epoch except memory pages and object
// contents. Big byte fields (socket and pipe contents, XSTATE, PMI state) are
// stored beside the JSON, not in it; see codec.go.
type Manifest struct {
	Version int `json:"version"`
	Identity
	Node         job.NodeID             `json:"node"`      // where it was captured
	Ranks        map[job.Rank]int       `json:"ranks"`     // pid of the rank's first process
	Processes    []Process              `json:"processes"` // parents before their children
	Descriptions []Description          `json:"descriptions"`
	Objects      []Object               `json:"objects"`
	SysV         *SysV                  `json:"sysv,omitempty"`
	Stdio        []StdioCount           `json:"stdio"`
	PMI          []byte                 `json:"pmi,omitempty"` // opaque state of the PMI server
	Host         Host                   `json:"host"`
	Clock        Clock                  `json:"clock"`
	Files        map[string]podapi.File `json:"files"` // page files by name, also shared ones; set by Writer.Commit
	Tails        map[string]uint64      `json:"tails"` // XXH3 of their trailers, which cover all of them; set by Writer.Commit
}

// StdioCount is how many bytes a rank had written to one of its output
// streams, or read from stdin, at the epoch.
type StdioCount struct {
	Rank  job.Rank `json:"rank"`
	FD    int      `json:"fd"` // 0, 1 or 2
	Bytes int64    `json:"bytes"`
}

// Clock is the time at the epoch: timers are restored relative to it.
type Clock struct {
	MonotonicNS int64     `json:"monotonic_ns"`
	BoottimeNS  int64     `json:"boottime_ns"`
	Wall        time.Time `json:"wall"` // for people only; nothing decides by it
}

// ObjectKind tells stored memory objects apart by how they come back.
type ObjectKind string

// The kinds of objects.
const (
	ObjectAnon    ObjectKind = "shared-anon" // MAP_SHARED|MAP_ANONYMOUS, /dev/zero
	ObjectMemfd   ObjectKind = "memfd"
	ObjectDeleted ObjectKind = "deleted" // file without a name: made, opened, unlinked
	ObjectShm     ObjectKind = "shm"     // file of the pod's private /dev/shm
	ObjectMapped  ObjectKind = "file"    // regular file that is mapped shared and writable, or kept by --files=save
	ObjectAbsent  ObjectKind = "absent"  // name beside a kept file that was not there: a journal that may be there now
	ObjectSysV    ObjectKind = "sysv"
)

// Object is memory or file contents that are not one process' alone. Its bytes
// are in the page file ObjectFile(index+1, epoch), addresses being offsets.
type Object struct {
	Kind  ObjectKind `json:"kind"`
	Name  string     `json:"name,omitempty"` // memfd name, or path (also of deleted files)
	Size  int64      `json:"size"`
	Mode  uint32     `json:"mode,omitempty"`
	Seals int        `json:"seals,omitempty"` // F_GET_SEALS
	Flags int        `json:"flags,omitempty"` // MFD_* of memfd_create
	Key   int32      `json:"key,omitempty"`   // SysV
}

// ProcessFile returns the name of the page file that epoch e wrote of process
// pid.
func ProcessFile(pid int, e job.Epoch) string { return partName('p', pid, e) }

// ObjectFile returns the name of the page file that epoch e wrote of object id,
// counted from 1.
func ObjectFile(id int, e job.Epoch) string { return partName('o', id, e) }

func partName(kind byte, id int, e job.Epoch) string {
	return string(kind) + strconv.Itoa(id) + "-" + epochName(e) + ".pages"
}

// Process returns the process with the given pid, nil if there is none.
func (m *Manifest) Process(pid int) *Process {
	i := slices.IndexFunc(m.Processes, func(p Process) bool { return p.PID == pid })
	if i < 0 {
		return nil
	}
	return &m.Processes[i]
}

// LastPID returns the highest number that a process, thread, group or session
// of the image has.
func (m *Manifest) LastPID() int {
	n := 0
	for i := range m.Processes {
		p := &m.Processes[i]
		n = max(n, p.PID, p.PGID, p.SID)
		for _, th := range p.Threads {
			n = max(n, th.TID)
		}
		for _, z := range p.Zombies {
			n = max(n, z.PID)
		}
	}
	return n
}

// Description returns the open file description id, nil if there is none.
// Ids count from 1.
func (m *Manifest) Description(id int) *Description {
	if id < 1 || id > len(m.Descriptions) {
		return nil
	}
	return &m.Descriptions[id-1]
}

// Validate reports the first inner contradiction of m: an index that points
// nowhere, a process twice, a rank without a process. A manifest that passes
// can be walked without further bounds checks.
//
// Expected errors: ErrCorrupt, ErrIncomplete or ErrVersion, naming the part.
func (m *Manifest) Validate() error {
	if m.Version != Version {
		return versionError("manifest", uint64(m.Version)) //nolint:gosec // only for the message
	}
	pids := map[int]bool{}
	for i := range m.Processes {
		p := &m.Processes[i]
		if p.PID < 1 || pids[p.PID] {
			return fmt.Errorf("%w: process %d invalid or twice", ErrCorrupt, p.PID)
		}
		if p.PPID != 0 && !pids[p.PPID] {
			return fmt.Errorf("%w: process %d stands before its parent %d", ErrCorrupt, p.PID, p.PPID)
		}
		pids[p.PID] = true
		if err := m.validateProcess(p); err != nil {
			return fmt.Errorf("process %d: %w", p.PID, err)
		}
	}
	for rank, pid := range m.Ranks {
		if !pids[pid] {
			return fmt.Errorf("%w: rank %d: no process %d", ErrIncomplete, rank, pid)
		}
	}
	for i := range m.Descriptions {
		if err := m.validateDescription(&m.Descriptions[i]); err != nil {
			return fmt.Errorf("description %d: %w", i+1, err)
		}
	}
	if m.SysV != nil {
		for _, s := range m.SysV.Segments {
			if s.Object < 1 || s.Object > len(m.Objects) {
				return fmt.Errorf("%w: segment %d: no object %d", ErrCorrupt, s.ID, s.Object)
			}
		}
	}
	for i := range m.Objects {
		if m.Objects[i].Size < 0 {
			return fmt.Errorf("%w: object %d: negative size", ErrCorrupt, i+1)
		}
	}
	return nil
}

func (m *Manifest) validateProcess(p *Process) error {
	if p.Exited != nil {
		return nil
	}
	if len(p.Threads) == 0 || p.Threads[0].TID != p.PID {
		return fmt.Errorf("%w: no leading thread", ErrCorrupt)
	}
	var end uint64
	for _, v := range p.Maps {
		if v.Start >= v.End || v.Start < end {
			return fmt.Errorf("%w: mapping %x-%x out of order", ErrCorrupt, v.Start, v.End)
		}
		if v.Object < 0 || v.Object > len(m.Objects) || (v.Kind == MapObject && v.Object == 0) {
			return fmt.Errorf("%w: mapping %x: no object %d", ErrCorrupt, v.Start, v.Object)
		}
		if (v.Kind == MapPrivate || v.Kind == MapSharedFile) && v.File == nil && v.Object == 0 {
			return fmt.Errorf("%w: mapping %x: no file", ErrCorrupt, v.Start)
		}
		end = v.End
	}
	last := -1
	for _, f := range p.FDs {
		if f.Num <= last || f.Desc < 1 || f.Desc > len(m.Descriptions) {
			return fmt.Errorf("%w: descriptor %d (description %d)", ErrCorrupt, f.Num, f.Desc)
		}
		last = f.Num
	}
	return nil
}

func (m *Manifest) validateDescription(d *Description) error {
	missing := func(what string) error { return fmt.Errorf("%w: %s without %s", ErrCorrupt, d.Kind, what) }
	switch {
	case d.Object < 0 || d.Object > len(m.Objects):
		return missing("object")
	case d.Kind == FDFile && d.File == nil:
		return missing("file")
	case d.Kind == FDMemfd && d.Object == 0:
		return missing("object")
	case (d.Kind == FDPipe || d.Kind == FDFifo) && d.Pipe == nil:
		return missing("pipe")
	case d.Kind == FDEventfd && d.Event == nil:
		return missing("count")
	case d.Kind == FDTimerfd && d.Timer == nil:
		return missing("timer")
	case (d.Kind == FDTCP || d.Kind == FDListener) && d.TCP == nil:
		return missing("connection")
	case (d.Kind == FDUnixPair || d.Kind == FDUnix) && d.Unix == nil:
		return missing("peer")
	case d.Kind == FDUDP && d.UDP == nil:
		return missing("address")
	case d.Unix != nil && (d.Unix.Peer < 0 || d.Unix.Peer > len(m.Descriptions)):
		return missing("peer")
	}
	if u := d.Unix; u != nil {
		for _, id := range u.Waiting {
			if w := m.Description(id); w == nil || w.Unix == nil {
				return missing("waiting socket")
			}
		}
		for _, p := range u.Passed {
			if p.Message < 0 || p.Message >= len(u.Queue) || slices.ContainsFunc(p.Descs, func(id int) bool { return m.Description(id) == nil }) {
				return missing("passed description")
			}
		}
	}
	for _, it := range d.Epoll {
		if it.Desc < 0 || it.Desc > len(m.Descriptions) {
			return missing("registered description")
		}
	}
	return nil
}
