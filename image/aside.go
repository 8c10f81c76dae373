package image

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/lampause/lampause/job"
)

// SetAside takes the image of a pod that turned out to be damaged out of the
// way, so that Receive can bring an intact one. The damaged one stays until the
// next is set aside, or the epoch is removed, for people to look at. What is not
// there is fine.
//
// Expected errors: those of the file system.
func (d *JobDir) SetAside(epoch job.Epoch, pod job.PodIndex) error {
	parent, err := openDirBeneath(d.dir, epochName(epoch))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("job %d epoch %d pod %d: set aside: %w", d.id, epoch, pod, err)
	}
	defer func() { _ = parent.Close() }()
	name := podName(int(pod))
	aside := damagedName(name)
	if err := removeTree(parent, aside, 0, d.step); err != nil {
		return fmt.Errorf("job %d epoch %d pod %d: set aside: %w", d.id, epoch, pod, err)
	}
	if err := renameBeneath(parent, name, aside, d.step); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("job %d epoch %d pod %d: set aside: %w", d.id, epoch, pod, err)
	}
	return nil
}

// damagedName is where the damaged image of a pod directory goes.
func damagedName(pod string) string { return "." + pod + ".damaged" }
