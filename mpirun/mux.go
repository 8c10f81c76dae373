package mpirun

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/lampause/lampause/job"
)

// Limits of mux.
const (
	// heldBytes is how much of a line without an end is held back before the
	// line is begun all the same; other ranks then wait for its end.
	heldBytes = 64 << 10
	// waitingBytes is how much another rank may gather while it waits; then the
	// long line is broken.
	waitingBytes = 1 << 20
	// partialAfter is when an unfinished line, such as a prompt, is shown on a
	// terminal.
	partialAfter = 100 * time.Millisecond
	// breakAfter is how long an unfinished line on a terminal keeps complete
	// lines of other ranks waiting.
	breakAfter = time.Second
)

// mux merges the streams of many ranks into one writer, whole lines at a time.
// A line is written when it is complete or its stream ends; on a terminal an
// unfinished one is shown after a moment. It is safe for concurrent use.
type mux struct {
	w        io.Writer
	label    bool
	terminal bool
	reached  func(rank job.Rank, offset int64) // everything below offset is written

	mu      sync.Mutex
	streams map[job.Rank]*held
	open    *held     // whose unfinished line is the writer's last
	since   time.Time // of the last byte of open
	timer   *time.Timer
	err     error
	closed  bool
}

// held is what mux has of one stream and has not written: buf starts at
// offset at.
type held struct {
	rank  job.Rank
	at    int64
	buf   []byte
	begun bool // the line that buf continues was begun
}

// newMux writes to w. With label, every line begins with its rank. terminal
// says that somebody watches w. reached may be nil.
func newMux(w io.Writer, label, terminal bool, reached func(job.Rank, int64)) *mux {
	if reached == nil {
		reached = func(job.Rank, int64) {}
	}
	return &mux{w: w, label: label, terminal: terminal, reached: reached, streams: make(map[job.Rank]*held)}
}

func (m *mux) stream(rank job.Rank, offset int64) *held {
	h := m.streams[rank]
	if h == nil {
		h = &held{rank: rank, at: offset}
		m.streams[rank] = h
	}
	return h
}

// write implements sink.
func (m *mux) write(rank job.Rank, offset int64, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.stream(rank, offset)
	if len(h.buf) == 0 {
		h.at = offset
	}
	h.buf = append(h.buf, data...)
	switch {
	case m.open != nil && m.open != h && len(h.buf) > waitingBytes:
		m.breakLine()
		m.drain()
	case m.open == nil || m.open == h:
		m.drain()
	}
	if m.open == nil && len(h.buf) > heldBytes {
		m.emit(h, len(h.buf))
	}
	m.arm()
	return m.err
}

// rewind implements sink.
func (m *mux) rewind(rank job.Rank, to int64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.stream(rank, to)
	if to >= h.at { // what follows was only held
		h.buf = h.buf[:min(int64(len(h.buf)), to-h.at)]
		return false, m.err
	}
	if m.open == h {
		m.breakLine()
	}
	h.at, h.buf, h.begun = to, h.buf[:0], false
	return true, m.err
}

// end implements sink.
func (m *mux) end(rank job.Rank, _ int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.streams[rank]
	if h == nil {
		return m.err
	}
	if len(h.buf) > 0 {
		if m.open != nil && m.open != h {
			m.breakLine()
		}
		m.emit(h, len(h.buf))
	}
	if m.open == h {
		m.open = nil // its line stays as the program left it
		h.begun = false
		m.drain()
	}
	return m.err
}

// close writes everything that is still held, a rank's line at a time, and
// stops the timer.
func (m *mux) close() error {
	m.mu.Lock()
	ranks := m.ranks()
	m.closed = true
	if m.timer != nil {
		m.timer.Stop()
	}
	m.mu.Unlock()
	for _, r := range ranks {
		_ = m.end(r, 0) // m.err keeps it
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// fresh makes sure that the next byte written by others to the same terminal
// begins a line. It is for notices.
func (m *mux) fresh() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.open != nil && m.terminal {
		m.breakLine()
	}
}

func (m *mux) ranks() []job.Rank {
	ranks := make([]job.Rank, 0, len(m.streams))
	for r := range m.streams {
		ranks = append(ranks, r)
	}
	slices.Sort(ranks)
	return ranks
}

// drain writes the complete lines of the open stream, and once that has none,
// those of all others.
func (m *mux) drain() {
	if m.open != nil {
		h := m.open
		m.emit(h, completeLines(h.buf))
		if m.open != nil {
			if len(h.buf) > 0 { // the line goes on
				m.emit(h, len(h.buf))
			}
			return
		}
	}
	for _, r := range m.ranks() {
		h := m.streams[r]
		m.emit(h, completeLines(h.buf))
	}
}

// completeLines is the length of b up to the end of its last line.
func completeLines(b []byte) int { return bytes.LastIndexByte(b, '\n') + 1 }

// emit writes the first n bytes of h. The caller made sure that no other
// stream's line is open.
func (m *mux) emit(h *held, n int) {
	if n == 0 || m.err != nil {
		return
	}
	out := h.buf[:n]
	if m.label {
		out = labelled(h.rank, out, h.begun)
	}
	if _, err := m.w.Write(out); err != nil {
		m.err = fmt.Errorf("write output: %w", err)
		return
	}
	h.begun = h.buf[n-1] != '\n'
	h.at += int64(n)
	h.buf = append(h.buf[:0], h.buf[n:]...)
	m.open = nil
	if h.begun {
		m.open, m.since = h, time.Now()
	}
	m.reached(h.rank, h.at)
}

// labelled puts "[RANK] " in front of each line of b; begun says that b
// continues a line.
func labelled(rank job.Rank, b []byte, begun bool) []byte {
	prefix := fmt.Sprintf("[%d] ", rank)
	var out []byte
	for line := range bytes.Lines(b) {
		if !begun {
			out = append(out, prefix...)
		}
		begun = false
		out = append(out, line...)
	}
	return out
}

// breakLine ends the open line, so that others can go on.
func (m *mux) breakLine() {
	if m.err != nil {
		return
	}
	if _, err := m.w.Write([]byte{'\n'}); err != nil {
		m.err = fmt.Errorf("write output: %w", err)
	}
	m.open.begun = false
	m.open = nil
}

// arm starts the timer when something is held that a terminal should show.
func (m *mux) arm() {
	if !m.terminal || m.closed || !m.waiting() {
		return
	}
	if m.timer == nil {
		m.timer = time.AfterFunc(partialAfter, m.expire)
		return
	}
	m.timer.Reset(partialAfter)
}

func (m *mux) waiting() bool {
	for _, h := range m.streams {
		if len(h.buf) > 0 {
			return true
		}
	}
	return false
}

// expire shows one unfinished line, or breaks it when others have waited for
// long.
func (m *mux) expire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	if m.open != nil && time.Since(m.since) >= breakAfter {
		m.breakLine()
		m.drain()
	}
	for _, r := range m.ranks() {
		if h := m.streams[r]; m.open == nil && len(h.buf) > 0 {
			m.emit(h, len(h.buf))
		}
	}
	m.arm()
}
