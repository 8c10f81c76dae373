package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// streamKey names one output of one rank.
type streamKey struct {
	rank job.Rank
	fd   int // 1 or 2
}

// outStream is what one rank writes to one descriptor: a pipe that the supervisor
// reads, and the file that keeps the bytes. Guarded by outputs.mu.
type outStream struct {
	key   streamKey
	read  *os.File // non-blocking
	raw   syscall.RawConn
	write *os.File // what the rank inherits; kept, so that a killed rank does not end the stream
	file  *os.File
	base  int64 // offset of the file's first byte
	low   int64 // offset of the first byte that is kept, base or higher
	seen  int64 // the highest offset that a reader came to
	size  int64 // offset of the next byte
	eof   bool  // the rank has ended and everything was read
}

// rewind says that from generation gen on the bytes from offset at are new
// ones: a rollback took the old ones back.
type rewind struct {
	gen int
	at  map[streamKey]int64
}

// outputs collects what the ranks of a pod write, without loss, and serves it
// from any offset. Safe for concurrent use.
type outputs struct {
	dir string

	mu      sync.Mutex // guards below
	streams map[streamKey]*outStream
	changed chan struct{} // closed and replaced when anything changes
	rewinds []rewind
	gen     int                 // number of rewinds
	covered map[streamKey]int64 // what the newest committed epoch covers, see cursor.covered; nil before the first
	readers map[*cursor]bool    // that follow now
}

func newOutputs(dir string, ranks []job.Rank) (*outputs, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("outputs: %w", err)
	}
	o := &outputs{dir: dir, streams: map[streamKey]*outStream{}, changed: make(chan struct{}), readers: map[*cursor]bool{}}
	for _, r := range ranks {
		for fd := 1; fd <= 2; fd++ {
			s, err := o.open(streamKey{r, fd})
			if err != nil {
				o.close()
				return nil, fmt.Errorf("outputs: rank %d: %w", r, err)
			}
			o.streams[s.key] = s
		}
	}
	return o, nil
}

func (o *outputs) open(k streamKey) (*outStream, error) {
	file, err := os.OpenFile(filepath.Join(o.dir, fmt.Sprintf("%d.%d", k.rank, k.fd)), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	r, w, err := newPipe(true, false)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	raw, err := r.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, r.Close(), w.Close(), file.Close())
	}
	return &outStream{key: k, read: r, raw: raw, write: w, file: file}, nil
}

// newPipe makes a pipe whose ends are non-blocking as asked; os.Pipe makes
// both so, and a program does not expect that of its stdout.
func newPipe(readNonblock, writeNonblock bool) (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	err = errors.Join(unix.SetNonblock(p[0], readNonblock), unix.SetNonblock(p[1], writeNonblock))
	r, w = os.NewFile(uintptr(p[0]), "pipe-read"), os.NewFile(uintptr(p[1]), "pipe-write")
	if err != nil {
		return nil, nil, errors.Join(err, r.Close(), w.Close())
	}
	return r, w, nil
}

// rankEnd returns what the rank inherits as descriptor fd. It stays owned by
// o.
func (o *outputs) rankEnd(r job.Rank, fd int) *os.File { return o.streams[streamKey{r, fd}].write }

// run collects until ctx ends.
func (o *outputs) run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, s := range o.streams {
		wg.Go(func() { o.collect(s) })
	}
	<-ctx.Done()
	o.close()
	wg.Wait()
	return ctx.Err()
}

// close ends all collectors. The lock is not held: Close waits for a collector
// that is about to take it.
func (o *outputs) close() {
	for _, s := range o.streams { // the map does not change
		_ = s.read.Close() // what is left in the pipe was not asked for
		_ = s.write.Close()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.notify()
}

// notify wakes the readers. Precondition: mu is held.
func (o *outputs) notify() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// collect moves one stream from its pipe to its file. When the file cannot be
// written the rank blocks in its pipe, which loses nothing.
func (o *outputs) collect(s *outStream) {
	buf := make([]byte, 64<<10)
	for {
		var failed error
		err := s.raw.Read(func(uintptr) bool {
			o.mu.Lock()
			defer o.mu.Unlock()
			n, err := s.take(buf)
			if n > 0 {
				o.notify()
			}
			if errors.Is(err, unix.EAGAIN) {
				return s.eof
			}
			failed = err
			return true
		})
		if err != nil || failed != nil {
			return
		}
		o.mu.Lock()
		done := s.eof
		o.mu.Unlock()
		if done {
			return
		}
	}
}

// take moves one buffer from the pipe to the file. Precondition: mu is held.
//
// Expected errors: unix.EAGAIN when the pipe is empty.
func (s *outStream) take(buf []byte) (int, error) {
	var n int
	var err error
	cerr := s.raw.Control(func(fd uintptr) {
		for {
			n, err = unix.Read(int(fd), buf)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	if cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	if _, err := s.file.WriteAt(buf[:n], s.size-s.base); err != nil {
		return 0, fmt.Errorf("output of rank %d: %w", s.key.rank, err)
	}
	s.size += int64(n)
	return n, nil
}

// drain empties the pipes of the given ranks, all ranks when none are given,
// and returns where each stream stands. Precondition for an exact answer: the
// ranks are frozen or gone.
func (o *outputs) drain(ranks ...job.Rank) (map[streamKey]int64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	at := map[streamKey]int64{}
	buf := make([]byte, 64<<10)
	for k, s := range o.streams {
		if len(ranks) > 0 && !slices.Contains(ranks, k.rank) {
			continue
		}
		for {
			if _, err := s.take(buf); errors.Is(err, unix.EAGAIN) {
				break
			} else if err != nil {
				return nil, fmt.Errorf("drain output of rank %d: %w", k.rank, err)
			}
		}
		at[k] = s.size
	}
	o.notify()
	return at, nil
}

// ended marks the streams of an ended rank: what is in its pipes is the last.
// A child of the rank that still holds them loses what it writes later.
func (o *outputs) ended(r job.Rank) error {
	_, err := o.drain(r)
	o.mu.Lock()
	defer o.mu.Unlock()
	for fd := 1; fd <= 2; fd++ {
		o.streams[streamKey{r, fd}].eof = true
	}
	o.notify()
	return err
}

// rewindTo takes back what was written since the offsets: pipes are emptied,
// files cut, and readers told. Precondition: the ranks are frozen or gone.
func (o *outputs) rewindTo(at map[streamKey]int64) error {
	if _, err := o.drain(); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for k, off := range at {
		s := o.streams[k]
		if s == nil || off > s.size || off < s.low {
			return fmt.Errorf("rewind output of rank %d: offset %d is not kept", k.rank, off)
		}
		if err := s.file.Truncate(off - s.base); err != nil {
			return fmt.Errorf("rewind output of rank %d: %w", k.rank, err)
		}
		s.size, s.eof, s.seen = off, false, min(s.seen, off)
	}
	o.gen++
	o.rewinds = append(o.rewinds, rewind{gen: o.gen, at: at})
	o.notify()
	return nil
}

// tail returns the bytes [from, to) of a stream, as far as they are kept; the
// offset of the first byte comes with them.
func (o *outputs) tail(k streamKey, from, to int64) (int64, []byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.streams[k]
	from = max(from, s.low)
	if to < from {
		return to, nil, nil
	}
	b := make([]byte, to-from)
	_, err := s.file.ReadAt(b, from-s.base)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, nil, fmt.Errorf("read output of rank %d: %w", k.rank, err)
	}
	return from, b, nil
}

// seed gives a stream of a rebuilt pod its past: data begins at offset base.
func (o *outputs) seed(k streamKey, base int64, data []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.streams[k]
	if s == nil {
		return fmt.Errorf("output: no stream %d of rank %d", k.fd, k.rank)
	}
	if _, err := s.file.WriteAt(data, 0); err != nil {
		return fmt.Errorf("output of rank %d: %w", k.rank, err)
	}
	if err := s.file.Truncate(int64(len(data))); err != nil {
		return fmt.Errorf("output of rank %d: %w", k.rank, err)
	}
	s.base, s.low, s.seen, s.size = base, base, base, base+int64(len(data))
	o.notify()
	return nil
}

// maxFrame bounds the data of one frame, in bytes.
const maxFrame = 32 << 10

// cursor is the place of one reader.
type cursor struct {
	gen     int // rewinds that it has seen
	pos     map[streamKey]int64
	eof     map[streamKey]bool
	covered bool // it gets only what no rollback takes back; the rest is in the archive of the ended job
}

// next returns the frames that a reader has not seen, at most one per stream,
// and a channel that tells when there may be more; done says that every stream
// that it follows has ended.
func (o *outputs) next(c *cursor) (frames []podapi.Output, more <-chan struct{}, done bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	frames = o.rewound(c)
	done = true
	for k, pos := range c.pos {
		s := o.streams[k]
		if pos < s.low {
			pos = s.low // lost with a node before it was read, or not kept any more
		}
		end := s.size
		if c.covered {
			end = min(end, o.covered[k])
		}
		n := min(end-pos, maxFrame)
		f := podapi.Output{Rank: k.rank, FD: k.fd, Offset: pos, Gen: o.gen}
		if n > 0 {
			f.Data = make([]byte, n)
			if _, err := s.file.ReadAt(f.Data, pos-s.base); err != nil {
				return nil, nil, false, fmt.Errorf("read output of rank %d: %w", k.rank, err)
			}
		}
		c.pos[k] = pos + max(n, 0)
		s.seen = max(s.seen, min(c.pos[k], s.size))
		f.EOF = s.eof && c.pos[k] == s.size && !c.covered // a rollback may yet take the end back
		if n > 0 || f.EOF && !c.eof[k] {
			frames = append(frames, f)
		}
		c.eof[k] = f.EOF
		done = done && f.EOF
	}
	if o.covered == nil { // nothing is ever taken back: what was read can go
		o.trim()
	}
	return frames, o.changed, done, nil
}

// rewound moves a reader back over the rewinds that it has not seen, and says
// so to it. Precondition: mu is held.
func (o *outputs) rewound(c *cursor) []podapi.Output {
	var out []podapi.Output
	for _, rw := range o.rewinds {
		if rw.gen <= c.gen {
			continue
		}
		for k, at := range rw.at {
			if pos, ok := c.pos[k]; ok && pos > at {
				c.pos[k], c.eof[k] = at, false
				out = append(out, podapi.Output{Rank: k.rank, FD: k.fd, Offset: at, Gen: rw.gen})
			}
		}
	}
	c.gen = o.gen
	return out
}

// keys lists the streams, stdout of the lowest rank first.
func (o *outputs) keys() []streamKey {
	out := make([]streamKey, 0, len(o.streams)) // the map does not change
	for k := range o.streams {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b streamKey) int {
		if a.rank != b.rank {
			return int(a.rank) - int(b.rank)
		}
		return a.fd - b.fd
	})
	return out
}

// generation returns the number of rewinds so far.
func (o *outputs) generation() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.gen
}
