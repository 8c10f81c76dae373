package pod

import (
	"io"
	"testing"
)

// TestCommittedOutput: a reader of committed output gets what an epoch covers
// and nothing else, whatever is rolled back meanwhile.
func TestCommittedOutput(t *testing.T) {
	o := collecting(t)
	w := o.rankEnd(0, 1)
	c := reader(o, 0)
	c.covered = true
	_, _ = io.WriteString(w, "first.")
	at, err := o.drain()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, "undone")
	if _, err := o.drain(); err != nil {
		t.Fatal(err)
	}
	if frames, _, done, err := o.next(c); err != nil || len(frames) != 0 || done {
		t.Fatalf("before the first epoch: %+v, done %v, %v", frames, done, err)
	}
	o.cover(at)
	if got, _ := read(t, o, c, 6); got != "first." {
		t.Fatalf("after the first epoch: %q", got)
	}
	if err := o.rewindTo(at); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, "second.")
	if at, err = o.drain(); err != nil {
		t.Fatal(err)
	}
	if err := o.ended(0); err != nil {
		t.Fatal(err)
	}
	if frames, _, _, err := o.next(c); err != nil || len(frames) != 0 {
		t.Fatalf("after the rollback: %+v, %v", frames, err)
	}
	o.cover(at)
	got, frames := read(t, o, c, 7)
	if got != "second." || frames[0].Offset != 6 || frames[len(frames)-1].EOF {
		t.Errorf("after the second epoch: %q %+v", got, frames)
	}
}
