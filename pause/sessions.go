package pause

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/proc"
)

// checkSessions finds processes whose session could not be given to them
// again: one that is neither their own, nor their parent's, nor the one that
// their parent left after they were born.
func checkSessions(procs []*process, obs *obstacles) error {
	type place struct{ pid, sid, before int }
	at := map[int]place{} // by pid of ours
	for _, q := range procs {
		st, err := proc.ReadStatus(q.pid)
		if err != nil {
			return err
		}
		p := place{st.Inner(), last(st.NSSid), -1}
		parent, ok := at[q.parent]
		if ok {
			p.before = parent.sid
		}
		at[q.pid] = p
		if ok && p.sid != p.pid && p.sid != parent.sid && (parent.sid != parent.pid || parent.before >= 0 && p.sid != parent.before) {
			obs.add(q, "its session %d was not begun by a process above it", p.sid)
		}
	}
	return nil
}

// groups puts the processes back into their process groups. A session that
// began since the epoch cannot be left again: that rank is lost.
func (p *Pod) groups(ctx context.Context, jobs []*undo, lost *losses) {
	pass := func(fn func(j *undo, st *proc.Status) error) {
		for _, j := range jobs {
			if lost.has(j.c.rank) {
				continue
			}
			st, err := proc.ReadStatus(j.p.pid)
			if err == nil {
				err = fn(j, st)
			}
			if err != nil {
				lost.add(j.c.rank, fmt.Errorf("process group: %w", err))
			}
		}
	}
	pass(func(j *undo, st *proc.Status) error {
		im := &j.c.image
		if last(st.NSSid) != im.SID {
			return fmt.Errorf("process %d began a session since the epoch, and cannot leave it", im.PID)
		}
		if im.PGID == im.PID && last(st.NSPgid) != im.PGID {
			return setGroup(ctx, j, 0)
		}
		return nil
	})
	pass(func(j *undo, st *proc.Status) error {
		if last(st.NSPgid) == j.c.image.PGID || j.c.image.PGID == 0 {
			return nil
		}
		return setGroup(ctx, j, j.c.image.PGID)
	})
}

// setGroup has a process change its group; 0 makes one of its own.
func setGroup(ctx context.Context, j *undo, group int) error {
	b := j.p.frozen.Batch(j.p.frozen.Leader())
	b.Call(unix.SYS_SETPGID, 0, uint64(group))
	return b.Run(ctx)
}

// checkProcFiles finds files of /proc that stand for processes outside: there
// will be none of that number after a restart.
func (t *fileTable) checkProcFiles(procs []*process, obs *obstacles) error {
	var inner map[string]bool
	for _, o := range t.files {
		rest, ok := strings.CutPrefix(o.link, "/proc/")
		if !ok || o.stat.Mode&unix.S_IFMT != unix.S_IFREG && o.stat.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		pid, _, _ := strings.Cut(rest, "/")
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		if inner == nil {
			inner = map[string]bool{}
			for _, q := range procs {
				st, err := proc.ReadStatus(q.pid)
				if err != nil {
					return err
				}
				inner[strconv.Itoa(st.Inner())] = true
			}
		}
		if !inner[pid] {
			obs.add(o.p, "descriptor %d (%s): a file of a process that is not captured", o.num, o.link)
		}
	}
	return nil
}
