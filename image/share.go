package image

import (
	"context"
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/job"
)

// maxOthers is how many images of other epochs a receiver looks through for
// files that it can share.
const maxOthers = 3

// lookAround opens the images that the node has of the same pod at other
// epochs. Without any, everything is received; so no failure matters.
func (r *Receiver) lookAround(d *JobDir) {
	if aside, err := openDirBeneath(r.parent, damagedName(r.name)); err == nil {
		r.careful = true
		_ = aside.Close() // read only
	}
	epochs, err := d.Epochs()
	if err != nil {
		return
	}
	slices.SortFunc(epochs, func(a, b EpochInfo) int {
		if apart(a.Epoch, r.id.Epoch) < apart(b.Epoch, r.id.Epoch) {
			return -1
		}
		return 1
	})
	for _, e := range epochs {
		if e.Epoch == r.id.Epoch || !slices.Contains(e.Pods, r.id.Pod) || len(r.others) == maxOthers {
			continue
		}
		if dir, err := openDirBeneath(d.dir, epochName(e.Epoch)+"/"+r.name); err == nil {
			r.others = append(r.others, dir)
		}
	}
}

func apart(a, b job.Epoch) job.Epoch { return max(a, b) - min(a, b) }

// shareAll links the files that images of other epochs here share with m: those
// of the same name, size and SHA-256. They were checked when they came. What
// cannot be shared, for whatever reason, is received.
func (r *Receiver) shareAll(ctx context.Context, m *Manifest) {
	for _, dir := range r.others {
		data, err := readBeneath(dir, ManifestName, maxManifest)
		if err != nil {
			continue
		}
		other, err := decodeManifest(data)
		if err != nil || other.Job != m.Job || other.Pod != m.Pod {
			continue
		}
		for name, f := range other.Files {
			r.mu.Lock()
			got := r.got[name]
			r.mu.Unlock()
			if got || m.Files[name] != f || m.Tails[name] != other.Tails[name] || f.SHA256 == "" {
				continue
			}
			if r.shareOne(ctx, dir, name, m) == nil {
				r.mu.Lock()
				r.got[name] = true
				r.mu.Unlock()
			}
		}
	}
}

// shareOne links one file, once its header and trailer are right, and where
// damage is to be feared all of it.
func (r *Receiver) shareOne(ctx context.Context, dir *os.File, name string, m *Manifest) (err error) {
	p, err := openListed(dir, name, name, m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if r.careful {
		if err := p.verify(ctx, 1); err != nil {
			return err
		}
	}
	return linkBeneath(dir, r.dir, name, p.f, r.step)
}

// openListed opens the file at path beneath dir as the page file name of a
// checked manifest.
func openListed(dir *os.File, path, name string, m *Manifest) (*pageFile, error) {
	f, err := openBeneath(dir, path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	kind, id, epoch, _ := parsePart(name) // checked with the list
	part := partID{Identity: m.Identity, kind: kind, id: id}
	part.Epoch = epoch
	return openPageFile(f, part, m.Files[name].Size, m.Tails[name], epoch < m.Epoch)
}
