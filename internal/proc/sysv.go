package proc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// Segment is a System V shared memory segment.
type Segment struct {
	ID      int
	Key     int32
	Mode    uint32 // permissions
	Size    uint64 // bytes, as it was asked for
	Removed bool   // marked to go with the last process that has it
}

// Semaphores is a System V semaphore set.
type Semaphores struct {
	ID     int
	Key    int32
	Mode   uint32
	Values []uint16
}

// Queue is a System V message queue.
type Queue struct {
	ID       int
	Key      int32
	Mode     uint32
	MaxBytes uint64
	Messages []Message
}

// Message is one message of a Queue.
type Message struct {
	Type int64
	Text []byte
}

// SysV are the System V objects of an IPC namespace.
type SysV struct {
	Segments   []Segment
	Semaphores []Semaphores
	Queues     []Queue
}

// Numbers of linux/shm.h, linux/sem.h, linux/msg.h and linux/ipc.h, and the
// layout of their structures on x86-64: struct ipc64_perm is 48 bytes.
const (
	shmInfo, shmStat = 14, 13
	semInfo, semStat = 19, 18
	msgInfo, msgStat = 12, 11
	semGetAll        = 13
	semSetAll        = 17
	ipcRmid, ipcSet  = 0, 1
	ipcStat          = 2
	ipcCreat         = 0o1000
	ipcExcl          = 0o2000
	ipcNoWait        = 0o4000
	msgNoError       = 0o10000
	msgCopy          = 0o40000
	shmDest          = 0o1000
	permBytes        = 48
	statBytes        = 128 // the largest of the three is 120
)

// ReadSysV lists the System V objects of f's IPC namespace that f may see, with
// values and messages; the contents of segments are left to the caller. It
// changes nothing.
//
// Expected errors: *kernel.Error; ENOSYS without CONFIG_CHECKPOINT_RESTORE when
// there are messages.
func (f *Frozen) ReadSysV(ctx context.Context) (*SysV, error) {
	v := &SysV{}
	err := f.eachIPC(ctx, unix.SYS_SHMCTL, shmInfo, shmStat, false, func(id int, raw []byte) error {
		s := Segment{ID: id, Size: word(raw, permBytes)}
		s.Key, s.Mode = perm(raw)
		s.Removed = binary.LittleEndian.Uint32(raw[20:])&shmDest != 0
		v.Segments = append(v.Segments, s)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("shared memory: %w", err)
	}
	err = f.eachIPC(ctx, unix.SYS_SEMCTL, semInfo, semStat, true, func(id int, raw []byte) error {
		s := Semaphores{ID: id, Values: make([]uint16, word(raw, 80))}
		s.Key, s.Mode = perm(raw)
		b := f.Batch(f.Leader())
		at := b.Alloc(2 * len(s.Values))
		b.Call(unix.SYS_SEMCTL, uint64(id), 0, semGetAll, at)
		if err := b.Run(ctx); err != nil {
			return err
		}
		values, err := b.Read(at, 2*len(s.Values))
		for i := range s.Values {
			s.Values[i] = binary.LittleEndian.Uint16(values[2*i:])
		}
		v.Semaphores = append(v.Semaphores, s)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("semaphores: %w", err)
	}
	err = f.eachIPC(ctx, unix.SYS_MSGCTL, msgInfo, msgStat, false, func(id int, raw []byte) (err error) {
		q := Queue{ID: id, MaxBytes: word(raw, 88)}
		q.Key, q.Mode = perm(raw)
		q.Messages, err = f.peekQueue(ctx, id, int(word(raw, 80)), int(word(raw, 72)))
		v.Queues = append(v.Queues, q)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("message queues: %w", err)
	}
	return v, nil
}

func word(raw []byte, at int) uint64 { return binary.LittleEndian.Uint64(raw[at:]) }

// perm reads key and permissions of struct ipc64_perm.
func perm(raw []byte) (key int32, mode uint32) {
	return int32(binary.LittleEndian.Uint32(raw)), binary.LittleEndian.Uint32(raw[20:]) & 0o777
}

// eachIPC calls fn for every object of one kind. semctl has its structure in
// the fourth argument.
func (f *Frozen) eachIPC(ctx context.Context, nr, info, stat uint64, four bool, fn func(id int, raw []byte) error) error {
	b := f.Batch(f.Leader())
	at := b.Alloc(statBytes)
	ask := func(i, what uint64) *Call {
		if four {
			return b.Call(nr, i, 0, what, at)
		}
		return b.Call(nr, i, what, at)
	}
	highest := ask(0, info)
	if err := b.Run(ctx); err != nil {
		return err
	}
	for i := range uint64(highest.Ret) + 1 {
		c := ask(i, stat)
		if err := b.RunAll(ctx); err != nil {
			return err
		}
		if err := c.Err(); errors.Is(err, unix.EINVAL) {
			continue // nothing has this index
		} else if err != nil {
			return err
		}
		raw, err := b.Read(at, statBytes)
		if err != nil {
			return err
		}
		if err := fn(int(c.Ret), raw); err != nil {
			return err
		}
		b = f.Batch(f.Leader())
		at = b.Alloc(statBytes)
	}
	return nil
}

// peekQueue copies n messages of at most size bytes without taking them.
// Source: msgrcv(2), MSG_COPY.
func (f *Frozen) peekQueue(ctx context.Context, id, n, size int) ([]Message, error) {
	var out []Message
	for i := range n {
		b := f.Batch(f.Leader())
		at := b.Alloc(8 + size)
		c := b.Call(unix.SYS_MSGRCV, uint64(id), at, uint64(size), uint64(i), msgCopy|ipcNoWait|msgNoError)
		if err := b.Run(ctx); err != nil {
			return nil, err
		}
		raw, err := b.Read(at, 8+int(c.Ret))
		if err != nil {
			return nil, err
		}
		out = append(out, Message{Type: int64(word(raw, 0)), Text: raw[8:]})
	}
	return out, nil
}

// numbered makes an object with the wanted id: the kernel is told first. It
// needs CAP_CHECKPOINT_RESTORE. Source: proc_sys_kernel(5), shm_next_id.
func (f *Frozen) numbered(ctx context.Context, file string, id int, get func(b *Batch) *Call, remove func(context.Context, int) error) error {
	b := f.Batch(f.Leader())
	open := b.Call(unix.SYS_OPENAT, ^uint64(99), b.String("/proc/sys/kernel/"+file), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err := b.Run(ctx); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	text := strconv.Itoa(id)
	b.Call(unix.SYS_WRITE, uint64(open.Ret), b.String(text), uint64(len(text)))
	made := get(b)
	err := b.Run(ctx)
	b.Call(unix.SYS_CLOSE, uint64(open.Ret))
	err = errors.Join(err, b.Run(ctx))
	if err == nil && made.Ret != int64(id) {
		err = fmt.Errorf("it got the number %d, want %d: %w", made.Ret, id, unix.EEXIST)
	}
	switch {
	case err != nil && !made.Done: // whether it was made is not known; nobody else has the number
		if rerr := remove(ctx, id); !errors.Is(rerr, unix.EINVAL) {
			err = errors.Join(err, rerr)
		}
	case err != nil && made.Err() == nil:
		err = errors.Join(err, remove(ctx, int(made.Ret)))
	}
	return err
}

// MakeSegment makes a segment, empty, with its number and key.
//
// Expected errors: EEXIST; EPERM or EACCES without the capability.
func (f *Frozen) MakeSegment(ctx context.Context, s *Segment) error {
	key := s.Key
	if s.Removed {
		key = 0 // IPC_PRIVATE
	}
	return f.numbered(ctx, "shm_next_id", s.ID, func(b *Batch) *Call {
		return b.Call(unix.SYS_SHMGET, uint64(uint32(key)), s.Size, uint64(s.Mode)|ipcCreat|ipcExcl)
	}, f.RemoveSegment)
}

// MakeSemaphores makes a set with its number, key and values.
//
// Expected errors: as of MakeSegment.
func (f *Frozen) MakeSemaphores(ctx context.Context, s *Semaphores) error {
	err := f.numbered(ctx, "sem_next_id", s.ID, func(b *Batch) *Call {
		return b.Call(unix.SYS_SEMGET, uint64(uint32(s.Key)), uint64(len(s.Values)), uint64(s.Mode)|ipcCreat|ipcExcl)
	}, f.RemoveSemaphores)
	if err != nil {
		return err
	}
	if err = f.SetSemaphores(ctx, s); err != nil {
		err = errors.Join(err, f.RemoveSemaphores(ctx, s.ID))
	}
	return err
}

// SetSemaphores sets the values of a set.
func (f *Frozen) SetSemaphores(ctx context.Context, s *Semaphores) error {
	raw := make([]byte, 0, 2*len(s.Values))
	for _, v := range s.Values {
		raw = binary.LittleEndian.AppendUint16(raw, v)
	}
	b := f.Batch(f.Leader())
	b.Call(unix.SYS_SEMCTL, uint64(s.ID), 0, semSetAll, b.Bytes(raw))
	return b.Run(ctx)
}

// MakeQueue makes a message queue with its number, key and messages.
//
// Expected errors: as of MakeSegment; EAGAIN when the messages do not fit.
func (f *Frozen) MakeQueue(ctx context.Context, q *Queue) error {
	err := f.numbered(ctx, "msg_next_id", q.ID, func(b *Batch) *Call {
		return b.Call(unix.SYS_MSGGET, uint64(uint32(q.Key)), uint64(q.Mode)|ipcCreat|ipcExcl)
	}, f.RemoveQueue)
	if err != nil {
		return err
	}
	if err = f.SetQueue(ctx, q); err != nil {
		err = errors.Join(err, f.RemoveQueue(ctx, q.ID))
	}
	return err
}

// SetQueue makes the messages of a queue those of q: what is in it is taken
// out first.
func (f *Frozen) SetQueue(ctx context.Context, q *Queue) error {
	const room = 64 << 10
	for {
		b := f.Batch(f.Leader())
		c := b.Call(unix.SYS_MSGRCV, uint64(q.ID), b.Alloc(8+room), room, 0, ipcNoWait|msgNoError)
		if err := b.RunAll(ctx); err != nil {
			return err
		}
		if err := c.Err(); errors.Is(err, unix.ENOMSG) {
			break
		} else if err != nil {
			return err
		}
	}
	b := f.Batch(f.Leader())
	at := b.Alloc(statBytes)
	b.Call(unix.SYS_MSGCTL, uint64(q.ID), ipcStat, at)
	if err := b.Run(ctx); err != nil {
		return err
	}
	raw, err := b.Read(at, statBytes)
	if err != nil {
		return err
	}
	if word(raw, 88) != q.MaxBytes {
		binary.LittleEndian.PutUint64(raw[88:], q.MaxBytes)
		b.Call(unix.SYS_MSGCTL, uint64(q.ID), ipcSet, b.Bytes(raw))
		if err := b.Run(ctx); err != nil {
			return fmt.Errorf("room of %d bytes: %w", q.MaxBytes, err)
		}
	}
	for i := range q.Messages {
		m := &q.Messages[i]
		b := f.Batch(f.Leader())
		buf := append(binary.LittleEndian.AppendUint64(nil, uint64(m.Type)), m.Text...)
		b.Call(unix.SYS_MSGSND, uint64(q.ID), b.Bytes(buf), uint64(len(m.Text)), ipcNoWait)
		if err := b.Run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// RemoveSegment removes a segment: it goes when nobody has it mapped.
func (f *Frozen) RemoveSegment(ctx context.Context, id int) error {
	b := f.Batch(f.Leader())
	b.Call(unix.SYS_SHMCTL, uint64(id), ipcRmid, 0)
	return b.Run(ctx)
}

// RemoveSemaphores removes a set.
func (f *Frozen) RemoveSemaphores(ctx context.Context, id int) error {
	b := f.Batch(f.Leader())
	b.Call(unix.SYS_SEMCTL, uint64(id), 0, ipcRmid, 0)
	return b.Run(ctx)
}

// RemoveQueue removes a message queue.
func (f *Frozen) RemoveQueue(ctx context.Context, id int) error {
	b := f.Batch(f.Leader())
	b.Call(unix.SYS_MSGCTL, uint64(id), ipcRmid, 0)
	return b.Run(ctx)
}

// Attach maps a segment somewhere, for reading only unless write is set, and
// returns its address; Detach undoes it.
func (f *Frozen) Attach(ctx context.Context, id int, write bool) (uint64, error) {
	how := uint64(unix.SHM_RDONLY)
	if write {
		how = 0
	}
	b := f.Batch(f.Leader())
	c := b.Call(unix.SYS_SHMAT, uint64(id), 0, how)
	if err := b.Run(ctx); err != nil {
		return 0, err
	}
	return uint64(c.Ret), nil
}

// Detach unmaps what Attach mapped.
func (f *Frozen) Detach(ctx context.Context, addr uint64) error {
	b := f.Batch(f.Leader())
	b.Call(unix.SYS_SHMDT, addr)
	return b.Run(ctx)
}
