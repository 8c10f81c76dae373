package pause

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// object is memory or file contents that no path leads to, or that only the
// pod sees: shared anonymous memory, memfds, deleted files, /dev/shm.
type object struct {
	image.Object
	key   fileKey
	pages pages
}

// fileKey identifies a file as long as it exists.
type fileKey struct{ dev, ino uint64 }

// objectAccess is a way to the contents: a descriptor of ours, or mappings of
// frozen processes.
type objectAccess struct {
	fd   int // -1: by the mappings
	segs []segment
	undo func() // nil, or what gives the access back
}

// segment is a part of an object that a process has mapped.
type segment struct {
	off   kernel.Range // in the object
	addr  uint64
	f     *proc.Frozen
	prot  uint32
	write bool
}

func (a *objectAccess) close() {
	if a.fd >= 0 {
		_ = unix.Close(a.fd) // nothing is buffered
	}
	if a.undo != nil {
		a.undo()
	}
}

// shmPath reports whether a file is of the memory file system that pods have
// of their own.
func shmPath(path string) bool { return strings.HasPrefix(path, "/dev/shm/") }

// captureObjects finds the objects of the pod, gives them numbers and copies
// their contents.
func (p *Pod) captureObjects(ctx context.Context, snap *snapshot, t *fileTable, obs *obstacles) error {
	byKey := map[fileKey]int{}
	add := func(key fileKey, o image.Object) int {
		id, ok := byKey[key]
		if !ok {
			snap.objects = append(snap.objects, &object{Object: o, key: key})
			id = len(snap.objects)
			byKey[key] = id
		}
		x := snap.objects[id-1]
		x.Size = max(x.Size, o.Size)
		return id
	}
	for _, d := range t.descs {
		o := d.holders[0]
		obj := image.Object{Size: o.stat.Size, Mode: o.stat.Mode & 0o7777}
		switch {
		case d.Kind == image.FDMemfd:
			obj.Kind = image.ObjectMemfd
			obj.Name = strings.TrimSuffix(strings.TrimPrefix(o.link, "/memfd:"), " (deleted)")
		case d.Kind == image.FDFile && d.File != nil && d.File.Deleted:
			obj.Kind, obj.Name = image.ObjectDeleted, d.Path
		case d.Kind == image.FDFile && shmPath(d.Path) && o.stat.Mode&unix.S_IFMT == unix.S_IFREG:
			obj.Kind, obj.Name = image.ObjectShm, d.Path
		default:
			continue
		}
		d.Object = add(fileKey{o.stat.Dev, o.stat.Ino}, obj)
	}
	if p.cfg.Files == filesSave {
		if err := keepFiles(t, snap.root(p.group), add); err != nil {
			return err
		}
	}
	for _, c := range snap.procs {
		for i := range c.image.Maps {
			v := &c.image.Maps[i]
			shm := v.Kind == image.MapSharedFile && shmPath(v.File.Path)
			file := v.Kind == image.MapSharedFile && !shm && v.Prot&unix.PROT_WRITE != 0 && p.cfg.Files != filesSeek && p.cfg.Files != filesVerify
			if v.Kind != image.MapObject && !shm && !file {
				continue
			}
			obj := image.Object{Kind: mapObjectKind(v, shm), Name: v.File.Path, Mode: 0o600, Size: int64(v.Offset + v.End - v.Start)}
			if file {
				obj.Kind, obj.Size = image.ObjectMapped, 0 // the file tells its size
			}
			if obj.Kind == image.ObjectMemfd {
				obj.Name = strings.TrimPrefix(obj.Name, "/memfd:")
			}
			v.Kind, v.Object = image.MapObject, add(fileKey{v.File.Dev, v.File.Ino}, obj)
		}
	}
	if err := p.captureSysV(ctx, snap, add); err != nil {
		return err
	}
	for i, o := range snap.objects {
		if o.Kind == image.ObjectAbsent {
			o.pages = newMemory(nil, nil)
			continue
		}
		a, err := openObject(p.group, snap, t, i+1)
		if err == nil {
			err = p.captureObject(ctx, o, a)
			a.close()
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", o.Kind, o.Name, err)
		}
	}
	return nil
}

func mapObjectKind(v *image.Mapping, shm bool) image.ObjectKind {
	switch {
	case shm:
		return image.ObjectShm
	case strings.HasPrefix(v.File.Path, "/memfd:"):
		return image.ObjectMemfd
	case isSegment(v.File.Path):
		return image.ObjectSysV
	case v.File.Path == "/dev/zero" || strings.HasPrefix(v.File.Path, "["):
		return image.ObjectAnon
	}
	return image.ObjectDeleted
}

// openObject finds a way to the contents of object id.
func openObject(g *group, snap *snapshot, t *fileTable, id int) (*objectAccess, error) {
	o := snap.objects[id-1]
	a := &objectAccess{fd: -1}
	for _, d := range t.descs {
		h := d.holders[0]
		if (d.Kind != image.FDMemfd && d.Kind != image.FDFile) || (fileKey{h.stat.Dev, h.stat.Ino}) != o.key {
			continue
		}
		fd, err := t.dup(h)
		if err != nil {
			return nil, err
		}
		path := "/proc/self/fd/" + strconv.Itoa(fd)
		if a.fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil { // sealed, or read-only for us
			a.fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		if o.Kind == image.ObjectMemfd && err == nil {
			if seals, serr := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); serr == nil {
				o.Seals = seals
			}
		}
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(a.fd, &st); err != nil {
			return nil, err
		}
		o.measure(&st)
		return a, nil
	}
	if o.Kind == image.ObjectMapped {
		return openFileObject(g, snap, o, id)
	}
	for _, c := range snap.procs {
		q := g.procs[c.pid]
		if q == nil || q.frozen == nil {
			continue
		}
		for _, v := range c.image.Maps {
			if v.Object == id {
				a.segs = append(a.segs, segment{
					off:  kernel.Range{Start: v.Offset, End: v.Offset + v.End - v.Start},
					addr: v.Start, f: q.frozen, prot: v.Prot, write: v.Prot&unix.PROT_WRITE != 0,
				})
			}
		}
	}
	if len(a.segs) == 0 && o.Kind == image.ObjectSysV {
		return attachObject(g, o)
	}
	if len(a.segs) == 0 {
		return nil, errors.New("nobody has it open or mapped")
	}
	return a, nil
}

// measure takes size and mode of a mapped file when it is being captured.
func (o *object) measure(st *unix.Stat_t) {
	if o.Kind == image.ObjectMapped && o.pages == nil {
		o.Size, o.Mode = st.Size, st.Mode&0o7777
	}
}

// openFileObject opens a mapped file by its path, as a process that has it
// mapped sees it: pages that nobody holds in memory are on the disk only.
func openFileObject(g *group, snap *snapshot, o *object, id int) (*objectAccess, error) {
	for _, c := range snap.procs {
		for _, v := range c.image.Maps {
			if v.Object != id {
				continue
			}
			fd, err := unix.Open("/proc/"+strconv.Itoa(c.pid)+"/root"+o.Name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
			if err != nil {
				return nil, fmt.Errorf("open: %w", err)
			}
			var st unix.Stat_t
			if err = unix.Fstat(fd, &st); err == nil && (fileKey{st.Dev, st.Ino}) != o.key {
				err = errors.New("another file has its path now")
			}
			if err != nil {
				return nil, errors.Join(err, unix.Close(fd))
			}
			o.measure(&st)
			return &objectAccess{fd: fd}, nil
		}
	}
	a, err := openKept(snap.root(g), o, false)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(a.fd, &st); err == nil && (fileKey{st.Dev, st.Ino}) != o.key {
		err = errors.New("another file has its path now")
	}
	if err != nil {
		a.close()
		return nil, err
	}
	o.measure(&st)
	return a, nil
}

// captureObject copies the contents.
func (p *Pod) captureObject(ctx context.Context, o *object, a *objectAccess) error {
	runs, err := a.data(ctx, o.Size)
	if err != nil {
		return err
	}
	buf, err := p.group.takeBuffer(ctx, int(total(runs)))
	if err != nil {
		return err
	}
	m := newMemory(runs, buf)
	o.pages = m
	return spread(ctx, p.workers(1), len(runs), func(i int) error {
		return a.read(runs[i], m.view(runs[i]))
	})
}

// data returns the offsets that hold data, in whole pages, ascending.
func (a *objectAccess) data(ctx context.Context, size int64) ([]kernel.Range, error) {
	var runs []kernel.Range
	if a.fd < 0 {
		for _, s := range a.segs {
			r, err := s.resident(ctx)
			if err != nil {
				return nil, err
			}
			runs = append(runs, r...)
		}
		return pieces(normalize(runs)), nil
	}
	for at := int64(0); at < size; {
		start, err := unix.Seek(a.fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO { // only a hole follows
			break
		}
		if err != nil {
			return nil, fmt.Errorf("seek data: %w", err)
		}
		end, err := unix.Seek(a.fd, start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("seek hole: %w", err)
		}
		runs = append(runs, kernel.Range{
			Start: uint64(start) &^ (pageSize - 1), End: (uint64(end) + pageSize - 1) &^ (pageSize - 1),
		})
		at = end
	}
	return pieces(normalize(runs)), nil
}

// pieces cuts ranges into ones of at most unitSize.
func pieces(list []kernel.Range) []kernel.Range {
	var out []kernel.Range
	for _, r := range list {
		for at := r.Start; at < r.End; at += unitSize {
			out = append(out, kernel.Range{Start: at, End: min(r.End, at+unitSize)})
		}
	}
	return out
}

// resident asks which pages of the segment the kernel has, so that reading
// does not make those that it has not. Source: mincore(2).
func (s *segment) resident(ctx context.Context) ([]kernel.Range, error) {
	const most = 512 << 10 // pages at a time: one byte each, in the stub
	var runs []kernel.Range
	for at := uint64(0); at < s.off.Len(); at += most * pageSize {
		n := min(s.off.Len()-at, most*pageSize)
		b := s.f.Batch(s.f.Leader())
		vec := b.Alloc(int(n / pageSize))
		b.Call(unix.SYS_MINCORE, s.addr+at, n, vec)
		if err := b.Run(ctx); err != nil {
			return nil, err
		}
		raw, err := b.Read(vec, int(n/pageSize))
		if err != nil {
			return nil, err
		}
		for i, v := range raw {
			if v&1 == 0 {
				continue
			}
			off := s.off.Start + at + uint64(i)*pageSize
			if k := len(runs) - 1; k >= 0 && runs[k].End == off {
				runs[k].End += pageSize
			} else {
				runs = append(runs, kernel.Range{Start: off, End: off + pageSize})
			}
		}
	}
	return runs, nil
}

// read fills dst with the contents of r; behind the end of a file are zeroes.
func (a *objectAccess) read(r kernel.Range, dst []byte) error {
	if a.fd >= 0 {
		for len(dst) > 0 {
			n, err := unix.Pread(a.fd, dst, int64(r.Start))
			if err != nil {
				return fmt.Errorf("read: %w", err)
			}
			if n == 0 {
				clear(dst)
				return nil
			}
			dst, r.Start = dst[n:], r.Start+uint64(n)
		}
		return nil
	}
	return a.walk(r, func(s *segment, addr uint64, at, n int) error {
		if s.prot&unix.PROT_READ == 0 {
			return s.f.ReadForce(addr, dst[at:at+n])
		}
		return s.f.ReadMem(addr, dst[at:at+n])
	}, false)
}

// walk calls fn for the parts of r in the segments; each byte once.
func (a *objectAccess) walk(r kernel.Range, fn func(s *segment, addr uint64, at, n int) error, write bool) error {
	begin := r.Start
	for r.Start < r.End {
		var found *segment
		for i := range a.segs {
			if s := &a.segs[i]; s.off.Start <= r.Start && r.Start < s.off.End && (!write || s.write) {
				found = s
				break
			}
		}
		if found == nil {
			if write {
				return fmt.Errorf("offset %x is not mapped for writing", r.Start)
			}
			return fmt.Errorf("offset %x is not mapped", r.Start)
		}
		n := min(r.End, found.off.End) - r.Start
		if err := fn(found, found.addr+r.Start-found.off.Start, int(r.Start-begin), int(n)); err != nil {
			return err
		}
		r.Start += n
	}
	return nil
}
