package pause

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
)

// The policies of Config.Files that are asked for here; "" is truncate.
const (
	filesSeek   = "seek"
	filesVerify = "verify"
	filesSave   = "save"
)

// stamps remembers the sums of files that ranks write, so that a file is read
// again only when it changed.
type stamps struct {
	known map[fileKey]stamped
}

type stamped struct {
	size  int64
	stamp image.FileStamp
}

// writable reports whether the description is a regular file, with a name,
// that is open for writing.
func (d *description) writable() bool {
	o := d.holders[0]
	return d.Kind == image.FDFile && d.Flags&unix.O_PATH == 0 && d.id.mode&unix.O_ACCMODE != unix.O_RDONLY &&
		o.stat.Mode&unix.S_IFMT == unix.S_IFREG && d.File != nil && !d.File.Deleted && !shmPath(d.Path)
}

// stamp notes how the files look that are open for writing, which is what
// tells an overwritten file later. It costs at most some MB of reading from
// memory per file that changed; a disk is not waited for.
func (t *fileTable) stamp(s *stamps) {
	next := map[fileKey]stamped{}
	for _, d := range t.descs {
		if !d.writable() {
			continue
		}
		st := &d.holders[0].stat
		key := fileKey{st.Dev, st.Ino}
		v, ok := next[key]
		if !ok {
			v = stamped{st.Size, image.FileStamp{MtimeNS: st.Mtim.Nano(), CtimeNS: st.Ctim.Nano(), Append: true}}
			old, known := s.known[key]
			if known && old.stamp.Summed && old.size == v.size && old.stamp.MtimeNS == v.stamp.MtimeNS && old.stamp.CtimeNS == v.stamp.CtimeNS {
				v.stamp.Sum, v.stamp.Summed = old.stamp.Sum, true
			} else if fd, err := unix.Open(d.holders[0].path(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err == nil {
				sum, err := image.SumFile(fd, v.size, true)
				v.stamp.Sum, v.stamp.Summed = sum, err == nil // otherwise it is told that nothing is known
				_ = unix.Close(fd)                            // read only
			}
		}
		v.stamp.Append = v.stamp.Append && d.Flags&unix.O_APPEND != 0
		next[key] = v
	}
	for _, d := range t.descs {
		if d.writable() {
			v := next[fileKey{d.holders[0].stat.Dev, d.holders[0].stat.Ino}].stamp
			d.File.Stamp = &v
		}
	}
	s.known = next
}

// journals are what SQLite keeps beside a database. One that is left over from
// a time that is taken back would be played into the database.
func journals() [3]string { return [3]string{"-journal", "-wal", "-shm"} }

// absentDev is the device of the keys of files that were not there: no real one,
// nor that of System V segments.
const absentDev = ^uint64(0) - 1

// keepFiles makes objects of the files that are open for writing, and of
// their journals.
func keepFiles(t *fileTable, root string, add func(fileKey, image.Object) int) error {
	ids := map[fileKey]int{}
	absent := uint64(0)
	for _, d := range t.descs {
		if !d.writable() {
			continue
		}
		st := &d.holders[0].stat
		key := fileKey{st.Dev, st.Ino}
		if ids[key] != 0 {
			continue
		}
		ids[key] = add(key, image.Object{Kind: image.ObjectMapped, Name: d.Path, Size: st.Size, Mode: st.Mode & 0o7777})
		for _, suffix := range journals() {
			var js unix.Stat_t
			err := unix.Lstat(root+d.Path+suffix, &js)
			switch {
			case errors.Is(err, unix.ENOENT):
				absent++ // there is no inode to tell it from others
				add(fileKey{absentDev, absent}, image.Object{Kind: image.ObjectAbsent, Name: d.Path + suffix})
			case err != nil:
				return fmt.Errorf("%s: %w", d.Path+suffix, err)
			case js.Mode&unix.S_IFMT == unix.S_IFREG:
				add(fileKey{js.Dev, js.Ino}, image.Object{Kind: image.ObjectMapped, Name: d.Path + suffix, Size: js.Size, Mode: js.Mode & 0o7777})
			}
		}
	}
	for _, d := range t.descs { // also those that only read
		st := &d.holders[0].stat
		if id := ids[fileKey{st.Dev, st.Ino}]; id != 0 && d.Kind == image.FDFile && d.Flags&unix.O_PATH == 0 {
			d.Object = id
		}
	}
	return nil
}

// root is the file tree of a process of the snapshot that lives.
func (s *snapshot) root(g *group) string {
	for _, c := range s.procs {
		if g.procs[c.pid] != nil {
			return "/proc/" + strconv.Itoa(c.pid) + "/root"
		}
	}
	return ""
}

// openKept opens a kept file by its path; with create it is made when it is
// gone.
func openKept(root string, o *object, create bool) (*objectAccess, error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK
	if create {
		flags |= unix.O_CREAT
	}
	fd, err := unix.Open(root+o.Name, flags, o.Mode&0o777)
	if err != nil && !create {
		fd, err = unix.Open(root+o.Name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	return &objectAccess{fd: fd}, nil
}

// undoKept puts a kept file back that nobody has open or mapped any more.
func (p *Pod) undoKept(ctx context.Context, snap *snapshot, o *object) error {
	a, err := openKept(snap.root(p.group), o, true)
	if err != nil {
		return err
	}
	defer a.close()
	return p.undoObject(ctx, o, a)
}

// movedSuffix is appended to the name of a file that stands where the epoch
// had none, and must not.
const movedSuffix = ".lam-moved"

// moveAway renames a journal that the epoch did not have. It returns a note.
func moveAway(root, name string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(root+name, &st); errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err := os.Rename(root+name, root+name+movedSuffix); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s did not exist at the epoch: renamed to %s", name, name+movedSuffix), nil
}

// checkFiles refuses a rollback under the policy "verify" when a file changed:
// before anything is touched.
func (p *Pod) checkFiles(snap *snapshot) error {
	if p.cfg.Files != filesVerify {
		return nil
	}
	obs := &obstacles{}
	root := snap.root(p.group)
	for i := range snap.descs {
		f := snap.descs[i].File
		if f == nil || f.Stamp == nil || root == "" {
			continue
		}
		fd, err := unix.Open(root+f.Path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		why, err := changed(fd, f)
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		if why != "" {
			obs.list = append(obs.list, fmt.Sprintf("file %s changed since the epoch: %s", f.Path, why))
		}
	}
	return obs.err()
}

// changed says what the policy "verify" has against a file.
func changed(fd int, f *image.FileState) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if st.Size != f.Size {
		return fmt.Sprintf("its length is %d, it was %d", st.Size, f.Size), nil
	}
	return f.Overwritten(fd)
}

// noteSince reports the files that were opened for writing since the epoch and
// are closed now: what was written to them stays.
func (pl *filePlan) noteSince() {
	used := map[*description]bool{}
	for i := range pl.descs {
		if l := pl.descs[i].live; l != nil {
			used[l] = true
		}
	}
	kept := map[string]bool{}
	for _, o := range pl.snap.objects {
		kept[o.Name] = true
	}
	for i := range pl.descs {
		kept[pl.descs[i].want.Path] = true
	}
	for _, d := range pl.live.descs {
		o := d.holders[0]
		writes := d.Kind == image.FDFile && d.id.mode&unix.O_ACCMODE != unix.O_RDONLY && d.id.mode&unix.O_PATH == 0
		if used[d] || !writes || o.stat.Mode&unix.S_IFMT != unix.S_IFREG || o.stat.Nlink == 0 || shmPath(o.link) || kept[o.link] {
			continue
		}
		pl.note("%s was opened for writing since the epoch: what was written to it stays", o.link)
	}
}

// note records a difference that the rollback leaves, once.
func (pl *filePlan) note(format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	if !slices.Contains(pl.notes, text) {
		pl.notes = append(pl.notes, text)
	}
}

// leads reports whether path still leads to the file that the descriptor has.
func leads(root, path string, st *unix.Stat_t) bool {
	var now unix.Stat_t
	return unix.Lstat(root+path, &now) == nil && now.Ino == st.Ino && now.Dev == st.Dev
}
