package pause

import (
	"context"
	"errors"
	"fmt"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

var errPending = errors.New("not available yet")

func (p *Pod) freeze(ctx context.Context, e Event, r *Report) error {
	gone, err := p.group.freeze(ctx)
	r.LostRanks = gone
	return err
}

func (p *Pod) thaw(ctx context.Context, e Event, a args, r *Report) error {
	return p.group.thaw(ctx)
}

func (p *Pod) captureSend(ctx context.Context, r *Report) error { return errPending }
func (p *Pod) captureRecv(ctx context.Context, r *Report) error { return errPending }
func (p *Pod) rollback(ctx context.Context, a args, r *Report) error {
	return errPending
}
func (p *Pod) release(ctx context.Context, r *Report) error { return p.group.thaw(ctx) }
func (p *Pod) adopt(a args) error                           { return errPending }
func (p *Pod) dropDraft()                                   {}
func (p *Pod) promote()                                     {}

func (p *Pod) write(ctx context.Context, epoch job.Epoch, x Extra, open func(image.Identity) (*image.Writer, error)) (*podapi.Written, error) {
	return nil, fmt.Errorf("pause: write: %w", errPending)
}

func (g *group) prepare(ctx context.Context, committed *snapshot) error { return nil }
func (g *group) preflight(ctx context.Context) (*Report, error)         { return nil, errPending }

type snapshot struct{}

// Close ends the tracers. The ranks go on as they are; call it when they are
// gone, or to let go of them for good.
func (p *Pod) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.group.close()
	return nil
}
