package image

// SysV are the System V objects of a pod's IPC namespace. The numbers are those
// that the processes know them by.
type SysV struct {
	Segments   []SysVSegment    `json:"segments,omitempty"`
	Semaphores []SysVSemaphores `json:"semaphores,omitempty"`
	Queues     []SysVQueue      `json:"queues,omitempty"`
}

// SysVSegment is a shared memory segment; its contents are an object.
type SysVSegment struct {
	ID      int    `json:"id"`
	Key     int32  `json:"key"`
	Mode    uint32 `json:"mode"`
	Size    uint64 `json:"size"`              // bytes
	Removed bool   `json:"removed,omitempty"` // goes when nobody has it mapped any more
	Object  int    `json:"object"`            // 1-based index into Manifest.Objects
}

// SysVSemaphores is a set of semaphores.
type SysVSemaphores struct {
	ID     int      `json:"id"`
	Key    int32    `json:"key"`
	Mode   uint32   `json:"mode"`
	Values []uint16 `json:"values"`
}

// SysVQueue is a message queue.
type SysVQueue struct {
	ID       int           `json:"id"`
	Key      int32         `json:"key"`
	Mode     uint32        `json:"mode"`
	MaxBytes uint64        `json:"max_bytes"`
	Messages []SysVMessage `json:"messages,omitempty"`
}

// SysVMessage is one message of a queue.
type SysVMessage struct {
	Type int64  `json:"type"`
	Text []byte `json:"text"`
}
