package pod

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/pid1"
)

// chatter writes n megabytes as rank 0, each of one letter, and waits until all
// is collected.
func chatter(t *testing.T, o *outputs, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		if _, err := o.rankEnd(0, 1).Write(bytes.Repeat([]byte{'a' + byte(i%26)}, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.drain(); err != nil {
		t.Fatal(err)
	}
}

// kept is the lowest offset kept of stdout, in megabytes, and the space that its
// file takes.
func kept(t *testing.T, o *outputs) (low int64, space int64) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.streams[stdout()]
	var st unix.Stat_t
	if err := unix.Fstat(pid1.FD(s.file), &st); err != nil {
		t.Fatal(err)
	}
	return s.low >> 20, st.Blocks * 512 >> 20
}

// What was read and cannot be taken back is given up, but for the newest part.
func TestOutputThatIsNotKept(t *testing.T) {
	const keep = spoolKeep >> 20
	o := collecting(t)
	chatter(t, o, 0, 2*keep)
	if low, _ := kept(t, o); low != 0 {
		t.Fatalf("nobody read, and %d MB are gone", low)
	}
	c := reader(o, 0)
	leave := o.follow(c)
	read(t, o, c, 2*keep<<20)
	if low, space := kept(t, o); low != keep || space > keep+2 {
		t.Fatalf("without a checkpoint: kept from %d MB on, want %d; %d MB on disk", low, keep, space)
	}
	at, err := o.drain()
	if err != nil {
		t.Fatal(err)
	}
	o.cover(at)
	chatter(t, o, 2*keep, 2*keep)
	read(t, o, c, 2*keep<<20)
	if low, _ := kept(t, o); low != keep {
		t.Fatalf("a rollback may take it back, and only %d MB on are kept", low)
	}
	// A rollback still works, and the same bytes come again.
	if err := o.rewindTo(at); err != nil {
		t.Fatal(err)
	}
	chatter(t, o, 2*keep, 2*keep)
	slow := reader(o, keep<<20)
	leaveSlow := o.follow(slow)
	read(t, o, c, 2*keep<<20)
	if at, err = o.drain(); err != nil {
		t.Fatal(err)
	}
	o.cover(at)
	if low, _ := kept(t, o); low != keep {
		t.Fatalf("a reader is at %d MB, and %d MB on are kept", keep, low)
	}
	leaveSlow()
	leave()
	o.cover(at)
	if low, space := kept(t, o); low != 3*keep || space > keep+2 {
		t.Fatalf("kept from %d MB on, want %d; %d MB on disk", low, 3*keep, space)
	}
	// Who attaches from the start gets what is kept, and is told from where.
	late := reader(o, 0)
	got, frames := read(t, o, late, keep<<20)
	if frames[0].Offset != 3*keep<<20 || len(got) != keep<<20 || got[0] != 'a'+byte(3*keep%26) {
		t.Errorf("from %d on, %d bytes", frames[0].Offset, len(got))
	}
	if err := o.rewindTo(map[streamKey]int64{stdout(): 1}); err == nil {
		t.Error("went back to what is not kept")
	}
}
