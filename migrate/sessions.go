package migrate

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/proc"
)

// A process belongs to a session by birth: it has that of its parent at the
// time of the fork, or its own. The skeleton is therefore cloned in such an
// order, and from such processes, that each is born into its session; and a
// leader that is gone is played by a helper of its number, which ends when the
// others stand. Source: credentials(7), setsid(2), setpgid(2).

// family is the skeleton of the processes that come from one seed.
type family struct {
	b        *builder
	seed     *proc.Frozen
	children map[int][]*image.Process
	byPID    map[int]*process
	out      []*process           // parents before their children
	late     []*image.Process     // roots that are not born into the outer session
	helpers  map[int]*proc.Frozen // leaders of sessions that are gone
}

// outerSession returns the session that stands for the one outside: that of
// the first root process, unless the image has its leader.
func (b *builder) outerSession() int {
	for i := range b.m.Processes {
		p := &b.m.Processes[i]
		if p.PPID == 0 && p.Exited == nil {
			if b.m.Process(p.SID) == nil {
				return p.SID
			}
			return 0
		}
	}
	return 0
}

// skeleton clones the process tree: every process with its pid, parent,
// session and group, but still a copy of the seed. members has parents before
// their children.
func (b *builder) skeleton(ctx context.Context, seed *proc.Frozen, members []*image.Process) (_ []*process, err error) {
	k := &family{b: b, seed: seed, children: map[int][]*image.Process{}, byPID: map[int]*process{}, helpers: map[int]*proc.Frozen{}}
	defer func() { err = errors.Join(err, k.endHelpers()) }()
	for _, img := range members {
		if img.PPID != 0 {
			k.children[img.PPID] = append(k.children[img.PPID], img)
		}
	}
	outer := b.outerSession()
	for _, img := range members {
		switch {
		case img.PPID != 0:
		case img.SID == img.PID, img.SID == outer:
			err = k.grow(ctx, img, seed, proc.CloneArgs{Flags: unix.CLONE_PARENT}, outer)
		default:
			k.late = append(k.late, img)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, img := range k.late {
		if err := k.growLate(ctx, img); err != nil {
			return nil, err
		}
	}
	return k.out, k.processGroups(ctx)
}

// grow clones img from a process of session, and then its descendants: those
// that were born before it began a session of its own first.
func (k *family) grow(ctx context.Context, img *image.Process, from *proc.Frozen, args proc.CloneArgs, session int) error {
	if img.SID != img.PID && img.SID != session {
		return fmt.Errorf("process %d: %w: its session %d is not its parent's", img.PID, image.ErrMismatch, img.SID)
	}
	pages, err := k.b.r.Process(img.PID)
	if err != nil {
		return fmt.Errorf("process %d: %w", img.PID, err)
	}
	args.SetTID = []int{img.PID}
	f, err := from.CloneProcess(ctx, args)
	if err != nil {
		return fmt.Errorf("process %d: clone: %w", img.PID, err)
	}
	p := &process{img: img, pages: pages, f: f, owned: mappedRanges(img)}
	k.byPID[img.PID] = p
	k.out = append(k.out, p)
	k.b.add(p)
	child := proc.CloneArgs{ExitSignal: unix.SIGCHLD}
	var rest []*image.Process
	for _, kid := range k.children[img.PID] {
		if img.SID != img.PID || kid.SID == img.PID || kid.SID == kid.PID {
			rest = append(rest, kid)
		} else if err := k.grow(ctx, kid, f, child, session); err != nil {
			return err
		}
	}
	if img.SID == img.PID {
		if err := inject(ctx, f, unix.SYS_SETSID); err != nil {
			return fmt.Errorf("process %d: session: %w", img.PID, err)
		}
	}
	for _, kid := range rest {
		if err := k.grow(ctx, kid, f, child, img.SID); err != nil {
			return err
		}
	}
	return nil
}

// growLate clones a process that was left behind by its parent, in a session
// that began further down the tree: from the leader of the session, in such a
// way that it is a child of init.
func (k *family) growLate(ctx context.Context, img *image.Process) error {
	sibling := proc.CloneArgs{Flags: unix.CLONE_PARENT}
	lead := k.byPID[img.SID]
	if lead == nil {
		h, err := k.helper(ctx, img.SID)
		if err != nil {
			return err
		}
		return k.grow(ctx, img, h, sibling, img.SID)
	}
	if lead.img.PPID == 0 {
		return k.grow(ctx, img, lead.f, sibling, img.SID)
	}
	// A parent that ends at once, as that of every daemon did.
	between, err := lead.f.CloneProcess(ctx, proc.CloneArgs{SetTID: []int{k.freePID()}})
	if err != nil {
		return fmt.Errorf("process %d: clone: %w", img.PID, err)
	}
	err = k.grow(ctx, img, between, proc.CloneArgs{ExitSignal: unix.SIGCHLD}, img.SID)
	return errors.Join(err, endHelper(ctx, lead.f, between))
}

// helper returns the stand-in for the leader of a session.
func (k *family) helper(ctx context.Context, sid int) (*proc.Frozen, error) {
	if h := k.helpers[sid]; h != nil {
		return h, nil
	}
	h, err := k.seed.CloneProcess(ctx, proc.CloneArgs{Flags: unix.CLONE_PARENT, SetTID: []int{sid}})
	if err != nil {
		return nil, fmt.Errorf("leader of session %d: clone: %w", sid, err)
	}
	k.helpers[sid] = h
	if err := inject(ctx, h, unix.SYS_SETSID); err != nil {
		return nil, fmt.Errorf("session %d: %w", sid, err)
	}
	return h, nil
}

// endHelpers ends the stand-ins; init reaps them.
func (k *family) endHelpers() error {
	var err error
	for _, h := range k.helpers {
		err = errors.Join(err, h.Kill())
	}
	clear(k.helpers)
	return err
}

// endHelper ends a child of parent and has it forgotten.
func endHelper(ctx context.Context, parent, h *proc.Frozen) error {
	pid := h.PID
	st, err := proc.ReadStatus(pid)
	if err != nil {
		return errors.Join(err, h.Kill())
	}
	if err := h.Kill(); err != nil {
		return err
	}
	return inject(ctx, parent, unix.SYS_WAIT4, uint64(st.Inner()), 0, unix.WNOHANG|unix.WALL, 0) //nolint:gosec // a pid
}

// freePID returns a number that neither a process nor a group of the image has.
func (k *family) freePID() int {
	used := map[int]bool{}
	for i := range k.b.m.Processes {
		p := &k.b.m.Processes[i]
		used[p.PGID], used[p.SID] = true, true
		for _, th := range p.Threads {
			used[th.TID] = true
		}
		for _, z := range p.Zombies {
			used[z.PID] = true
		}
	}
	pid := 1000
	for used[pid] {
		pid--
	}
	return pid
}

// processGroups puts every process in its group. A number that is a group's
// first makes the group, whoever is in it at last; when nobody has the number
// any more, a helper does that.
func (k *family) processGroups(ctx context.Context) error {
	members := map[int][]*process{}
	for _, p := range k.out {
		members[p.img.PGID] = append(members[p.img.PGID], p)
	}
	for group := range members {
		if lead := k.byPID[group]; lead != nil && lead.img.SID != group {
			if err := inject(ctx, lead.f, unix.SYS_SETPGID, 0, 0); err != nil {
				return fmt.Errorf("process %d: group: %w", group, err)
			}
		}
	}
	for group, list := range members {
		if group == 0 || k.byPID[group] != nil {
			continue
		}
		if err := k.groupOfNobody(ctx, group, list); err != nil {
			return err
		}
	}
	for _, founders := range []bool{false, true} { // one that others follow leaves its own group last
		for _, p := range k.out {
			group := p.img.PGID
			if group == p.img.PID || k.byPID[group] == nil || (members[p.img.PID] != nil) != founders {
				continue
			}
			if err := inject(ctx, p.f, unix.SYS_SETPGID, 0, uint64(group)); err != nil { //nolint:gosec // a pid
				return fmt.Errorf("process %d: group %d: %w", p.img.PID, group, err)
			}
		}
	}
	return nil
}

// groupOfNobody makes a group whose first process is gone, unless it is there:
// that of the processes outside.
func (k *family) groupOfNobody(ctx context.Context, group int, list []*process) error {
	first := list[0]
	err := inject(ctx, first.f, unix.SYS_SETPGID, 0, uint64(group)) //nolint:gosec // a pid
	var h *proc.Frozen
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ESRCH) {
		h, err = first.f.CloneProcess(ctx, proc.CloneArgs{SetTID: []int{group}})
		if errors.Is(err, unix.EEXIST) {
			k.b.note(first.img.PID, "its process group %d belongs to another session now", group)
			return nil
		}
		if err == nil {
			err = inject(ctx, h, unix.SYS_SETPGID, 0, 0)
		}
	}
	for _, p := range list {
		if err == nil {
			err = inject(ctx, p.f, unix.SYS_SETPGID, 0, uint64(group)) //nolint:gosec // a pid
		}
	}
	if h != nil {
		err = errors.Join(err, endHelper(ctx, first.f, h))
	}
	if err != nil {
		return fmt.Errorf("group %d: %w", group, err)
	}
	return nil
}
