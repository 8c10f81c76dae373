package lamd

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// frame is a frame of rank 0.
func frame(fd int, offset int64, data string, eof bool) podapi.Output {
	f := podapi.Output{FD: fd, Offset: offset, EOF: eof}
	if data != "" {
		f.Data = []byte(data)
	}
	return f
}

// sending answers with frames, and then ends.
func sending(frames ...podapi.Output) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		enc, flush := jsonLines(w)
		for _, f := range frames {
			_ = enc.Encode(f)
		}
		flush()
	}
}

func framesOf(t *testing.T, r io.Reader) []podapi.Output {
	t.Helper()
	var out []podapi.Output
	dec := json.NewDecoder(r)
	for {
		var f podapi.Output
		if err := dec.Decode(&f); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, f)
	}
}

// archived asks an archive for the output of job 7 from a cursor on.
func archived(t *testing.T, a *archive, at string) []podapi.Output {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/v1/pods/7/v1/output?at="+at, nil)
	if !a.serve(w, r, 7) {
		t.Fatal("nothing is archived")
	}
	return framesOf(t, w.Body)
}

var wholeOutput = []podapi.Output{
	frame(1, 0, "hello ", false), frame(2, 0, "", true), frame(1, 6, "world", false), frame(1, 11, "", true),
}

func TestArchiveServesLateReaders(t *testing.T) {
	m, s := testPods(t)
	s.hook = func(f *fakePod) { f.output = sending(wholeOutput...) }
	f := startOne(t, m, s, specOf(7, 1))
	p, _ := m.get(7)
	a := &archive{dir: filepath.Join(shortDir(t), "ended")}
	if err := a.save(testContext(t), p); err != nil {
		t.Fatal(err)
	}
	if len(f.signals) != 1 || f.signals[0].Signal != 9 {
		t.Errorf("signals %+v", f.signals)
	}
	for _, c := range []struct {
		at   string
		want []podapi.Output
	}{
		{"", wholeOutput},
		{"0.1:8", []podapi.Output{frame(2, 0, "", true), frame(1, 8, "rld", false), frame(1, 11, "", true)}},
		{"0.1:11", []podapi.Output{frame(2, 0, "", true), frame(1, 11, "", true)}},
	} {
		if diff := cmp.Diff(c.want, archived(t, a, c.at)); diff != "" {
			t.Errorf("at %q: %s", c.at, diff)
		}
	}
	if err := a.forget(7); err != nil {
		t.Fatal(err)
	}
	if a.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil), 7) {
		t.Error("an earlier life of the job is served")
	}
	if err := a.forget(7); err != nil {
		t.Error(err)
	}
}

func TestArchiveRefusesACutStream(t *testing.T) {
	for name, frames := range map[string][]podapi.Output{
		"nothing":          nil,
		"one stream":       wholeOutput[:3],
		"the same twice":   {frame(1, 0, "", true), frame(1, 0, "", true)},
		"opened again":     {frame(1, 0, "", true), frame(2, 0, "", true), frame(1, 0, "x", false)},
		"of another rank":  {frame(1, 0, "", true), {Rank: 1, FD: 2, EOF: true}},
		"not quite output": {{}},
	} {
		t.Run(name, func(t *testing.T) {
			m, s := testPods(t)
			s.hook = func(f *fakePod) { f.output = sending(frames...) }
			startOne(t, m, s, specOf(7, 1))
			p, _ := m.get(7)
			a := &archive{dir: filepath.Join(shortDir(t), "ended")}
			if err := a.save(testContext(t), p); !errors.Is(err, errCut) {
				t.Fatalf("got %v", err)
			}
			left, err := os.ReadDir(a.dir)
			if err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestArchiveRefusesBadCursor(t *testing.T) {
	a := &archive{dir: shortDir(t)}
	if err := os.WriteFile(a.path(7), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	if !a.serve(w, httptest.NewRequest(http.MethodGet, "/?at=x", nil), 7) || w.Code != http.StatusBadRequest {
		t.Errorf("status %d", w.Code)
	}
}

func TestArchiveTrim(t *testing.T) {
	a := &archive{dir: shortDir(t)}
	base := time.Unix(1_000_000, 0)
	for i := range maxArchived + 5 {
		name := a.path(job.ID(i + 1))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, base, base.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.trim(); err != nil {
		t.Fatal(err)
	}
	for i := range maxArchived + 5 {
		_, err := os.Stat(a.path(job.ID(i + 1)))
		if kept := err == nil; kept != (i >= 5) {
			t.Errorf("job %d: kept %v", i+1, kept)
		}
	}
}

func TestAfterCursor(t *testing.T) {
	for at, want := range map[int64]string{0: "abc", 4: "abc", 5: "abc", 6: "bc", 8: "", 99: ""} {
		o := frame(1, 5, "abc", false)
		if ok := afterCursor(&o, cursorAt(at)); ok != (want != "") || string(o.Data) != want {
			t.Errorf("from %d: %v %q", at, ok, o.Data)
		} else if ok && o.Offset != max(5, at) {
			t.Errorf("from %d: offset %d", at, o.Offset)
		}
	}
	o := frame(1, 5, "", true)
	if !afterCursor(&o, cursorAt(5)) {
		t.Error("an end was cut away")
	}
}
