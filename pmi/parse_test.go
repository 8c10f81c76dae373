package pmi

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/lampause/lampause/job"
)

// TestParse: what is a line of the protocol, and what is refused by name.
func TestParse(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	for line, want := range map[string]string{ // name and value of "k"; "-" = refused
		"cmd=get k=v":                       "get v",
		"  cmd=get   k=v  ":                 "get v",
		"mcmd=spawn k=":                     "spawn ",
		"cmd=get k=a=b":                     "get a=b",
		"cmd=abort msg=k=1 and more":        "abort ",
		"cmd=x k=1 error_msg=all the rest ": "x 1",
		"k=v":                               "-",
		"":                                  "-",
		"cmd=":                              "-",
		"cmd=get k":                         "-",
		"cmd=get =v":                        "-",
		"cmd=get k=1 k=2":                   "-",
		"cmd=get a b=c":                     "-",
		"cmd=get\nk=v":                      "-",
		"cmd=get\x00":                       "-",
		"cmd=get " + long(maxKey) + "=1":    "get ",
		"cmd=get " + long(maxKey+1) + "=1":  "-",
		"cmd=" + long(MaxLine-4):            long(MaxLine-4) + " ",
		"cmd=" + long(MaxLine-3):            "-",
	} {
		c, err := parse(line)
		got := c.name + " " + c.args["k"]
		if err != nil {
			got = "-"
			if !errors.Is(err, ErrProtocol) || len(err.Error()) > 250 {
				t.Errorf("%s: %v", clip(line), err)
			}
		}
		if got != want {
			t.Errorf("%q: %q, not %q", clip(line), clip(got), clip(want))
		}
	}
	if c, err := parse("cmd=abort msg=a b=c  d "); err != nil || c.args["msg"] != "a b=c  d " {
		t.Errorf("%+v, %v", c, err)
	}
	for n, want := range map[int]int{79: 79, 80: 80, 81: 83} {
		if got := clip(long(n)); len(got) != want {
			t.Errorf("%d bytes clipped to %d", n, len(got))
		}
	}
}

// TestDecodeBlob: a state that was not written by this version is refused.
func TestDecodeBlob(t *testing.T) {
	fresh := func() blob {
		return blob{Version: blobVersion, State: State{
			KVS: map[string]string{}, Own: map[string]string{"a": "b"}, Ranks: map[job.Rank]*RankState{0: {}}, Done: 1, History: []map[string]string{{}},
		}}
	}
	for name, c := range map[string]struct {
		spoil func(*blob)
		ok    bool
	}{
		"whole":              {func(*blob) {}, true},
		"nothing of our own": {func(b *blob) { b.State.Own = nil }, true},
		"another version":    {func(b *blob) { b.Version++ }, false},
		"no keys":            {func(b *blob) { b.State.KVS = nil }, false},
		"no ranks":           {func(b *blob) { b.State.Ranks = nil }, false},
		"an empty rank":      {func(b *blob) { b.State.Ranks[0] = nil }, false},
		"fences missing":     {func(b *blob) { b.State.Done = 2 }, false},
	} {
		b := fresh()
		c.spoil(&b)
		raw, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeBlob(raw)
		if (err == nil) != c.ok || c.ok && got.State.Own == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := decodeBlob([]byte("{")); err == nil {
		t.Error("half a state is taken")
	}
	if _, err := decodeBlob(make([]byte, maxBlob+1)); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("%v", err)
	}
}
