package mpirun

import (
	"bytes"
	"fmt"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// windowBytes is how much of each stream is remembered for comparison with
// what a rollback produces again. A stream keeps up to twice as much; what is
// older is taken to be equal.
const windowBytes = 1 << 20

// sink is where the streams of one descriptor go. Calls come from one
// goroutine at a time.
type sink interface {
	// write takes the bytes of rank's stream at offset, which is where the last
	// write of rank ended or rewind went to. data is the caller's again
	// afterwards.
	write(rank job.Rank, offset int64, data []byte) error
	// rewind forgets what was written from offset `to` on, the start of a line.
	// It returns whether the reader has seen any of it.
	rewind(rank job.Rank, to int64) (seen bool, err error)
	// end says that nothing follows at offset for now. A rollback may change
	// that.
	end(rank job.Rank, offset int64) error
}

// replay passes on what the reader has not seen yet. The server repeats bytes
// after a lost connection, and the program does so after a rollback: what is
// equal to what was delivered is dropped, from the first line that differs it
// is delivered again, under a notice. It is not safe for concurrent use.
type replay struct {
	sinks   [3]sink // by descriptor, 1 and 2
	streams map[control.Stream]*stream
	notice  func(string)
}

// stream is one output stream of one rank.
type stream struct {
	next   int64  // offset of the byte that the server sends next
	end    int64  // everything below was delivered
	window []byte // the delivered bytes [end-len(window), end)
}

func newReplay(stdout, stderr sink, notice func(string)) *replay {
	return &replay{sinks: [3]sink{1: stdout, 2: stderr}, streams: make(map[control.Stream]*stream), notice: notice}
}

// resume starts at a position that an earlier client reached.
func (r *replay) resume(c control.Cursor) {
	for s, offset := range c {
		r.streams[s] = &stream{next: offset, end: offset}
	}
}

// cursor is where a new connection should start: as far back as there is
// something to compare with, for the job may have been rolled back meanwhile.
func (r *replay) cursor() control.Cursor {
	c := make(control.Cursor, len(r.streams))
	for name, s := range r.streams {
		c[name] = s.end - int64(len(s.window))
	}
	return c
}

// take handles one frame.
//
// Expected errors: a malformed frame; those of the sinks.
func (r *replay) take(o podapi.Output) error {
	if o.FD < 1 || o.FD > 2 || o.Rank < 0 || o.Offset < 0 {
		return fmt.Errorf("output of rank %d, descriptor %d at %d: malformed", o.Rank, o.FD, o.Offset)
	}
	name := control.Stream{Rank: o.Rank, FD: o.FD}
	s := r.streams[name]
	if s == nil {
		s = &stream{}
		r.streams[name] = s
	}
	if o.Offset > s.end {
		if s.end == 0 {
			r.notice(fmt.Sprintf("%s: the first %d bytes are not kept any more", describe(name), o.Offset))
		} else {
			r.notice(fmt.Sprintf("%s: %d bytes are missing here", describe(name), o.Offset-s.end))
		}
		s.end, s.window = o.Offset, nil
	}
	s.next = o.Offset
	fresh, err := r.compare(name, s, o.Data)
	if err != nil {
		return err
	}
	if len(fresh) > 0 {
		if err := r.sinks[o.FD].write(o.Rank, s.end, fresh); err != nil {
			return err
		}
		s.deliver(fresh)
	}
	if o.EOF {
		return r.sinks[o.FD].end(o.Rank, s.end)
	}
	return nil
}

// compare returns the part of data to deliver at s.end: all but what was
// delivered before.
func (r *replay) compare(name control.Stream, s *stream, data []byte) ([]byte, error) {
	start := s.end - int64(len(s.window))
	if skip := min(start-s.next, int64(len(data))); skip > 0 {
		s.next += skip // older than the window
		data = data[skip:]
	}
	if s.next >= s.end || len(data) == 0 {
		return data, nil
	}
	known := s.window[s.next-start:]
	n := min(len(known), len(data))
	same := 0
	for same < n && known[same] == data[same] {
		same++
	}
	if same == n {
		s.next += int64(n)
		return data[n:], nil
	}
	return r.diverge(name, s, int(s.next-start)+same, data[same:])
}

// diverge goes back to the start of the line in which window[at] differs from
// what comes now, rest, and returns that line's beginning with rest.
func (r *replay) diverge(name control.Stream, s *stream, at int, rest []byte) ([]byte, error) {
	from := bytes.LastIndexByte(s.window[:at], '\n') + 1
	fresh := append(bytes.Clone(s.window[from:at]), rest...)
	dropped := len(s.window) - from
	s.end -= int64(dropped)
	s.window = s.window[:from]
	s.next = s.end
	seen, err := r.sinks[name.FD].rewind(name.Rank, s.end)
	if err != nil {
		return nil, err
	}
	if seen {
		r.notice(fmt.Sprintf("%s: rolled back; %d bytes differ from those printed and follow again", describe(name), dropped))
	}
	return fresh, nil
}

func (s *stream) deliver(data []byte) {
	s.window = append(s.window, data...)
	if len(s.window) > 2*windowBytes {
		s.window = append([]byte(nil), s.window[len(s.window)-windowBytes:]...)
	}
	s.end += int64(len(data))
	s.next = s.end
}

func describe(s control.Stream) string {
	if s.FD == 2 {
		return fmt.Sprintf("rank %d, stderr", s.Rank)
	}
	return fmt.Sprintf("rank %d", s.Rank)
}
