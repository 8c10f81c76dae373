package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// collecting returns outputs of one rank that collect until the test ends.
func collecting(t *testing.T) *outputs {
	t.Helper()
	o, err := newOutputs(t.TempDir(), []job.Rank{0})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return o
}

func stdout() streamKey { return streamKey{0, 1} }

func reader(o *outputs, at int64) *cursor {
	return &cursor{gen: o.generation(), pos: map[streamKey]int64{stdout(): at}, eof: map[streamKey]bool{}}
}

// read follows a stream until it has n bytes beyond what it had, or the end.
func read(t *testing.T, o *outputs, c *cursor, n int) (string, []podapi.Output) {
	t.Helper()
	var b strings.Builder
	var all []podapi.Output
	for deadline := time.After(10 * time.Second); ; {
		frames, more, done, err := o.next(c)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, frames...)
		for _, f := range frames {
			b.Write(f.Data)
		}
		if b.Len() >= n || done {
			return b.String(), all
		}
		if len(frames) > 0 {
			continue
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("%d bytes of %d", b.Len(), n)
		}
	}
}

func TestOutputWithoutLoss(t *testing.T) {
	o := collecting(t)
	want := strings.Repeat("line of output\n", 50_000)
	go func() { _, _ = io.WriteString(o.rankEnd(0, 1), want) }()
	if got, _ := read(t, o, reader(o, 0), len(want)); got != want {
		t.Errorf("%d bytes of %d", len(got), len(want))
	}
	if got, _ := read(t, o, reader(o, 700_000), len(want)-700_000); got != want[700_000:] {
		t.Error("reading from the middle differs")
	}
	if _, err := io.WriteString(o.rankEnd(0, 1), "last"); err != nil {
		t.Fatal(err)
	}
	if err := o.ended(0); err != nil {
		t.Fatal(err)
	}
	c := reader(o, int64(len(want)))
	got, frames := read(t, o, c, 5)
	if got != "last" || !frames[len(frames)-1].EOF {
		t.Errorf("end of output: %q %+v", got, frames)
	}
}

// A reader that was ahead of a rollback is told, one that was not is not.
func TestRewind(t *testing.T) {
	o := collecting(t)
	w := o.rankEnd(0, 1)
	_, _ = io.WriteString(w, "kept.")
	at, err := o.drain()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, "undone")
	ahead, behind := reader(o, 0), reader(o, 0)
	if got, _ := read(t, o, ahead, 11); got != "kept.undone" {
		t.Fatalf("%q", got)
	}
	_, _ = io.WriteString(w, "in the pipe")
	if err := o.rewindTo(at); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, "anew")
	got, frames := read(t, o, ahead, 4)
	if got != "anew" || frames[0].Gen != 1 || frames[0].Offset != 5 || len(frames[0].Data) != 0 {
		t.Errorf("reader ahead: %q %+v", got, frames)
	}
	got, frames = read(t, o, behind, 9)
	if got != "kept.anew" || frames[0].Offset != 0 {
		t.Errorf("reader behind: %q %+v", got, frames)
	}
	// A reader that comes back with an old generation.
	late := &cursor{gen: 0, pos: map[streamKey]int64{stdout(): 8}, eof: map[streamKey]bool{}}
	if got, _ = read(t, o, late, 4); got != "anew" {
		t.Errorf("reader that comes back: %q", got)
	}
	if err := o.rewindTo(map[streamKey]int64{stdout(): 1000}); err == nil {
		t.Error("rewound to the future")
	}
}

func TestSeededOutput(t *testing.T) {
	o := collecting(t)
	if err := o.seed(stdout(), 100, []byte("tail")); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(o.rankEnd(0, 1), "+new")
	got, frames := read(t, o, reader(o, 0), 8)
	if got != "tail+new" || frames[0].Offset != 100 {
		t.Errorf("%q %+v", got, frames)
	}
}

// feeding returns a stdin whose reader is the returned file.
func feeding(t *testing.T) (*stdin, *os.File) {
	t.Helper()
	s, err := newStdin(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s, s.read
}

func take(t *testing.T, f *os.File, n int) string {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(f, b); err != nil {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	return string(b)
}

func give(t *testing.T, s *stdin, off int64, data string, eof bool) {
	t.Helper()
	if err := s.add(t.Context(), off, []byte(data), eof); err != nil {
		t.Fatal(err)
	}
}

func TestStdinOffsets(t *testing.T) {
	s, f := feeding(t)
	give(t, s, 0, "abc", false)
	give(t, s, 0, "abcdef", false) // sent again by a client that does not know
	var gap *errOffset
	if err := s.add(t.Context(), 10, []byte("x"), false); !errors.As(err, &gap) || gap.want != 6 {
		t.Errorf("gap: %v", err)
	}
	give(t, s, 6, "", true)
	if got := take(t, f, 6); got != "abcdef" {
		t.Errorf("%q", got)
	}
	if n, err := f.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("end: %d %v", n, err)
	}
	if err := s.add(t.Context(), 6, []byte("more"), false); err == nil {
		t.Error("input after its end was accepted")
	}
}

// A sender that is faster than the program waits.
func TestStdinFlowControl(t *testing.T) {
	s, f := feeding(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	block := bytes.Repeat([]byte("x"), 64<<10)
	var off int64
	var err error
	for err == nil && off < 64<<20 {
		if err = s.add(ctx, off, block, false); err == nil {
			off += int64(len(block))
		}
	}
	if !errors.Is(err, context.DeadlineExceeded) || off > maxAhead+256<<10 {
		t.Fatalf("%d bytes taken: %v", off, err)
	}
	take(t, f, 512<<10)
	give(t, s, off, "y", false)
}

// A rollback reads the input again, also after its end was seen.
func TestStdinRollback(t *testing.T) {
	s, f := feeding(t)
	give(t, s, 0, "0123456789", false)
	take(t, f, 4)
	s.pause()
	st, err := s.state()
	if err != nil || st.Consumed != 4 || string(st.Unread) != "456789" {
		t.Fatalf("state %+v %v", st, err)
	}
	s.resume()
	give(t, s, 10, "abc", true)
	if got := take(t, f, 9); got != "456789abc" {
		t.Fatalf("%q", got)
	}
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	s.pause()
	if err := s.restore(st); err != nil {
		t.Fatal(err)
	}
	s.resume()
	if got := take(t, f, 9); got != "456789abc" {
		t.Errorf("again: %q", got)
	}
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("end again: %v", err)
	}
	// A rebuilt pod has only what the image holds.
	o, g := feeding(t)
	o.pause()
	if err := o.restore(st); err != nil {
		t.Fatal(err)
	}
	o.resume()
	if o.offset() != 10 {
		t.Errorf("the sender goes on at %d", o.offset())
	}
	give(t, o, 10, "abc", true)
	if got := take(t, g, 9); got != "456789abc" {
		t.Errorf("rebuilt: %q", got)
	}
}

// A rebuilt pod whose rank had read nothing at the epoch has what came by then,
// and the end: the sender, who was told that both are safe, has forgotten them.
func TestStdinRebuiltUnread(t *testing.T) {
	for name, data := range map[string]string{"unread input": "0123456789", "no input at all": ""} {
		t.Run(name, func(t *testing.T) {
			s, _ := feeding(t)
			give(t, s, 0, data, true)
			s.pause()
			st, err := s.state()
			if err != nil || st.Consumed != 0 || string(st.Unread) != data || !st.EOF {
				t.Fatalf("state %+v %v", st, err)
			}
			o, f := feeding(t)
			o.pause()
			if err := o.restore(st); err != nil {
				t.Fatal(err)
			}
			o.resume()
			if o.offset() != int64(len(data)) {
				t.Errorf("the sender goes on at %d, want %d", o.offset(), len(data))
			}
			got := make(chan string, 1)
			go func() {
				b, _ := io.ReadAll(f) // ends with the pod
				got <- string(b)
			}()
			select {
			case b := <-got:
				if b != data {
					t.Errorf("%q, want %q", b, data)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the rank waits for its input")
			}
		})
	}
}

// The sender keeps what a recovery to the epoch before the newest would want
// again.
func TestStdinSafe(t *testing.T) {
	s, f := feeding(t)
	want := func(when string, open *stdinState, offset, safe int64, eof bool) {
		t.Helper()
		if got := s.taken(open); got != (podapi.StdinTaken{Offset: offset, Safe: safe, SafeEOF: eof}) {
			t.Errorf("%s: %+v", when, got)
		}
	}
	epoch := func() *stdinState {
		t.Helper()
		s.pause()
		defer s.resume()
		st, err := s.state()
		if err != nil {
			t.Fatal(err)
		}
		return &st
	}
	commit := func(st *stdinState) {
		t.Helper()
		if err := s.committed(st); err != nil {
			t.Fatal(err)
		}
	}
	give(t, s, 0, "0123", false)
	want("no epoch", nil, 4, 4, false)
	s.pause()
	want("a round that is about to take the state", nil, 4, 0, false)
	s.resume()
	first := epoch()
	give(t, s, 4, "45", false)
	want("an open round", first, 6, 4, false)
	want("an abandoned round", nil, 6, 6, false)
	commit(first)
	want("one epoch", nil, 6, 4, false)
	take(t, f, 5)
	second := epoch()
	give(t, s, 6, "6", true)
	commit(second)
	want("two epochs", nil, 7, 4, false)
	third := epoch()
	commit(third)
	want("three epochs", nil, 7, 6, false)
	commit(epoch())
	want("all of it is old", nil, 7, 7, true)
}

func TestRecords(t *testing.T) {
	path := t.TempDir() + "/" + exitsFile
	b := newExitBook(path)
	if err := errors.Join(b.add(job.Exit{Rank: 1, Code: 3}), b.add(job.Exit{Rank: 0, Signal: 9})); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if want := `[{"rank":0,"code":0,"signal":9},{"rank":1,"code":3,"signal":0}]`; err != nil || string(raw) != want {
		t.Errorf("%s %v", raw, err)
	}
	if err := b.reset(nil); err != nil || len(b.all()) != 0 {
		t.Error(err)
	}
}

func TestEventsFollow(t *testing.T) {
	l := newEventLog(1)
	l.add(podapi.Event{Kind: evStarted})
	go func() { l.setIncarnation(2); l.add(podapi.Event{Kind: evExit}) }()
	var kinds []string
	for seq := uint64(1); seq < 3; {
		got, err := l.from(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range got {
			kinds = append(kinds, fmt.Sprint(e.Seq, e.Kind, e.Incarnation))
			seq = e.Seq + 1
		}
	}
	if got := strings.Join(kinds, " "); got != "1started1 2exit2" {
		t.Error(got)
	}
}
