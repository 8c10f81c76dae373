package pause

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/internal/stream/message"
)

// filePlan says how the open file descriptions of an epoch come back: a live
// description that is put back to its state, or a new one.
type filePlan struct {
	snap  *snapshot
	live  *fileTable
	back  *stream.Restored // nil without TCP
	files string           // Config.Files
	descs []planned        // of snap.descs
	unix  *message.Unix
	udp   *message.UDP
	torn  bool     // sockets could not be made
	notes []string // what is not as it was
}

// planned is one description of the epoch.
type planned struct {
	want   *image.Description
	live   *description // nil: made anew
	fd     int          // our descriptor of it, -1 for none
	holder holder       // a process that had it, for paths
}

// holder is a place where the epoch has a description.
type holder struct {
	c   *captured
	num int
}

// planFiles matches the descriptions of the epoch that the processes of jobs
// had with live ones.
func planFiles(snap *snapshot, jobs []*undo, live *fileTable, back *stream.Restored, files string) *filePlan {
	pl := &filePlan{snap: snap, live: live, back: back, files: files, descs: make([]planned, len(snap.descs))}
	holders := make([][]holder, len(snap.descs))
	for _, j := range jobs {
		for _, fd := range j.c.image.FDs {
			holders[fd.Desc-1] = append(holders[fd.Desc-1], holder{j.c, fd.Num})
		}
	}
	used := map[*description]bool{}
	for i := range pl.descs {
		d := &pl.descs[i]
		d.want, d.fd = &snap.descs[i], -1
		for _, h := range holders[i] {
			d.holder = h
			o := live.find(h.c.pid, h.num)
			if o == nil {
				continue
			}
			l := live.descs[o.desc-1]
			if !used[l] && sameDescription(d.want, l, live) && pl.keeps(d.want, h, o) {
				d.live, used[l] = l, true
				break
			}
		}
	}
	pl.splitPipes()
	pl.splitSockets()
	pl.holdPassed(jobs)
	return pl
}

// keeps reports whether a kept file still has its name: contents go back to
// where the name leads.
func (pl *filePlan) keeps(want *image.Description, h holder, o *openFile) bool {
	if want.Kind != image.FDFile || want.Object == 0 || pl.snap.objects[want.Object-1].Kind != image.ObjectMapped {
		return true
	}
	return leads("/proc/"+strconv.Itoa(h.c.pid)+"/root", want.Path, &o.stat)
}

// sameDescription reports whether the live description l can become what want
// was.
func sameDescription(want *image.Description, l *description, t *fileTable) bool {
	if want.Kind != l.Kind {
		return false
	}
	o := l.holders[0]
	switch want.Kind {
	case image.FDExternal:
		return want.External == l.External
	case image.FDFile, image.FDMemfd:
		return want.File.Ino == o.stat.Ino && want.Flags&unix.O_ACCMODE == l.id.mode&unix.O_ACCMODE
	case image.FDDevice, image.FDTTY:
		return want.Path == o.link && want.Flags&unix.O_ACCMODE == l.id.mode
	case image.FDPipe:
		return want.Pipe.Write == (l.id.mode == unix.O_WRONLY)
	case image.FDFifo:
		return want.Path == o.link && want.Flags&unix.O_ACCMODE == l.id.mode
	case image.FDUnix, image.FDUnixPair:
		return l.unix != nil
	case image.FDUDP:
		return want.UDP.Local == l.id.name
	case image.FDEventfd:
		return want.Event.Semaphore == o.info.EventSemaph
	case image.FDTimerfd:
		return want.Timer.Clock == o.info.TimerClock
	case image.FDSignalfd:
		return want.SigMask == o.info.SigMask
	case image.FDEpoll:
		for _, e := range o.info.Epoll {
			// An entry of a descriptor that is closed could not be removed.
			if target := t.find(o.p.pid, e.FD); target == nil || target.stat.Ino != e.Ino {
				return false
			}
		}
		return true
	}
	return false
}

// splitPipes gives up pipes whose live ends do not belong together.
func (pl *filePlan) splitPipes() {
	inode := map[uint64]uint64{} // of the epoch -> live
	bad := map[uint64]bool{}
	for i := range pl.descs {
		d := &pl.descs[i]
		if d.want.Kind != image.FDPipe {
			continue
		}
		id := d.want.Pipe.ID
		if d.live == nil {
			bad[id] = true
			continue
		}
		if ino, ok := inode[id]; ok && ino != d.live.id.ino {
			bad[id] = true
		}
		inode[id] = d.live.id.ino
	}
	for i := range pl.descs {
		if d := &pl.descs[i]; d.want.Kind == image.FDPipe && bad[d.want.Pipe.ID] {
			d.live = nil
		}
	}
}

// open gets a descriptor of ours for every description that needs one. A rank
// that had one which cannot be had any more is lost.
func (pl *filePlan) open(lost *losses) {
	for i := range pl.descs {
		d := &pl.descs[i]
		if d.fd >= 0 || d.want.TCP != nil || d.holder.c == nil || lost.has(d.holder.c.rank) {
			continue
		}
		var err error
		switch {
		case d.live != nil:
			d.fd, err = pl.live.dup(d.live.holders[0])
		case !isMessage(d.want.Kind):
			err = pl.create(d)
		}
		if err != nil {
			lost.add(d.holder.c.rank, d.named(err))
		}
	}
	pl.loseSockets(lost, pl.openSockets())
}

// named adds the descriptor to an error.
func (d *planned) named(err error) error {
	return fmt.Errorf("descriptor %d (%s %s%s): %w", d.holder.num, d.want.Kind, d.want.Path, d.want.External, err)
}

// close gives our descriptors back.
func (pl *filePlan) close() error {
	var errs []error
	for i := range pl.descs {
		if d := &pl.descs[i]; d.fd >= 0 {
			errs = append(errs, unix.Close(d.fd))
			d.fd = -1
		}
	}
	return errors.Join(append(errs, pl.closeSockets())...)
}

// create makes a description anew, here; it is installed in the process later.
func (pl *filePlan) create(d *planned) (err error) {
	w := d.want
	flags := w.Flags&^(unix.O_CREAT|unix.O_EXCL|unix.O_TRUNC) | unix.O_CLOEXEC
	root := "/proc/" + strconv.Itoa(d.holder.c.pid) + "/root"
	if w.Object != 0 {
		return pl.createObject(d)
	}
	switch w.Kind {
	case image.FDFile, image.FDDevice, image.FDTTY:
		d.fd, err = unix.Open(root+w.Path, flags|unix.O_NOCTTY, 0)
		if err == nil && w.File != nil {
			var st unix.Stat_t
			if err = unix.Fstat(d.fd, &st); err == nil && st.Ino != w.File.Ino {
				err = errors.New("the file was replaced since the epoch")
			}
		}
	case image.FDEventfd:
		kind := unix.EFD_CLOEXEC
		if w.Event.Semaphore {
			kind |= unix.EFD_SEMAPHORE
		}
		d.fd, err = unix.Eventfd(0, kind)
	case image.FDTimerfd:
		d.fd, err = unix.TimerfdCreate(w.Timer.Clock, unix.TFD_CLOEXEC)
	case image.FDSignalfd:
		set := unix.Sigset_t{}
		set.Val[0] = w.SigMask
		d.fd, err = unix.Signalfd(-1, &set, unix.SFD_CLOEXEC)
	case image.FDEpoll:
		d.fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	case image.FDPipe:
		return pl.createPipe(w.Pipe)
	default:
		err = errors.New("it was closed since the epoch and cannot be made again")
	}
	if err != nil && d.fd >= 0 {
		_ = unix.Close(d.fd)
		d.fd = -1
	}
	return err
}

// createObject opens a memfd or deleted file again that somebody still has, or
// makes it anew.
func (pl *filePlan) createObject(d *planned) (err error) {
	w := d.want
	o := pl.snap.objects[w.Object-1]
	for i := range pl.descs {
		if x := &pl.descs[i]; x.want.Object == w.Object && x.fd >= 0 {
			d.fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(x.fd), w.Flags&unix.O_ACCMODE|unix.O_CLOEXEC, 0)
			return err
		}
	}
	root := "/proc/" + strconv.Itoa(d.holder.c.pid) + "/root"
	fd := -1
	switch o.Kind {
	case image.ObjectMemfd:
		fd, err = unix.MemfdCreate(o.Name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	case image.ObjectShm:
		fd, err = unix.Open(root+w.Path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, o.Mode)
	case image.ObjectMapped:
		fd, err = unix.Open(root+w.Path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, o.Mode&0o777)
	default:
		fd, err = unix.Open(root+filepath.Dir(w.Path), unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, o.Mode)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := o.undoFile(context.Background(), fd, normalize(o.pages.ranges())); err != nil {
		return err
	}
	d.fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(fd), w.Flags&(unix.O_ACCMODE|unix.O_APPEND|unix.O_DSYNC|unix.O_SYNC)|unix.O_CLOEXEC, 0)
	return err
}

// createPipe makes a pipe for all of its descriptions. An end that nobody had
// is closed, after the contents are in.
func (pl *filePlan) createPipe(p *image.PipeEnd) error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return err
	}
	_, err := unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, p.Size)
	for i := range pl.descs {
		d := &pl.descs[i]
		if d.want.Kind != image.FDPipe || d.want.Pipe.ID != p.ID || d.fd >= 0 {
			continue
		}
		k := 0
		if d.want.Pipe.Write {
			k = 1
		}
		if len(d.want.Pipe.Data) > 0 && err == nil {
			_, err = unix.Write(ends[1], d.want.Pipe.Data)
		}
		d.fd, ends[k] = ends[k], -1
	}
	for _, fd := range ends {
		if fd >= 0 {
			_ = unix.Close(fd) // nobody had this end
		}
	}
	return err
}

// reset puts the state of every live description back.
func (pl *filePlan) reset(ctx context.Context, lost *losses) error {
	for i := range pl.descs {
		if err := ctx.Err(); err != nil {
			return err
		}
		d := &pl.descs[i]
		if d.fd < 0 || lost.has(d.holder.c.rank) {
			continue
		}
		if err := pl.resetOne(d); err != nil {
			lost.add(d.holder.c.rank, d.named(err))
		}
	}
	pl.loseSockets(lost, pl.fillSockets())
	return nil
}

func (pl *filePlan) resetOne(d *planned) error {
	w, fd := d.want, d.fd
	if w.Kind == image.FDExternal || w.Flags&unix.O_PATH != 0 {
		return nil
	}
	const settable = unix.O_APPEND | unix.O_NONBLOCK | unix.O_DIRECT | unix.O_NOATIME | unix.O_ASYNC
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	switch w.Kind { // with the flags as they are: reads must not block
	case image.FDFile, image.FDMemfd:
		err = pl.resetFile(d)
	case image.FDPipe, image.FDFifo:
		err = pl.resetPipe(d)
	case image.FDEventfd:
		err = resetEventfd(fd, w.Event)
	case image.FDTimerfd:
		err = resetTimerfd(fd, w.Timer)
	}
	if err != nil {
		return err
	}
	if (have^w.Flags)&settable != 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, w.Flags&settable)
	}
	return err
}

// resetFile puts offset and, with the policy "truncate", length back.
func (pl *filePlan) resetFile(d *planned) error {
	f := d.want.File
	if _, err := unix.Seek(d.fd, f.Offset, unix.SEEK_SET); err != nil && err != unix.ESPIPE {
		return fmt.Errorf("seek to %d: %w", f.Offset, err)
	}
	if f.Mode&unix.S_IFMT != unix.S_IFREG || d.want.Object != 0 {
		return nil
	}
	if err := pl.noteOverwritten(d); err != nil {
		return err
	}
	if pl.files == filesSeek {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return err
	}
	if pl.files == filesVerify && st.Size != f.Size {
		return fmt.Errorf("its length changed from %d to %d since the epoch", f.Size, st.Size)
	}
	if st.Size > f.Size && d.want.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		return unix.Ftruncate(d.fd, f.Size)
	}
	return nil
}

// noteOverwritten reports a file that is not what it was, before its length
// goes back.
func (pl *filePlan) noteOverwritten(d *planned) error {
	if d.want.File.Stamp == nil {
		return nil
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(d.fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		pl.note("%s: whether it was overwritten since the epoch is not known: %v", d.want.Path, err)
		return nil
	}
	why, err := d.want.File.Overwritten(fd)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	if why != "" {
		pl.note("%s: %s", d.want.Path, why)
	}
	return nil
}

// resetPipe empties a live pipe and fills it as it was, through ends of our
// own: the program's may be of the other direction, or blocking.
func (pl *filePlan) resetPipe(d *planned) error {
	if d.live == nil || !pl.firstOfPipe(d) {
		return nil // a new pipe has its contents
	}
	path := "/proc/self/fd/" + strconv.Itoa(d.fd)
	rd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(rd) }() // read only
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(rd, buf)
		if err == unix.EAGAIN || err == nil && n == 0 {
			break
		}
		if err != nil {
			return fmt.Errorf("drain: %w", err)
		}
	}
	data := pl.pipeData(d.want.Pipe.ID)
	if len(data) == 0 {
		return nil
	}
	wr, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	n, err := unix.Write(wr, data)
	if err == nil && n < len(data) {
		err = errShort
	}
	return errors.Join(err, unix.Close(wr))
}

func (pl *filePlan) firstOfPipe(d *planned) bool {
	for i := range pl.descs {
		if x := &pl.descs[i]; x.want.Pipe != nil && x.want.Pipe.ID == d.want.Pipe.ID && x.fd >= 0 {
			return x == d
		}
	}
	return false
}

// pipeData returns the contents of a pipe, which one of its ends has.
func (pl *filePlan) pipeData(id uint64) []byte {
	for i := range pl.descs {
		if p := pl.descs[i].want.Pipe; p != nil && p.ID == id && len(p.Data) > 0 {
			return p.Data
		}
	}
	return nil
}

// resetEventfd sets the counter: read to zero, then add.
func resetEventfd(fd int, e *image.EventState) error {
	old, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, old|unix.O_NONBLOCK); err != nil {
		return err
	}
	buf := make([]byte, 8)
	for {
		if _, err = unix.Read(fd, buf); err != nil {
			break
		}
	}
	if err == unix.EAGAIN {
		err = nil
	}
	if err == nil && e.Count > 0 {
		_, err = unix.Write(fd, binary.LittleEndian.AppendUint64(nil, e.Count))
	}
	_, ferr := unix.FcntlInt(uintptr(fd), unix.F_SETFL, old)
	return errors.Join(err, ferr)
}

// resetTimerfd arms the timer with what was left of its time. One that had
// expired and was not read expires again at once.
func resetTimerfd(fd int, t *image.TimerState) error {
	value := t.ValueNS
	if t.Ticks > 0 {
		value = 1
	}
	spec := unix.ItimerSpec{
		Interval: unix.NsecToTimespec(t.IntervalNS), Value: unix.NsecToTimespec(value),
	}
	return unix.TimerfdSettime(fd, 0, &spec, nil)
}
