package migrate

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/proc"
)

// skeleton clones the process tree: every process with its pid, parent,
// session and group, but still a copy of the seed. members has parents before
// their children.
func (b *builder) skeleton(ctx context.Context, seed *proc.Frozen, members []*image.Process) ([]*process, error) {
	byPID := map[int]*process{}
	var out []*process
	for _, img := range members {
		p, err := b.cloneOne(ctx, seed, byPID[img.PPID], img)
		if err != nil {
			return nil, fmt.Errorf("process %d: clone: %w", img.PID, err)
		}
		byPID[img.PID] = p
		out = append(out, p)
		b.add(p)
		if img.SID == img.PID {
			if err := inject(ctx, p.f, unix.SYS_SETSID); err != nil {
				return nil, fmt.Errorf("process %d: session: %w", img.PID, err)
			}
		}
	}
	return out, b.processGroups(ctx, out)
}

func (b *builder) cloneOne(ctx context.Context, seed *proc.Frozen, parent *process, img *image.Process) (*process, error) {
	args := proc.CloneArgs{Flags: unix.CLONE_PARENT, SetTID: []int{img.PID}}
	from := seed
	if parent != nil {
		args.Flags, args.ExitSignal = 0, unix.SIGCHLD
		from = parent.f
	}
	pages, err := b.r.Process(img.PID)
	if err != nil {
		return nil, err
	}
	f, err := from.CloneProcess(ctx, args)
	if err != nil {
		return nil, err
	}
	return &process{img: img, pages: pages, f: f, owned: mappedRanges(img)}, nil
}

// processGroups puts every process in its group; leaders first.
func (b *builder) processGroups(ctx context.Context, procs []*process) error {
	groups := map[int]bool{}
	for _, p := range procs {
		if p.img.PGID == p.img.PID && p.img.SID != p.img.PID {
			if err := inject(ctx, p.f, unix.SYS_SETPGID, 0, 0); err != nil {
				return fmt.Errorf("process %d: group: %w", p.img.PID, err)
			}
		}
		groups[p.img.PGID] = groups[p.img.PGID] || p.img.PGID == p.img.PID
	}
	for _, p := range procs {
		if p.img.PGID == p.img.PID || p.img.PGID == 0 {
			continue
		}
		if !groups[p.img.PGID] {
			b.note(p.img.PID, "its process group %d has no leader in the image", p.img.PGID)
			continue
		}
		if err := inject(ctx, p.f, unix.SYS_SETPGID, 0, uint64(p.img.PGID)); err != nil {
			return fmt.Errorf("process %d: group %d: %w", p.img.PID, p.img.PGID, err)
		}
	}
	return nil
}

// zombies makes the children of p that had ended and were not waited for.
func (b *builder) zombies(ctx context.Context, p *process) error {
	for _, z := range p.img.Zombies {
		child, err := p.f.CloneProcess(ctx, proc.CloneArgs{ExitSignal: unix.SIGCHLD, SetTID: []int{z.PID}})
		if err != nil {
			return fmt.Errorf("zombie %d: %w", z.PID, err)
		}
		ws := unix.WaitStatus(uint32(z.Status)) //nolint:gosec // a status is 16 bits
		if ws.Signaled() {
			err = endBySignal(ctx, child, ws.Signal())
		} else {
			batch := child.Batch(child.Leader())
			batch.Call(unix.SYS_EXIT_GROUP, uint64(ws.ExitStatus())) //nolint:gosec // 8 bits
			err = goneIsFine(batch.Run(ctx))
		}
		if err != nil {
			return errors.Join(fmt.Errorf("zombie %d: %w", z.PID, err), child.Kill())
		}
	}
	return nil
}

// inject carries out one system call in f.
func inject(ctx context.Context, f *proc.Frozen, nr uint64, args ...uint64) error {
	batch := f.Batch(f.Leader())
	batch.Call(nr, args...)
	return batch.Run(ctx)
}
