package pause

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/proc"
)

// parseLocks reads the locks that go with a descriptor, or says why they
// cannot be captured.
func parseLocks(lines []string) (locks []proc.Lock, why string) {
	for _, line := range lines {
		l, err := proc.ParseLock(line)
		if err != nil {
			return nil, fmt.Sprintf("file lock %q is not understood: %v", line, err)
		}
		if l.Kind == proc.LockLease {
			return nil, "file leases (F_SETLEASE) are not supported"
		}
		if !l.Blocked {
			locks = append(locks, l)
		}
	}
	return locks, ""
}

// imageLocks turns locks of a descriptor into those of an image: of the
// process, or of the description.
func imageLocks(locks []proc.Lock, num int, ofProcess bool) []image.FileLock {
	var out []image.FileLock
	for i := range locks {
		l := &locks[i]
		if ofProcess != (l.Kind == proc.LockPOSIX) {
			continue
		}
		v := image.FileLock{Kind: string(l.Kind), Write: l.Write, Start: l.Start, Length: l.Len()}
		if ofProcess {
			v.FD = num
		}
		out = append(out, v)
	}
	return out
}

// processLocks returns the POSIX locks of process pid, each once: descriptors
// that share a description show the same ones.
func (t *fileTable) processLocks(pid int) []image.FileLock {
	type key struct {
		dev, ino uint64
		lock     image.FileLock
	}
	seen := map[key]bool{}
	var out []image.FileLock
	for _, o := range t.files {
		if o.p.pid != pid {
			continue
		}
		for _, l := range imageLocks(o.locks, o.num, true) {
			k := key{o.stat.Dev, o.stat.Ino, l}
			k.lock.FD = 0
			if !seen[k] {
				seen[k] = true
				out = append(out, l)
			}
		}
	}
	return out
}

// procLock is the inverse of imageLocks.
func procLock(l *image.FileLock, ino uint64) proc.Lock {
	return proc.Lock{Kind: proc.LockKind(l.Kind), Write: l.Write, Ino: ino, Start: l.Start, End: l.End()}
}

// checkLocks refuses a rollback when somebody outside of the pod holds a lock
// that a rank had: before anything is touched.
func (p *Pod) checkLocks(snap *snapshot) error {
	if !snap.hasLocks() {
		return nil
	}
	live, err := liveLocks(p.group.list())
	if err != nil {
		return err
	}
	obs := &obstacles{}
	check := func(c *captured, num, desc int, l *image.FileLock) error {
		q, d := p.group.procs[c.pid], &snap.descs[desc-1]
		if q == nil || d.File == nil || d.File.Deleted {
			return nil
		}
		who, err := lockedBy(q.pid, num, d, l, live)
		if who != "" {
			obs.add(q, "descriptor %d (%s): its lock of bytes %s is held by %s now", num, d.Path, span(l), who)
		}
		return err
	}
	for _, c := range snap.procs {
		for _, fd := range c.image.FDs {
			for i := range c.image.Locks {
				if l := &c.image.Locks[i]; l.FD == fd.Num {
					if err := check(c, fd.Num, fd.Desc, l); err != nil {
						return err
					}
				}
			}
			for i := range snap.descs[fd.Desc-1].Locks {
				if err := check(c, fd.Num, fd.Desc, &snap.descs[fd.Desc-1].Locks[i]); err != nil {
					return err
				}
			}
		}
	}
	return obs.err()
}

func (s *snapshot) hasLocks() bool {
	return slices.ContainsFunc(s.procs, func(c *captured) bool { return len(c.image.Locks) > 0 }) ||
		slices.ContainsFunc(s.descs, func(d image.Description) bool { return len(d.Locks) > 0 })
}

func span(l *image.FileLock) string {
	if l.Length == 0 {
		return fmt.Sprintf("%d to the end", l.Start)
	}
	return fmt.Sprintf("%d to %d", l.Start, l.End())
}

// lockedBy asks who holds the lock, through the file that the process has now
// or that has the path now.
func lockedBy(pid, num int, d *image.Description, l *image.FileLock, live []proc.Lock) (string, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	for _, path := range []string{dir + "/fd/" + strconv.Itoa(num), dir + "/root" + d.Path} {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err != nil {
			continue // closed, deleted or unreadable: the rollback itself will tell
		}
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err != nil || st.Ino != d.File.Ino {
			_ = unix.Close(fd) // read only
			continue
		}
		who, err := proc.LockHolder(fd, procLock(l, st.Ino), func(x *proc.Lock) bool {
			return slices.ContainsFunc(live, func(o proc.Lock) bool {
				same := o.Kind == x.Kind && o.Overlaps(x)
				return same && (x.Kind == proc.LockFlock && o.Ino == st.Ino || o.Start == x.Start && o.End == x.End && o.PID == x.PID)
			})
		})
		return who, errors.Join(err, unix.Close(fd))
	}
	return "", nil
}

// liveLocks lists the locks of frozen processes, with the pids that we see.
func liveLocks(procs []*process) ([]proc.Lock, error) {
	var out []proc.Lock
	for _, q := range procs {
		nums, err := proc.FDs(q.pid)
		if err != nil {
			return nil, err
		}
		for _, num := range nums {
			info, err := proc.ReadFDInfo(q.pid, num)
			if err != nil {
				return nil, err
			}
			locks, _ := parseLocks(info.Locks)
			for _, l := range locks {
				if l.Kind == proc.LockPOSIX {
					l.PID = q.pid
				}
				out = append(out, l)
			}
		}
	}
	return out, nil
}

// flock is struct flock of fcntl(2) on x86-64.
func flock(kind uint16, start, length int64) []byte {
	b := make([]byte, 32)
	binary.LittleEndian.PutUint16(b, kind)
	binary.LittleEndian.PutUint64(b[8:], uint64(start))
	binary.LittleEndian.PutUint64(b[16:], uint64(length))
	return b
}

// lockType returns l_type.
func lockType(l *image.FileLock) int16 {
	if l.Write {
		return unix.F_WRLCK
	}
	return unix.F_RDLCK
}

// gaps returns the parts of a file that no lock covers, as locks to be given
// up.
func gaps(locks []image.FileLock) []image.FileLock {
	sorted := slices.Clone(locks)
	slices.SortFunc(sorted, func(a, b image.FileLock) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	var out []image.FileLock
	at := int64(0)
	for i := range sorted {
		l := &sorted[i]
		if l.Start > at {
			out = append(out, image.FileLock{Start: at, Length: l.Start - at})
		}
		if l.End() == math.MaxInt64 {
			return out
		}
		at = max(at, l.End()+1)
	}
	return append(out, image.FileLock{Start: at})
}

// lockPass is a part of putting locks back: what others may want is given up
// by all before anybody takes anything.
type lockPass int

const (
	lockRelease lockPass = iota // what the epoch did not have
	lockWeaken                  // locks for reading, as far as they are free
	lockTake                    // all
)

// locks puts the locks of all processes and descriptions back.
func (pl *filePlan) locks(ctx context.Context, jobs []*undo, lost *losses) {
	for _, pass := range []lockPass{lockRelease, lockWeaken, lockTake} {
		each(jobs, lost, func(j *undo) error { return j.locks(ctx, pl, pass) })
		for i := range pl.descs {
			d := &pl.descs[i]
			if d.fd < 0 || d.want.Flags&unix.O_PATH != 0 || lost.has(d.holder.c.rank) {
				continue
			}
			if err := d.locks(pass); err != nil {
				lost.add(d.holder.c.rank, d.named(err))
			}
		}
	}
}

// locks does one pass for the POSIX locks of a process. Locks of a file that
// is the same as at the epoch are never given up in between.
func (u *undo) locks(ctx context.Context, pl *filePlan, pass lockPass) error {
	want := map[int][]image.FileLock{} // by descriptor
	for _, l := range u.c.image.Locks {
		want[l.FD] = append(want[l.FD], l)
	}
	for _, o := range pl.live.files {
		if o.p.pid == u.p.pid && len(imageLocks(o.locks, o.num, true)) > 0 && want[o.num] == nil && !u.wantsFile(pl, o) {
			want[o.num] = nil // had now, not then
		}
	}
	b := u.p.frozen.Batch(u.p.frozen.Leader())
	var calls []*proc.Call
	for num, locks := range want {
		if !u.hasFD(num) {
			continue // closed: its locks went with it
		}
		set := locks
		if pass == lockRelease {
			set = gaps(locks)
		}
		for i := range set {
			kind := int16(unix.F_UNLCK)
			if pass != lockRelease {
				kind = lockType(&set[i])
			}
			if pass == lockWeaken && set[i].Write {
				continue
			}
			calls = append(calls, b.Call(unix.SYS_FCNTL, uint64(num), unix.F_SETLK, b.Bytes(flock(uint16(kind), set[i].Start, set[i].Length))))
		}
	}
	if len(calls) == 0 {
		return nil
	}
	if err := b.RunAll(ctx); err != nil {
		return err
	}
	for _, c := range calls {
		if err := c.Err(); err != nil && !(pass == lockWeaken && errors.Is(err, unix.EAGAIN)) {
			return fmt.Errorf("lock of descriptor %d: %w", c.Args[0], err)
		}
	}
	return nil
}

// wantsFile reports whether the epoch has locks on the file of o through
// another descriptor.
func (u *undo) wantsFile(pl *filePlan, o *openFile) bool {
	for _, l := range u.c.image.Locks {
		for _, fd := range u.c.image.FDs {
			f := pl.snap.descs[fd.Desc-1].File
			if fd.Num == l.FD && f != nil && f.Ino == o.stat.Ino && f.Dev == o.stat.Dev {
				return true
			}
		}
	}
	return false
}

func (u *undo) hasFD(num int) bool {
	return slices.ContainsFunc(u.c.image.FDs, func(fd image.FD) bool { return fd.Num == num })
}

// locks does one pass for the locks of a description.
func (d *planned) locks(pass lockPass) error {
	var ofd, whole []image.FileLock
	for _, l := range d.want.Locks {
		if l.Kind == string(proc.LockFlock) {
			whole = append(whole, l)
		} else {
			ofd = append(ofd, l)
		}
	}
	had := map[proc.LockKind]bool{}
	if d.live != nil {
		for _, l := range d.live.holders[0].locks {
			had[l.Kind] = true
		}
	}
	if len(whole) > 0 || had[proc.LockFlock] {
		if err := flockPass(d.fd, whole, pass); err != nil {
			return err
		}
	}
	if len(ofd) == 0 && !had[proc.LockOFD] {
		return nil
	}
	set := ofd
	if pass == lockRelease {
		set = gaps(ofd)
	}
	for i := range set {
		l := unix.Flock_t{Type: unix.F_UNLCK, Start: set[i].Start, Len: set[i].Length}
		if pass != lockRelease {
			l.Type = lockType(&set[i])
		}
		if pass == lockWeaken && set[i].Write {
			continue
		}
		err := unix.FcntlFlock(uintptr(d.fd), unix.F_OFD_SETLK, &l)
		if err != nil && !(pass == lockWeaken && err == unix.EAGAIN) {
			return fmt.Errorf("lock: %w", err)
		}
	}
	return nil
}

// flockPass is the same for flock(2), which knows whole files only.
func flockPass(fd int, want []image.FileLock, pass lockPass) error {
	how := unix.LOCK_UN
	if len(want) > 0 {
		how = unix.LOCK_SH | unix.LOCK_NB
		if want[0].Write {
			how = unix.LOCK_EX | unix.LOCK_NB
		}
	}
	switch {
	case (pass == lockRelease) != (how == unix.LOCK_UN),
		pass == lockWeaken && how&unix.LOCK_EX != 0:
		return nil
	}
	err := unix.Flock(fd, how)
	if err != nil && !(pass == lockWeaken && err == unix.EWOULDBLOCK) {
		return fmt.Errorf("flock: %w", err)
	}
	return nil
}
