package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/pid1"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// maxAhead bounds what stdin takes beyond what the pipe has: the sender waits.
const maxAhead = 1 << 20

// stdin feeds rank 0. What it was given is kept in a file from the newest
// committed epoch on, because a rollback reads it again. Safe for concurrent
// use.
//
//	0 ... base ... consumed ... written ... received
//	      kept from here       in the pipe   to come
type stdin struct {
	mu       sync.Mutex // guards below
	cond     *sync.Cond // signalled when anything changes
	file     *os.File
	base     int64 // offset of the file's first byte
	received int64 // end of what the sender gave
	written  int64 // end of what went into the pipe
	eof      bool  // nothing follows received
	shut     bool  // the write end is closed: the rank sees end of file
	closed   bool
	paused   bool
	newest   *stdinMark // at the newest committed epoch, nil before the first
	older    *stdinMark // at the one before it
	read     *os.File   // what rank 0 inherits; kept to empty the pipe
	write    *os.File   // non-blocking
	raw      syscall.RawConn
}

func newStdin(dir string) (*stdin, error) {
	f, err := os.OpenFile(filepath.Join(dir, stdinFile), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("stdin: %w", err)
	}
	s := &stdin{file: f}
	s.cond = sync.NewCond(&s.mu)
	s.read, s.write, err = newPipe(false, true)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("stdin: %w", err), f.Close())
	}
	s.raw, err = s.write.SyscallConn()
	return s, err
}

// stdinMark is how far the input had come at an epoch: a recovery to that epoch
// asks for what follows.
type stdinMark struct {
	end int64
	eof bool
}

// errStdinClosed says that the pod ends.
var errStdinClosed = errors.New("stdin: the pod is being ended")

// errOffset says that bytes were sent for another place than the next one.
type errOffset struct{ want int64 }

// Error implements error.
func (e *errOffset) Error() string {
	return fmt.Sprintf("stdin: offset %d is next", e.want)
}

// add takes data at offset off. What was given before is skipped. It waits
// while too much is on its way.
//
// Expected errors: *errOffset for a gap; ctx.Err().
func (s *stdin) add(ctx context.Context, off int64, data []byte, eof bool) error {
	stop := context.AfterFunc(ctx, func() { s.mu.Lock(); defer s.mu.Unlock(); s.cond.Broadcast() })
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.received-s.written > maxAhead && ctx.Err() == nil && !s.closed {
		s.cond.Wait()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s.closed {
		return errStdinClosed
	}
	if off > s.received {
		return &errOffset{s.received}
	}
	skip := min(s.received-off, int64(len(data)))
	data = data[skip:]
	if len(data) > 0 && s.eof {
		return &errOffset{s.received}
	}
	if _, err := s.file.WriteAt(data, s.received-s.base); err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	s.received += int64(len(data))
	s.eof = s.eof || eof
	s.cond.Broadcast()
	return nil
}

// run feeds the pipe until ctx ends.
func (s *stdin) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	for s.feed() {
	}
	return ctx.Err()
}

// close ends the feeding. The files are closed without the lock: Close waits
// for a feeder that is about to take it.
func (s *stdin) close() {
	s.mu.Lock()
	s.closed = true
	write := s.write
	s.cond.Broadcast()
	s.mu.Unlock()
	_ = write.Close() // the pod ends
	_ = s.read.Close()
}

// feed waits for something to do and does one piece of it; false: closed.
func (s *stdin) feed() bool {
	s.mu.Lock()
	for !s.closed && (s.paused || s.shut || s.written == s.received && !s.eof) {
		s.cond.Wait()
	}
	if s.closed {
		s.mu.Unlock()
		return false
	}
	if s.written == s.received {
		s.shut = true
		_ = s.write.Close() // the rank reads end of file
		s.mu.Unlock()
		return true
	}
	raw := s.raw
	s.mu.Unlock()
	// A rollback may replace the write end meanwhile: an error then only means
	// to look again.
	_ = raw.Write(func(uintptr) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed || s.paused || s.raw != raw {
			return true
		}
		err := s.push()
		return !errors.Is(err, unix.EAGAIN)
	})
	return true
}

// push writes one piece into the pipe. Precondition: mu is held.
func (s *stdin) push() error {
	buf := make([]byte, min(s.received-s.written, 4096)) // up to PIPE_BUF: whole or not at all
	if len(buf) == 0 {
		return nil
	}
	if _, err := s.file.ReadAt(buf, s.written-s.base); err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	var n int
	var err error
	if cerr := s.raw.Control(func(fd uintptr) { n, err = unix.Write(int(fd), buf) }); cerr != nil {
		return cerr
	}
	if n > 0 {
		s.written += int64(n)
		s.cond.Broadcast()
	}
	return err
}

// stdinState is where rank 0 is in its input, with the bytes that it has not
// read yet: part of a checkpoint.
type stdinState struct {
	Rank     job.Rank `json:"rank,omitempty"` // that reads it
	Consumed int64    `json:"consumed"`
	Unread   []byte   `json:"unread,omitempty"` // from Consumed on
	EOF      bool     `json:"eof,omitempty"`    // nothing follows Unread
}

// pause stops the feeding; state and restore need it.
func (s *stdin) pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = true
}

func (s *stdin) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = false
	s.cond.Broadcast()
}

// state returns the place of rank 0. Precondition: paused, rank 0 is frozen.
func (s *stdin) state() (stdinState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := unix.IoctlGetInt(pid1.FD(s.read), unix.TIOCINQ)
	if err != nil {
		return stdinState{}, fmt.Errorf("stdin: FIONREAD: %w", err)
	}
	st := stdinState{Consumed: s.written - int64(n), EOF: s.eof}
	st.Unread = make([]byte, s.received-st.Consumed)
	if _, err := s.file.ReadAt(st.Unread, st.Consumed-s.base); err != nil && len(st.Unread) > 0 {
		return stdinState{}, fmt.Errorf("stdin: %w", err)
	}
	return st, nil
}

// restore sets rank 0 back to a state: the pipe is emptied and fed again from
// there. What was received after the epoch is kept if it is at hand (a
// rollback); in a rebuilt pod the sender gives it again.
// Precondition: paused, rank 0 is frozen or gone.
func (s *stdin) restore(st stdinState) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.emptyPipe(); err != nil {
		return err
	}
	end := st.Consumed + int64(len(st.Unread))
	if st.Consumed < s.base || end > s.received || st.EOF && !s.eof { // not at hand: a rebuilt pod
		if _, err := s.file.WriteAt(st.Unread, 0); err != nil {
			return fmt.Errorf("stdin: %w", err)
		}
		s.base, s.received, s.eof = st.Consumed, end, st.EOF
		s.newest, s.older = st.mark(), &stdinMark{} // what the epoch before had is not known here
	}
	s.written = st.Consumed
	if s.shut {
		return s.reopen()
	}
	return nil
}

// emptyPipe discards what rank 0 has not read. Precondition: mu is held.
func (s *stdin) emptyPipe() error {
	fd := pid1.FD(s.read)
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		if err != nil {
			return fmt.Errorf("stdin: FIONREAD: %w", err)
		}
		if n == 0 {
			return nil
		}
		if _, err := unix.Read(fd, buf[:min(n, len(buf))]); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("stdin: empty the pipe: %w", err)
		}
	}
}

// reopen makes a new write end of the same pipe, after end of file was given.
// Precondition: mu is held.
func (s *stdin) reopen() error {
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", pid1.FD(s.read)), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("stdin: open the pipe again: %w", err)
	}
	raw, err := w.SyscallConn()
	if err != nil {
		return errors.Join(fmt.Errorf("stdin: %w", err), w.Close())
	}
	s.write, s.raw, s.shut = w, raw, false
	return nil
}

// mark is how far the input had come at st.
func (st *stdinState) mark() *stdinMark {
	return &stdinMark{end: st.Consumed + int64(len(st.Unread)), eof: st.EOF}
}

// taken says how far the input has come, and what the sender may forget: what
// the epoch before the newest has, for a recovery may have to return to that
// one. open is the state in a round that is not committed yet, if there is one.
func (s *stdin) taken(open *stdinState) podapi.StdinTaken {
	s.mu.Lock()
	defer s.mu.Unlock()
	safe := &stdinMark{end: s.received, eof: s.eof} // without a checkpoint nothing is ever read again
	switch {
	case s.older != nil:
		safe = s.older
	case s.newest != nil:
		safe = s.newest
	case open != nil:
		safe = open.mark()
	case s.paused: // a round is taking the state: what it has is not known yet
		safe = &stdinMark{}
	}
	return podapi.StdinTaken{Offset: s.received, Safe: safe.end, SafeEOF: safe.eof}
}

// committed takes the state at a committed epoch, and forgets what no rollback
// will read again.
func (s *stdin) committed(st *stdinState) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.older, s.newest = s.newest, st.mark()
	consumed := st.Consumed
	if consumed <= s.base {
		return nil
	}
	err := unix.Fallocate(pid1.FD(s.file), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, consumed-s.base)
	if errors.Is(err, unix.EOPNOTSUPP) { // keeps more than it must
		return nil
	}
	return err
}

// offset is where the sender goes on.
func (s *stdin) offset() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received
}
