package migrate

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/proc"
)

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
