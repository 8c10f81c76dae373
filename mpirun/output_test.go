package mpirun

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// reader is the far end of a test: what was printed, and the notices.
type reader struct {
	out, err bytes.Buffer
	notices  []string
	stdout   *mux
	replay   *replay
}

func newReader(label bool) *reader {
	r := &reader{}
	r.stdout = newMux(&r.out, label, false, nil)
	r.replay = newReplay(r.stdout, newMux(&r.err, label, false, nil), func(s string) { r.notices = append(r.notices, s) })
	return r
}

func (r *reader) take(t *testing.T, frames ...podapi.Output) {
	t.Helper()
	for _, f := range frames {
		if err := r.replay.take(f); err != nil {
			t.Fatal(err)
		}
	}
}

func frame(rank, offset int, text string) podapi.Output {
	return podapi.Output{Rank: job.Rank(rank), FD: 1, Offset: int64(offset), Data: []byte(text)}
}

func TestLinesOfRanksAreNotMixed(t *testing.T) {
	r := newReader(false)
	r.take(t, frame(0, 0, "zero "), frame(1, 0, "one\nun"), frame(0, 5, "null\n"), frame(1, 6, "o\n"))
	if r.out.String() != "one\nzero null\nuno\n" {
		t.Errorf("%q", r.out.String())
	}
}

func TestLabels(t *testing.T) {
	r := newReader(true)
	r.take(t, frame(0, 0, "a\nb"), frame(12, 0, "x\n\ny\n"), podapi.Output{Rank: 0, FD: 1, Offset: 3, EOF: true})
	if want := "[0] a\n[12] x\n[12] \n[12] y\n[0] b"; r.out.String() != want {
		t.Errorf("%q", r.out.String())
	}
}

func TestRepeatedBytesAreDropped(t *testing.T) {
	r := newReader(false)
	r.take(t, frame(0, 0, "one\ntwo\n"), frame(0, 4, "two\nthree\n"), frame(0, 0, "one\n"), frame(0, 4, "two\nthree\nfour\n"))
	if r.out.String() != "one\ntwo\nthree\nfour\n" || len(r.notices) != 0 {
		t.Errorf("%q, notices %q", r.out.String(), r.notices)
	}
}

func TestDifferentLineIsPrintedAgainUnderANotice(t *testing.T) {
	r := newReader(false)
	r.take(t, frame(0, 0, "step 1\ntime 17\nstep 2\n"), frame(0, 7, "time 18\nstep"), frame(0, 19, " 2\nstep 3\n"))
	if want := "step 1\ntime 17\nstep 2\ntime 18\nstep 2\nstep 3\n"; r.out.String() != want {
		t.Errorf("%q", r.out.String())
	}
	if want := []string{"rank 0: rolled back; 15 bytes differ from those printed and follow again"}; !slices.Equal(r.notices, want) {
		t.Errorf("%q", r.notices)
	}
}

func TestDifferenceInAHeldLineNeedsNoNotice(t *testing.T) {
	r := newReader(false)
	r.take(t, frame(0, 0, "step 1\ntime 1"), frame(0, 7, "time 2\n"))
	if r.out.String() != "step 1\ntime 2\n" || len(r.notices) != 0 {
		t.Errorf("%q, %q", r.out.String(), r.notices)
	}
}

func TestGapIsReported(t *testing.T) {
	r := newReader(false)
	r.take(t, frame(3, 0, "a\n"), frame(3, 10, "b\n"))
	if r.out.String() != "a\nb\n" || !slices.Equal(r.notices, []string{"rank 3: 8 bytes are missing here"}) {
		t.Errorf("%q, %q", r.out.String(), r.notices)
	}
}

func TestMalformedFrames(t *testing.T) {
	for _, f := range []podapi.Output{{FD: 0}, {FD: 3}, {FD: 1, Rank: -1}, {FD: 2, Offset: -1}} {
		if err := newReader(false).replay.take(f); err == nil {
			t.Errorf("%+v was accepted", f)
		}
	}
}

func TestOldOutputIsTakenToBeEqual(t *testing.T) {
	r := newReader(false)
	line := strings.Repeat("x", 1023) + "\n"
	big := strings.Repeat(line, 3*windowBytes/len(line))
	r.take(t, frame(0, 0, big))
	before := r.out.Len()
	r.take(t, frame(0, 0, strings.ReplaceAll(big[:windowBytes/2], "x", "y")), frame(0, windowBytes/2, big[windowBytes/2:]), frame(0, len(big), "end\n"))
	if r.out.Len() != before+4 || len(r.notices) != 0 {
		t.Errorf("%d bytes more, notices %q", r.out.Len()-before, r.notices)
	}
	if c := r.replay.cursor()[control.Stream{Rank: 0, FD: 1}]; c <= 0 || c > int64(len(big)) {
		t.Errorf("cursor %d", c)
	}
}

// TestReplayProperty: whatever is rolled back, re-cut and repeated, the reader
// sees the deterministic program's output exactly once, whole lines only.
func TestReplayProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newReader(false)
		ranks := rapid.IntRange(1, 3).Draw(rt, "ranks")
		texts := make([]string, ranks)
		at := make([]int, ranks)
		for i := range texts {
			for l := range rapid.IntRange(0, 8).Draw(rt, "lines") {
				texts[i] += fmt.Sprintf("%d:%d%s\n", i, l, strings.Repeat("z", rapid.IntRange(0, 5).Draw(rt, "len")))
			}
		}
		for range rapid.IntRange(0, 40).Draw(rt, "frames") {
			i := rapid.IntRange(0, ranks-1).Draw(rt, "rank")
			if rapid.IntRange(0, 4).Draw(rt, "back") == 0 {
				at[i] = rapid.IntRange(0, at[i]).Draw(rt, "to")
			}
			n := rapid.IntRange(0, len(texts[i])-at[i]).Draw(rt, "n")
			if err := r.replay.take(frame(i, at[i], texts[i][at[i]:at[i]+n])); err != nil {
				rt.Fatal(err)
			}
			at[i] += n
		}
		for i := range texts {
			if err := r.replay.take(frame(i, at[i], texts[i][at[i]:])); err != nil {
				rt.Fatal(err)
			}
		}
		got := make([]string, ranks)
		for line := range strings.Lines(r.out.String()) {
			i := int(line[0] - '0')
			got[i] += line
		}
		if !slices.Equal(got, texts) || len(r.notices) > 0 {
			rt.Fatalf("got %q, want %q, notices %q", got, texts, r.notices)
		}
	})
}

func TestVeryLongLineIsKeptTogether(t *testing.T) {
	r := newReader(true)
	long := strings.Repeat("x", heldBytes+1)
	r.take(t, frame(0, 0, long), frame(1, 0, "other\n"), frame(0, len(long), "end\n"))
	if want := "[0] " + long + "end\n[1] other\n"; r.out.String() != want {
		t.Errorf("%d bytes, ending in %q", r.out.Len(), r.out.String()[r.out.Len()-30:])
	}
}

func TestEndlessLineIsBrokenWhenOthersHaveMuch(t *testing.T) {
	r := newReader(false)
	long, lines := strings.Repeat("x", heldBytes+1), strings.Repeat("line\n", waitingBytes/5+1)
	r.take(t, frame(0, 0, long), frame(1, 0, lines))
	if want := long + "\n" + lines; r.out.String() != want {
		t.Errorf("%d bytes, want %d", r.out.Len(), len(want))
	}
}

func TestPromptAppearsOnATerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out buffer
		m := newMux(&out, false, true, nil)
		write := func(rank, offset int, text string) {
			t.Helper()
			if err := m.write(job.Rank(rank), int64(offset), []byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		write(0, 0, "name? ")
		if out.String() != "" {
			t.Error("an unfinished line was printed at once")
		}
		time.Sleep(2 * partialAfter)
		synctest.Wait()
		if out.String() != "name? " {
			t.Fatalf("%q", out.String())
		}
		write(1, 0, "waits\n")
		time.Sleep(breakAfter / 2)
		synctest.Wait()
		if out.String() != "name? " {
			t.Fatalf("mixed: %q", out.String())
		}
		time.Sleep(breakAfter)
		synctest.Wait()
		if out.String() != "name? \nwaits\n" {
			t.Fatalf("%q", out.String())
		}
		write(0, 6, "again")
		if err := m.close(); err != nil || out.String() != "name? \nwaits\nagain" {
			t.Errorf("%q, %v", out.String(), err)
		}
	})
}

// buffer is a bytes.Buffer for concurrent use.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestWriteErrorIsKept(t *testing.T) {
	full := errors.New("no space")
	m := newMux(brokenWriter{full}, false, false, nil)
	if err := m.write(0, 0, []byte("x\n")); !errors.Is(err, full) {
		t.Error(err)
	}
	if err := m.close(); !errors.Is(err, full) {
		t.Error(err)
	}
}

func TestFilesHoldExactlyTheOutput(t *testing.T) {
	name := filepath.Join(t.TempDir(), "run")
	if err := os.WriteFile(name+".0.out", []byte("of an earlier job, longer than all of this"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs := newFiles(name, "out", nil), newFiles(name, "err", nil)
	r := newReplay(out, errs, func(s string) { t.Errorf("notice %q", s) })
	for _, f := range []podapi.Output{
		frame(0, 0, "step 1\ntime 17\nstep 2\n"), frame(0, 7, "time 9\nstep 2\n"),
		{Rank: 1, FD: 2, Data: []byte("oops")},
		{Rank: 0, FD: 2, EOF: true},
	} {
		if err := r.take(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(out.close(), errs.close()); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"0.out": "step 1\ntime 9\nstep 2\n", "1.err": "oops", "0.err": ""} {
		got, err := os.ReadFile(name + "." + file)
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
}

func TestPositionsOutliveTheClient(t *testing.T) {
	path := positionsPath(paths.Dirs{Runtime: t.TempDir()}, 7)
	p := openPositions(path)
	m := newMux(&bytes.Buffer{}, false, false, p.reached(1))
	for rank := range 3 {
		if err := m.write(job.Rank(rank), 0, []byte("line\nheld")); err != nil {
			t.Fatal(err)
		}
	}
	p.close(false) // killed: nothing is flushed
	p = openPositions(path)
	c, err := p.load()
	if err != nil || c.String() != "0.1:5,1.1:5,2.1:5" {
		t.Errorf("%q, %v", c.String(), err)
	}
	p.close(true)
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
	none := openPositions("/proc/nowhere/x.pos")
	none.reached(1)(0, 5)
	if c, err := none.load(); err != nil || len(c) != 0 {
		t.Errorf("%v, %v", c, err)
	}
	none.close(true)
}
