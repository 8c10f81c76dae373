package pod

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/pid1"
)

// Bounds of what is kept of a stream that its readers have.
const (
	// spoolKeep is what is kept in any case, in bytes, for three reasons: what
	// a reader was sent may not have arrived when a daemon on the way dies; the
	// next image takes the newest bytes along (maxTail); people like to see
	// where a job is when they attach.
	spoolKeep = 16 << 20
	// spoolStep is how much is given back at a time, in bytes.
	spoolStep = 1 << 20
)

// cover lets readers of committed output see the bytes below the offsets: an
// epoch that was taken there is committed.
func (o *outputs) cover(at map[streamKey]int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.covered = at
	o.trim()
	o.notify()
}

// trim gives back the space of bytes that every reader has and that no rollback
// takes back: those below the newest committed epoch or, before the first one,
// below what was read. Bytes that nobody has read stay: if they fill the disk,
// the ranks wait in their pipes. Precondition: mu is held.
func (o *outputs) trim() {
	for k, s := range o.streams {
		to := s.seen
		for c := range o.readers {
			if pos, ok := c.pos[k]; ok {
				to = min(to, pos)
			}
		}
		if o.covered != nil {
			to = min(to, o.covered[k])
		}
		to -= spoolKeep
		if to-s.low < spoolStep {
			continue
		}
		err := unix.Fallocate(pid1.FD(s.file), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.low-s.base, to-s.low)
		if errors.Is(err, unix.EOPNOTSUPP) || err == nil {
			s.low = to // the same on all file systems, also where the space is not given back
		}
	}
}

// follow makes o wait with trimming for a reader, until the returned function
// is called.
func (o *outputs) follow(c *cursor) (leave func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.readers[c] = true
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.readers, c)
	}
}
