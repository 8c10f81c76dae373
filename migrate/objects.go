package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/proc"
)

// buildObjects makes the memory and files that only the image has, with their
// contents.
func (b *builder) buildObjects(ctx context.Context) error {
	b.objects = make([]*os.File, len(b.m.Objects))
	for i := range b.m.Objects {
		o := &b.m.Objects[i]
		if o.Kind == image.ObjectAbsent {
			if err := b.moveAway(o.Name); err != nil {
				return err
			}
			continue
		}
		if o.Kind == image.ObjectSysV {
			continue // made by the seed
		}
		f, err := b.makeObject(o)
		if err == nil {
			b.objects[i] = f
			err = b.fillObject(ctx, f, i+1, o)
		}
		if err != nil {
			return fmt.Errorf("object %d (%s %s): %w", i+1, o.Kind, o.Name, err)
		}
	}
	return nil
}

func (b *builder) makeObject(o *image.Object) (*os.File, error) {
	switch o.Kind {
	case image.ObjectAnon:
		return memfd("shared-anon", 0)
	case image.ObjectMemfd:
		flags := o.Flags
		if o.Seals&unix.F_SEAL_SEAL == 0 {
			flags |= unix.MFD_ALLOW_SEALING
		}
		return memfd(o.Name, flags)
	case image.ObjectDeleted:
		dir := filepath.Join(b.root, filepath.Dir(o.Name))
		f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, os.FileMode(o.Mode).Perm())
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
			return memfd(filepath.Base(o.Name), 0)
		}
		return f, err
	case image.ObjectShm:
		path := filepath.Join(b.root, o.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := f.Chmod(os.FileMode(o.Mode).Perm()); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	case image.ObjectMapped:
		flags := os.O_RDWR | os.O_CREATE
		if !b.puts() {
			flags = os.O_RDWR
		}
		f, err := os.OpenFile(filepath.Join(b.root, o.Name), flags, os.FileMode(o.Mode).Perm())
		if errors.Is(err, os.ErrPermission) {
			f, err = os.Open(filepath.Join(b.root, o.Name))
		}
		return f, err
	}
	return nil, fmt.Errorf("%w: kind of object %q is not supported", image.ErrMismatch, o.Kind)
}

// puts reports whether contents of regular files are put back.
func (b *builder) puts() bool { return b.cfg.Files != FilesSeek && b.cfg.Files != FilesVerify }

// moveAway renames a journal that was not there at the epoch: its program
// would take it for one of its own.
func (b *builder) moveAway(name string) error {
	path := filepath.Join(b.root, name)
	if _, err := os.Lstat(path); err != nil || !b.puts() {
		return nil //nolint:nilerr // there is nothing in the way
	}
	if err := os.Rename(path, path+movedSuffix); err != nil {
		return err
	}
	b.noteFile("%s did not exist at the epoch: renamed to %s", name, name+movedSuffix)
	return nil
}

// movedSuffix is appended to the name of a file that must not be where it is.
const movedSuffix = ".lam-moved"

// compareObject refuses a file whose contents are not those of the image.
func (b *builder) compareObject(ctx context.Context, f *os.File, pages *image.PageReader, o *image.Object) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != o.Size {
		return fmt.Errorf("%w: its length is %d, it was %d", image.ErrMismatch, st.Size(), o.Size)
	}
	return pages.Each(ctx, 1, func(r image.Run, data []byte) error {
		off := int64(r.Addr) //nolint:gosec // offsets in a file
		if r.Zero || off >= o.Size {
			return nil
		}
		data = data[:min(int64(len(data)), o.Size-off)]
		have := make([]byte, len(data))
		if _, err := f.ReadAt(have, off); err != nil {
			return err
		}
		if !bytes.Equal(have, data) {
			return fmt.Errorf("%w: its contents at %d are not what they were", image.ErrMismatch, off)
		}
		return nil
	})
}

func memfd(name string, flags int) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (b *builder) fillObject(ctx context.Context, f *os.File, id int, o *image.Object) error {
	pages, err := b.r.Object(id)
	if err != nil {
		return err
	}
	if o.Kind == image.ObjectMapped && b.cfg.Files == FilesVerify {
		return b.compareObject(ctx, f, pages, o)
	}
	if o.Kind == image.ObjectMapped && !b.puts() {
		return nil
	}
	// A file that others may have is never empty in between.
	if err := f.Truncate(o.Size); err != nil {
		return err
	}
	if err := punchGaps(f, pages, o.Size); err != nil {
		return err
	}
	err = pages.Each(ctx, b.cfg.Workers, func(r image.Run, data []byte) error {
		off := int64(r.Addr) //nolint:gosec // offsets in a file
		if r.Zero || off >= o.Size {
			return nil
		}
		_, err := f.WriteAt(data[:min(int64(len(data)), o.Size-off)], off)
		return err
	})
	if err != nil {
		return err
	}
	if seals := o.Seals &^ unix.F_SEAL_EXEC; o.Kind == image.ObjectMemfd && seals != 0 && seals != unix.F_SEAL_SEAL {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
			return fmt.Errorf("seal: %w", err)
		}
	}
	return nil
}

// receiveObjects hands the process the objects that it maps, and returns their
// descriptors there.
func (b *builder) receiveObjects(ctx context.Context, p *process, s Seed, batch *proc.Batch) (map[int]uint64, error) {
	out := map[int]uint64{}
	var ids []int
	var fds []int
	for _, m := range p.img.Maps {
		if _, ok := out[m.Object]; m.Object == 0 || ok || b.segment(&m) != nil {
			continue
		}
		out[m.Object] = 0
		ids = append(ids, m.Object)
		fds = append(fds, int(b.objects[m.Object-1].Fd()))
	}
	got, err := handOver(ctx, s, batch, seedSock, fds)
	if err != nil {
		return nil, err
	}
	for i, id := range ids {
		out[id] = uint64(got[i]) //nolint:gosec // a descriptor
	}
	return out, nil
}

// punchGaps makes holes where the image has no data.
func punchGaps(f *os.File, pages *image.PageReader, size int64) error {
	const how = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	at := int64(0)
	hole := func(end int64) error {
		if end <= at {
			return nil
		}
		if err := unix.Fallocate(int(f.Fd()), how, at, end-at); err != nil {
			return fmt.Errorf("punch hole: %w", err)
		}
		return nil
	}
	for _, r := range pages.Overlapping(0, 1<<62) {
		if r.Zero {
			continue
		}
		if err := hole(int64(r.Addr)); err != nil { //nolint:gosec // offsets in a file
			return err
		}
		at = int64(r.End()) //nolint:gosec // as above
	}
	return hole(size)
}
