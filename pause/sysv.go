package pause

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// privateIPC reports whether the process has an IPC namespace that is not
// ours: what is in it belongs to the pod.
func privateIPC(pid int) bool {
	theirs, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/ipc")
	ours, err2 := os.Readlink("/proc/self/ns/ipc")
	return err == nil && err2 == nil && theirs != ours
}

// isSegment reports whether a mapping is of System V shared memory; its inode
// number is the segment's id then.
func isSegment(path string) bool { return strings.HasPrefix(path, "/SYSV") }

// captureSysV lists the System V objects of the pod; segments become objects.
func (p *Pod) captureSysV(ctx context.Context, snap *snapshot, add func(fileKey, image.Object) int) error {
	procs := p.group.list()
	if len(procs) == 0 || !privateIPC(procs[0].pid) {
		return nil
	}
	v, err := procs[0].frozen.ReadSysV(ctx)
	if err != nil {
		return fmt.Errorf("system V objects: %w", err)
	}
	if len(v.Segments)+len(v.Semaphores)+len(v.Queues) == 0 {
		snap.sysv = &proc.SysV{}
		return nil
	}
	snap.sysv, snap.segments = v, map[int]int{}
	for i := range v.Segments {
		s := &v.Segments[i]
		key := fileKey{^uint64(0), uint64(s.ID)}
		whole := (s.Size + pageSize - 1) &^ (pageSize - 1)
		for _, c := range snap.procs {
			for k := range c.image.Maps {
				m := &c.image.Maps[k]
				if m.File == nil || !isSegment(m.File.Path) || m.File.Ino != uint64(s.ID) {
					continue
				}
				if m.Offset != 0 || m.End-m.Start != whole {
					return &Refusal{Obstacles: []string{fmt.Sprintf(
						"rank %d pid %d: mapping %x-%x: a part of a System V segment is not supported", c.rank, c.pid, m.Start, m.End)}}
				}
				key = fileKey{m.File.Dev, m.File.Ino}
			}
		}
		snap.segments[s.ID] = add(key, image.Object{Kind: image.ObjectSysV, Size: int64(whole), Mode: s.Mode, Key: s.Key})
	}
	return nil
}

// attachObject maps a segment that nobody has mapped in the first process.
func attachObject(g *group, o *object) (*objectAccess, error) {
	for _, q := range g.list() {
		if q.frozen == nil {
			continue
		}
		f, ctx := q.frozen, context.Background()
		addr, err := f.Attach(ctx, int(o.key.ino), true)
		if err != nil {
			return nil, fmt.Errorf("attach segment %d: %w", o.key.ino, err)
		}
		const rw = unix.PROT_READ | unix.PROT_WRITE
		return &objectAccess{
			fd: -1, segs: []segment{{off: kernel.Range{End: uint64(o.Size)}, addr: addr, f: f, prot: rw, write: true}},
			undo: func() {
				if f.Detach(ctx, addr) != nil {
					_ = f.Detach(ctx, addr) // a mapping too many is no harm
				}
			},
		}, nil
	}
	return nil, errors.New("no process is left")
}

// imageSysV is the form for images.
func (s *snapshot) imageSysV() *image.SysV {
	if s.sysv == nil {
		return nil
	}
	v := &image.SysV{}
	for _, x := range s.sysv.Segments {
		v.Segments = append(v.Segments, image.SysVSegment{
			ID: x.ID, Key: x.Key, Mode: x.Mode, Size: x.Size, Removed: x.Removed, Object: s.segments[x.ID],
		})
	}
	for _, x := range s.sysv.Semaphores {
		v.Semaphores = append(v.Semaphores, image.SysVSemaphores(x))
	}
	for _, x := range s.sysv.Queues {
		q := image.SysVQueue{ID: x.ID, Key: x.Key, Mode: x.Mode, MaxBytes: x.MaxBytes}
		for _, m := range x.Messages {
			q.Messages = append(q.Messages, image.SysVMessage(m))
		}
		v.Queues = append(v.Queues, q)
	}
	return v
}

// adoptSysV is the inverse.
func (s *snapshot) adoptSysV(v *image.SysV) {
	if v == nil {
		return
	}
	s.sysv, s.segments = &proc.SysV{}, map[int]int{}
	for _, x := range v.Segments {
		s.segments[x.ID] = x.Object
		if o := s.objects[x.Object-1]; o.key == (fileKey{}) {
			o.key = fileKey{^uint64(0), uint64(x.ID)}
		}
		s.sysv.Segments = append(s.sysv.Segments, proc.Segment{ID: x.ID, Key: x.Key, Mode: x.Mode, Size: x.Size, Removed: x.Removed})
	}
	for _, x := range v.Semaphores {
		s.sysv.Semaphores = append(s.sysv.Semaphores, proc.Semaphores(x))
	}
	for _, x := range v.Queues {
		q := proc.Queue{ID: x.ID, Key: x.Key, Mode: x.Mode, MaxBytes: x.MaxBytes}
		for _, m := range x.Messages {
			q.Messages = append(q.Messages, proc.Message(m))
		}
		s.sysv.Queues = append(s.sysv.Queues, q)
	}
}

// undoSysV makes the System V objects those of the epoch. Contents of segments
// follow with the other objects.
func (p *Pod) undoSysV(ctx context.Context, snap *snapshot) error {
	procs := p.group.list()
	if snap.sysv == nil || len(procs) == 0 || procs[0].frozen == nil {
		return nil
	}
	f := procs[0].frozen
	live, err := f.ReadSysV(ctx)
	if err != nil {
		return fmt.Errorf("system V objects: %w", err)
	}
	if err := undoSegments(ctx, f, snap.sysv.Segments, live.Segments); err != nil {
		return err
	}
	for i := range live.Semaphores {
		s := &live.Semaphores[i]
		if !slices.ContainsFunc(snap.sysv.Semaphores, func(x proc.Semaphores) bool { return x.ID == s.ID }) {
			err = errors.Join(err, f.RemoveSemaphores(ctx, s.ID))
		}
	}
	for i := range snap.sysv.Semaphores {
		s := &snap.sysv.Semaphores[i]
		k := slices.IndexFunc(live.Semaphores, func(x proc.Semaphores) bool { return x.ID == s.ID })
		switch {
		case k < 0:
			err = errors.Join(err, f.MakeSemaphores(ctx, s))
		case !slices.Equal(live.Semaphores[k].Values, s.Values):
			err = errors.Join(err, f.SetSemaphores(ctx, s))
		}
	}
	for i := range live.Queues {
		q := &live.Queues[i]
		if !slices.ContainsFunc(snap.sysv.Queues, func(x proc.Queue) bool { return x.ID == q.ID }) {
			err = errors.Join(err, f.RemoveQueue(ctx, q.ID))
		}
	}
	for i := range snap.sysv.Queues {
		q := &snap.sysv.Queues[i]
		if slices.ContainsFunc(live.Queues, func(x proc.Queue) bool { return x.ID == q.ID }) {
			err = errors.Join(err, f.SetQueue(ctx, q))
		} else {
			err = errors.Join(err, f.MakeQueue(ctx, q))
		}
	}
	if err != nil {
		return fmt.Errorf("system V objects: %w", err)
	}
	return nil
}

func undoSegments(ctx context.Context, f *proc.Frozen, want, live []proc.Segment) error {
	for i := range live {
		s := &live[i]
		if slices.ContainsFunc(want, func(x proc.Segment) bool { return x.ID == s.ID }) || s.Removed {
			continue
		}
		if err := f.RemoveSegment(ctx, s.ID); err != nil {
			return fmt.Errorf("remove segment %d: %w", s.ID, err)
		}
	}
	for i := range want {
		s := &want[i]
		k := slices.IndexFunc(live, func(x proc.Segment) bool { return x.ID == s.ID })
		switch {
		case k < 0:
			if err := f.MakeSegment(ctx, s); err != nil {
				return fmt.Errorf("make segment %d again: %w", s.ID, err)
			}
		case live[k].Removed && !s.Removed:
			return fmt.Errorf("segment %d was removed since the epoch, and is still mapped", s.ID)
		case s.Removed && !live[k].Removed:
			if err := f.RemoveSegment(ctx, s.ID); err != nil {
				return fmt.Errorf("remove segment %d: %w", s.ID, err)
			}
		}
	}
	return nil
}
