package hostfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/job"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, text string
		want       []Entry
	}{
		{"hydra", "# two hosts\nalpha:4\n\nbeta # no number\n", []Entry{{"alpha", 4, false, 2}, {"beta", 0, false, 4}}},
		{"open mpi", "a slots=4 max_slots=8\nb max-slots=2\n", []Entry{{"a", 4, false, 1}, {"b", 0, false, 2}}},
		{"slurm", "n[1-3,5]\n", []Entry{{"n1", 0, false, 1}, {"n2", 0, false, 1}, {"n3", 0, false, 1}, {"n5", 0, false, 1}}},
		{"slurm with slots and suffix", "n[08-10].x:2", []Entry{{"n08.x", 2, false, 1}, {"n09.x", 2, false, 1}, {"n10.x", 2, false, 1}}},
		{"all at once, spares", "a:1\nn[1,2] slots=2\r\nz spare\n", []Entry{
			{"a", 1, false, 1}, {"n1", 2, false, 2}, {"n2", 2, false, 2}, {"z", 0, true, 3},
		}},
		{"slots add up", "a:1\nb:1\na slots=3\n", []Entry{{"a", 4, false, 1}, {"b", 1, false, 2}}},
		{"no newline, blanks", "   a\tslots=2   spare", []Entry{{"a", 2, true, 1}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse("hosts", strings.NewReader(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseNamesFileAndLine(t *testing.T) {
	tests := []struct{ text, want string }{
		{"", "hosts: names no host"},
		{"# nothing\n\n", "hosts: names no host"},
		{"a\nb slots=x\n", `hosts:2: "slots=x": "x" is not a number of slots (1..65536)`},
		{"a:0", `hosts:1: "a:0": "0" is not a number of slots (1..65536)`},
		{"a:", `hosts:1: "a:": "" is not a number of slots (1..65536)`},
		{"a:2 slots=2", "hosts:1: slots of a are given twice"},
		{"a slots=4 max_slots=2", "hosts:1: a: 4 slots, but at most 2"},
		{"a slot=4", `hosts:1: "slot=4": not one of slots=N, max_slots=N, spare`},
		{"a spare=1", `hosts:1: "spare=1": not one of slots=N, max_slots=N, spare`},
		{"n[1-3", `hosts:1: "n[1-3": brackets do not match; one pair is allowed, as in n[1-3,5]`},
		{"n[3-1]", `hosts:1: "n[3-1]": "3-1" is not a range of numbers`},
		{"n[]", `hosts:1: "n[]": "" is not a range of numbers`},
		{"n[1]x[2]", `hosts:1: "n[1]x[2]": brackets do not match; one pair is allowed, as in n[1-3,5]`},
		{"n[0-99999999]", `hosts:1: "n[0-99999999]": more than 65536 hosts`},
		{"-x", `hosts:1: "-x": not a host name`},
		{"a/b", `hosts:1: "a/b": not a host name`},
		{"a:1\na:1 spare", "hosts:2: a: both a spare and not"},
		{"a\na", "hosts:2: a: named twice, but not with slots both times"},
		{"a\n" + strings.Repeat("x", maxLine+1), "hosts:2: cannot be read: bufio.Scanner: token too long"},
	}
	for _, tt := range tests {
		_, err := Parse("hosts", strings.NewReader(tt.text))
		var e *Error
		if !errors.As(err, &e) || err.Error() != tt.want {
			t.Errorf("%.20q: %v, want %s", tt.text, err, tt.want)
		}
	}
}

func TestParseList(t *testing.T) {
	got, err := ParseList("--host", "a:2, n[1-2,4],b")
	want := []Entry{{"a", 2, false, 0}, {"n1", 0, false, 0}, {"n2", 0, false, 0}, {"n4", 0, false, 0}, {"b", 0, false, 0}}
	if err != nil || !cmp.Equal(want, got) {
		t.Errorf("%v, %v", got, err)
	}
	for text, want := range map[string]string{
		"":        "--host: names no host",
		",,":      "--host: names no host",
		"a b":     `--host: "a b": not a host name`,
		"a:2,b:x": `--host: "b:x": "x" is not a number of slots (1..65536)`,
	} {
		if _, err := ParseList("--host", text); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestReadMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	if _, err := Read(path); err == nil || err.Error() != path+": cannot be read: no such file or directory" {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("a:3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); err != nil || len(got) != 1 || got[0].Slots != 3 {
		t.Errorf("%v, %v", got, err)
	}
}

// FuzzParse: whatever the text, Parse ends with an *Error or with hosts that
// nodes can have, each once.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"a:4\n", "a slots=2 max_slots=4 spare\n", "n[1-3,05]x:2 # c", "n[1-", "a\na", "[1-2]", ":", "=", "a:99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Parse("f", strings.NewReader(text))
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || got != nil {
				t.Fatalf("%v with error %v", got, err)
			}
			return
		}
		seen := map[string]bool{}
		for _, e := range got {
			if seen[e.Host] || !job.ValidNode(job.NodeID(e.Host)) || e.Slots < 0 || e.Slots > maxSlots || e.Line < 1 {
				t.Fatalf("bad entry %+v", e)
			}
			seen[e.Host] = true
		}
		if len(got) == 0 || len(got) > maxHosts {
			t.Fatalf("%d hosts", len(got))
		}
	})
}
