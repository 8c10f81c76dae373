package migrate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/proc"
)

// checkLocks refuses the restart when somebody holds a lock that a process of
// the image had: before anything is made or changed.
func (b *builder) checkLocks() error {
	check := func(desc int, l *image.FileLock) error {
		d := b.m.Description(desc)
		if d == nil || d.File == nil || d.File.Deleted {
			return nil
		}
		fd, err := unix.Open(filepath.Join(b.root, d.Path), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err != nil {
			return nil //nolint:nilerr // opening the file in earnest will tell
		}
		defer unix.Close(fd) //nolint:errcheck // read only
		who, err := proc.LockHolder(fd, procLock(l), nil)
		if err == nil && who != "" {
			err = fmt.Errorf("it is held by %s: %w", who, unix.EAGAIN)
		}
		if err != nil {
			return fmt.Errorf("lock of %s: %w", d.Path, err)
		}
		return nil
	}
	for i := range b.m.Processes {
		p := &b.m.Processes[i]
		for k := range p.Locks {
			for _, fd := range p.FDs {
				if fd.Num != p.Locks[k].FD {
					continue
				}
				if err := check(fd.Desc, &p.Locks[k]); err != nil {
					return fmt.Errorf("process %d: descriptor %d: %w", p.PID, fd.Num, err)
				}
			}
		}
	}
	for id := range b.m.Descriptions {
		for k := range b.m.Descriptions[id].Locks {
			if err := check(id+1, &b.m.Descriptions[id].Locks[k]); err != nil {
				return err
			}
		}
	}
	return nil
}

func procLock(l *image.FileLock) proc.Lock {
	return proc.Lock{Kind: proc.LockKind(l.Kind), Write: l.Write, Start: l.Start, End: l.End()}
}

func lockType(l *image.FileLock) int16 {
	if l.Write {
		return unix.F_WRLCK
	}
	return unix.F_RDLCK
}

// lockDescriptions takes the locks that belong to descriptions; they go with
// them to the processes. Each is taken through our descriptor.
func (b *builder) lockDescriptions() error {
	for i := range b.m.Descriptions {
		d := &b.m.Descriptions[i]
		fd, ok := b.fds[i+1]
		for k := range d.Locks {
			l := &d.Locks[k]
			var err error
			switch {
			case !ok:
			case l.Kind == string(proc.LockFlock) && l.Write:
				err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
			case l.Kind == string(proc.LockFlock):
				err = unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB)
			default:
				err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: lockType(l), Start: l.Start, Len: l.Length})
			}
			if err != nil {
				return fmt.Errorf("lock of %s: %w", d.Path, err)
			}
		}
	}
	return nil
}

// locks takes the locks that belong to the process.
func (b *builder) locks(ctx context.Context, p *process) error {
	if len(p.img.Locks) == 0 {
		return nil
	}
	batch := p.f.Batch(p.f.Leader())
	for i := range p.img.Locks {
		l := &p.img.Locks[i]
		var w [32]byte                                                            // struct flock
		binary.LittleEndian.PutUint16(w[:], uint16(lockType(l)))                  //nolint:gosec // a small number
		putWord(w[8:], uint64(l.Start))                                           //nolint:gosec // not negative
		putWord(w[16:], uint64(l.Length))                                         //nolint:gosec // not negative
		batch.Call(unix.SYS_FCNTL, uint64(l.FD), unix.F_SETLK, batch.Bytes(w[:])) //nolint:gosec // a descriptor
	}
	err := batch.Run(ctx)
	if errors.Is(err, unix.EAGAIN) {
		err = fmt.Errorf("somebody else took one: %w", err)
	}
	if err != nil {
		return fmt.Errorf("file locks: %w", err)
	}
	return nil
}
