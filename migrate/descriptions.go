package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
)

// closeDescriptions closes what was made for the processes; they have their
// own descriptors by then, or are gone.
func (b *builder) closeDescriptions() {
	for _, f := range b.descs {
		_ = f.Close() //nolint:errcheck // nothing was written through it that matters here
	}
	for _, f := range b.objects {
		if f != nil {
			_ = f.Close() //nolint:errcheck // memory, or a file that is checked by its reader
		}
	}
}

// buildDescriptions makes every open file description that a process has.
func (b *builder) buildDescriptions(ctx context.Context) error {
	b.descs, b.fds = map[int]*os.File{}, map[int]int{}
	used := map[int]bool{}
	for i := range b.m.Processes {
		for _, fd := range b.m.Processes[i].FDs {
			used[fd.Desc] = true
		}
	}
	for i := range b.m.Descriptions {
		if u := b.m.Descriptions[i].Unix; u != nil {
			for _, p := range u.Passed {
				for _, id := range p.Descs {
					used[id] = true
				}
			}
		}
	}
	for id := 1; id <= len(b.m.Descriptions); id++ {
		if !used[id] || b.fds[id] != 0 || ofProcess(b.m.Description(id)) {
			continue // files of processes are opened when there are any
		}
		d := b.m.Description(id)
		if isMessage(d.Kind) {
			continue
		}
		if err := b.buildOne(ctx, id, d); err != nil {
			return fmt.Errorf("descriptor %s %s: %w", d.Kind, d.Path, err)
		}
	}
	return b.buildSockets()
}

// keep notes f as description id.
func (b *builder) keep(id int, f *os.File) {
	b.descs[id] = f
	b.fds[id] = int(f.Fd())
}

// keepFD notes the new descriptor fd as description id.
func (b *builder) keepFD(id, fd int, err error) error {
	if err != nil {
		return err
	}
	b.keep(id, os.NewFile(uintptr(fd), "description"))
	return nil
}

// statusFlags are the flags that F_SETFL can change.
const statusFlags = unix.O_APPEND | unix.O_NONBLOCK | unix.O_NOATIME | unix.O_DIRECT

func (b *builder) buildOne(ctx context.Context, id int, d *image.Description) error {
	var err error
	switch d.Kind {
	case image.FDFile:
		err = b.buildFile(id, d)
	case image.FDDevice:
		err = b.buildPath(id, d)
	case image.FDPipe:
		return b.buildPipe(id, d)
	case image.FDFifo:
		return b.buildFifo(id, d)
	case image.FDEventfd:
		flags := unix.EFD_CLOEXEC
		if d.Event.Semaphore {
			flags |= unix.EFD_SEMAPHORE
		}
		err = b.buildEventfd(id, d, flags)
	case image.FDEpoll:
		fd, e := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		err = b.keepFD(id, fd, e)
	case image.FDTimerfd:
		err = b.buildTimerfd(id, d)
	case image.FDSignalfd:
		var set unix.Sigset_t
		set.Val[0] = d.SigMask
		fd, e := unix.Signalfd(-1, &set, unix.SFD_CLOEXEC)
		err = b.keepFD(id, fd, e)
	case image.FDMemfd:
		err = b.reopen(id, b.objects[d.Object-1], d)
		if err == nil && d.File != nil {
			_, err = b.descs[id].Seek(d.File.Offset, 0)
		}
	case image.FDTCP, image.FDListener, image.FDTTY, image.FDExternal:
		return b.external(ctx, id, d)
	default:
		return fmt.Errorf("%w: not supported", image.ErrMismatch)
	}
	if err != nil {
		return err
	}
	return setFlags(b.fds[id], d.Flags)
}

// external asks the Sources.
func (b *builder) external(ctx context.Context, id int, d *image.Description) error {
	if b.cfg.Sources == nil {
		return fmt.Errorf("%w: %q comes from outside and nobody gives it", image.ErrMismatch, d.External)
	}
	fd, err := b.cfg.Sources.Descriptor(ctx, id, d)
	if err != nil {
		return err
	}
	b.fds[id] = fd
	return nil
}

func setFlags(fd, flags int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&statusFlags); err != nil {
		return fmt.Errorf("set flags: %w", err)
	}
	return nil
}

// reopen opens what f stands for anew, as a description of its own.
func (b *builder) reopen(id int, f *os.File, d *image.Description) error {
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	fd, err := unix.Open(path, openFlags(d)&^unix.O_NOFOLLOW, 0) // the path is a link
	return b.keepFD(id, fd, err)
}

// openFlags are the flags to open an existing file with.
func openFlags(d *image.Description) int {
	const drop = unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC | unix.O_NOCTTY | unix.O_TMPFILE&^unix.O_DIRECTORY
	return d.Flags&^drop | unix.O_CLOEXEC | unix.O_NOCTTY
}

// buildPath opens a file of the pod by its path. The descriptor is used as it
// is, not through the runtime's poller.
func (b *builder) buildPath(id int, d *image.Description) error {
	fd, err := unix.Open(filepath.Join(b.root, d.Path), openFlags(d), 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: d.Path, Err: err}
	}
	return b.keepFD(id, fd, nil)
}

func (b *builder) buildFile(id int, d *image.Description) error {
	if d.Object != 0 {
		if err := b.reopen(id, b.objects[d.Object-1], d); err != nil {
			return err
		}
	} else if err := b.buildPath(id, d); err != nil {
		return err
	}
	f := d.File
	if f.Mode&unix.S_IFMT == unix.S_IFREG && d.Object == 0 && d.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		if err := b.fitLength(b.descs[id], f); err != nil {
			return err
		}
	}
	if d.Flags&unix.O_PATH != 0 {
		return nil
	}
	if _, err := b.descs[id].Seek(f.Offset, 0); err != nil {
		return fmt.Errorf("seek: %w", err)
	}
	return nil
}

// fitLength applies the file policy to a regular file open for writing.
func (b *builder) fitLength(file *os.File, f *image.FileState) error {
	st, err := file.Stat()
	if err != nil {
		return err
	}
	why, err := b.overwritten(file, f)
	if err != nil {
		return err
	}
	if why != "" && b.cfg.Files == FilesVerify {
		return fmt.Errorf("%w: %s: %s", image.ErrMismatch, f.Path, why)
	}
	if why != "" {
		b.noteFile("%s: %s", f.Path, why)
	}
	switch now := st.Size(); {
	case now == f.Size:
		return nil
	case b.cfg.Files == FilesVerify:
		return fmt.Errorf("%w: %s had %d bytes, has %d", image.ErrMismatch, f.Path, f.Size, now)
	case b.cfg.Files == FilesSeek:
		return nil
	case now < f.Size:
		return fmt.Errorf("%w: %s had %d bytes, and only %d are left", image.ErrMismatch, f.Path, f.Size, now)
	}
	if err := file.Truncate(f.Size); err != nil {
		return fmt.Errorf("put length back: %w", err)
	}
	return nil
}

// overwritten says what happened to a file, which may be open for writing
// only, since the epoch.
func (b *builder) overwritten(file *os.File, f *image.FileState) (string, error) {
	if f.Stamp == nil {
		return "", nil
	}
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil {
		return "whether it was overwritten since the epoch is not known", nil //nolint:nilerr // said so
	}
	defer again.Close() //nolint:errcheck // read only
	return f.Overwritten(int(again.Fd()))
}

func (b *builder) buildEventfd(id int, d *image.Description, flags int) error {
	fd, err := unix.Eventfd(0, flags)
	if err := b.keepFD(id, fd, err); err != nil {
		return err
	}
	if d.Event.Count == 0 {
		return nil
	}
	var word [8]byte
	putWord(word[:], d.Event.Count)
	_, err = unix.Write(fd, word[:])
	return err
}

// buildTimerfd makes the timer; its unread ticks are set by the process
// itself, which has the descriptor (ticks).
func (b *builder) buildTimerfd(id int, d *image.Description) error {
	fd, err := unix.TimerfdCreate(d.Timer.Clock, unix.TFD_CLOEXEC)
	if err := b.keepFD(id, fd, err); err != nil {
		return err
	}
	if d.Timer.ValueNS == 0 && d.Timer.IntervalNS == 0 {
		return nil
	}
	spec := unix.ItimerSpec{
		Value:    unix.NsecToTimespec(max(1, d.Timer.ValueNS)),
		Interval: unix.NsecToTimespec(d.Timer.IntervalNS),
	}
	return unix.TimerfdSettime(fd, 0, &spec, nil)
}

// buildPipe makes a pipe with its contents when the first of its ends is met;
// further descriptions of an end are opened through it.
func (b *builder) buildPipe(id int, d *image.Description) error {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	ends := [2]*os.File{os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")}
	defer func() {
		for _, e := range ends {
			if e != nil {
				_ = e.Close() //nolint:errcheck // an end that nobody has
			}
		}
	}()
	if err := b.fillPipe(d.Pipe.ID, image.FDPipe, fds[1]); err != nil {
		return err
	}
	for other := id; other <= len(b.m.Descriptions); other++ {
		o := b.m.Description(other)
		if o.Kind != image.FDPipe || o.Pipe.ID != d.Pipe.ID {
			continue
		}
		side := 0
		if o.Pipe.Write {
			side = 1
		}
		var err error
		if ends[side] != nil {
			b.keep(other, ends[side])
			ends[side] = nil
			err = setFlags(b.fds[other], o.Flags)
		} else {
			path := fmt.Sprintf("/proc/self/fd/%d", fds[side])
			fd, e := unix.Open(path, openFlags(o), 0)
			err = b.keepFD(other, fd, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fillPipe gives pipe id its size and contents, through descriptor w.
func (b *builder) fillPipe(id uint64, kind image.FDKind, w int) error {
	for i := range b.m.Descriptions {
		o := &b.m.Descriptions[i]
		if o.Kind != kind || o.Pipe == nil || o.Pipe.ID != id {
			continue
		}
		if o.Pipe.Size > 0 {
			if _, err := unix.FcntlInt(uintptr(w), unix.F_SETPIPE_SZ, o.Pipe.Size); err != nil {
				return fmt.Errorf("pipe size %d: %w", o.Pipe.Size, err)
			}
		}
		if len(o.Pipe.Data) == 0 {
			continue
		}
		if err := setFlags(w, unix.O_NONBLOCK); err != nil {
			return err
		}
		n, err := unix.Write(w, o.Pipe.Data)
		if err == nil && n < len(o.Pipe.Data) {
			err = unix.ENOSPC
		}
		if err = errors.Join(err, setFlags(w, 0)); err != nil {
			return fmt.Errorf("pipe contents: %w", err)
		}
	}
	return nil
}

// buildFifo opens a FIFO. Opened for both directions first, it blocks nobody.
func (b *builder) buildFifo(id int, d *image.Description) error {
	path := filepath.Join(b.root, d.Path)
	both, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: d.Path, Err: err}
	}
	defer unix.Close(both) //nolint:errcheck // held open while the ends are opened
	if !b.fifoMet(id, d) {
		if err := b.fillPipe(d.Pipe.ID, image.FDFifo, both); err != nil {
			return err
		}
	}
	for other := id; other <= len(b.m.Descriptions); other++ {
		o := b.m.Description(other)
		if o.Kind != image.FDFifo || o.Pipe.ID != d.Pipe.ID || b.fds[other] != 0 {
			continue
		}
		fd, err := unix.Open(path, openFlags(o)|unix.O_NONBLOCK, 0)
		if err := b.keepFD(other, fd, err); err != nil {
			return err
		}
		if err := setFlags(fd, o.Flags); err != nil {
			return err
		}
	}
	return nil
}

// fifoMet reports whether an earlier description was of the same FIFO.
func (b *builder) fifoMet(id int, d *image.Description) bool {
	for i := 1; i < id; i++ {
		if o := b.m.Description(i); o.Kind == image.FDFifo && o.Pipe.ID == d.Pipe.ID && b.fds[i] != 0 {
			return true
		}
	}
	return false
}
