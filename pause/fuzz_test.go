package pause

import (
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

func FuzzParseTimers(f *testing.F) {
	f.Add("ID: 0\nsignal: 14/0000000000000001\nnotify: signal/tid.1234\nClockID: 1\n")
	f.Add("signal: 1/2\n")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := parseTimers(text); err != nil && err.Error() == "" {
			t.Error("empty error")
		}
	})
}

func TestParseTimers(t *testing.T) {
	got, err := parseTimers("ID: 3\nsignal: 34/00000000deadbeef\nnotify: signal/tid.77\nClockID: 1\nID: 4\nsignal: 0/0\nnotify: none/pid.5\nClockID: 0\n")
	if err != nil {
		t.Fatal(err)
	}
	want := []image.PosixTimer{
		{ID: 3, Signal: 34, Value: 0xdeadbeef, Notify: 4, TID: 77, Clock: 1},
		{ID: 4, Notify: 1},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestRanges compares the set operations with ones on single pages.
func TestRanges(t *testing.T) {
	const pages = 40
	draw := func(t *rapid.T, name string) ([]kernel.Range, [pages]bool) {
		var set [pages]bool
		for i := range set {
			set[i] = rapid.Bool().Draw(t, name)
		}
		var list []kernel.Range
		for i := uint64(0); i < pages; i++ {
			if !set[i] {
				continue
			}
			// Sometimes touching ranges, as of neighbouring mappings.
			if k := len(list) - 1; k >= 0 && list[k].End == i && rapid.Bool().Draw(t, "join") {
				list[k].End++
			} else {
				list = append(list, kernel.Range{Start: i, End: i + 1})
			}
		}
		return list, set
	}
	expand := func(t *rapid.T, list []kernel.Range) (set [pages]bool) {
		at := uint64(0)
		for _, r := range list {
			if r.Start < at || r.End <= r.Start {
				t.Fatalf("%v does not ascend", list)
			}
			for at = r.Start; at < r.End; at++ {
				set[at] = true
			}
		}
		return set
	}
	rapid.Check(t, func(t *rapid.T) {
		a, as := draw(t, "a")
		b, bs := draw(t, "b")
		and, not := expand(t, intersect(a, b)), expand(t, subtract(a, b))
		for i := range pages {
			if and[i] != (as[i] && bs[i]) || not[i] != (as[i] && !bs[i]) {
				t.Fatalf("%v, %v: wrong at %d", a, b, i)
			}
		}
		if expand(t, normalize(a)) != as {
			t.Fatalf("normalize changed %v", a)
		}
	})
}

// TestDiffMaps applies the steps of a diff to a model of the mappings.
func TestDiffMaps(t *testing.T) {
	type cell struct {
		kind int // 0 nothing, 1 anonymous, 2 file
		prot uint32
	}
	const pages = 24
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) (c [pages]cell) {
			for i := range c {
				c[i].kind = rapid.IntRange(0, 2).Draw(t, name)
				if c[i].kind != 0 {
					c[i].prot = uint32(rapid.IntRange(0, 3).Draw(t, name))
				}
			}
			return c
		}
		want, have := draw("saved"), draw("live")
		var saved []image.Mapping
		var live []proc.Map
		for i := uint64(0); i < pages; i++ {
			r := kernel.Range{Start: i << 12, End: (i + 1) << 12}
			if c := want[i]; c.kind != 0 {
				v := image.Mapping{Start: r.Start, End: r.End, Prot: c.prot, Kind: image.MapAnon}
				if c.kind == 2 {
					v.Kind, v.File, v.Offset = image.MapPrivate, &image.MappedFile{Path: "/f", Ino: 5}, i<<12
				}
				saved = append(saved, v)
			}
			if c := have[i]; c.kind != 0 {
				m := proc.Map{Range: r, Prot: c.prot}
				if c.kind == 2 {
					m.Path, m.Ino, m.Offset = "/f", 5, i<<12
				}
				live = append(live, m)
			}
		}
		steps, err := diffMaps(saved, live)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range steps {
			for i := s.Start >> 12; i < s.End>>12; i++ {
				switch s.op {
				case opUnmap:
					have[i] = cell{}
				case opProtect:
					have[i].prot = s.to.Prot
				case opMap:
					have[i] = cell{1, s.to.Prot}
					if s.to.File != nil {
						have[i].kind = 2
					}
				}
			}
		}
		if have != want {
			t.Fatalf("after %v: %v, want %v", steps, have, want)
		}
	})
}

func TestPeekPipe(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) }()
	big := make([]byte, 40000)
	for i := range big {
		big[i] = byte(i * 7)
	}
	if _, err := unix.Write(p[1], big); err != nil {
		t.Fatal(err)
	}
	for range 2 { // looking takes nothing
		got, err := peekPipe("/proc/self/fd/"+strconv.Itoa(p[1]), p[1], unix.O_WRONLY)
		if err != nil || string(got) != string(big) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
}
