package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

var errInjected = errors.New("injected")

// failNth makes the n-th change of the disk, and all after it, fail: the disk
// stays as a crash at that moment leaves it.
type failNth struct {
	n     int
	calls int
	op    string
}

func (f *failNth) step(op string) error {
	f.calls++
	if f.calls >= f.n {
		if f.op == "" {
			f.op = op
		}
		return errInjected
	}
	return nil
}

// untilSuccess runs try with the n-th step failing, for n = 1, 2, ... until it
// succeeds; after is told what each left behind.
func untilSuccess(t *testing.T, d *JobDir, try func() error, after func(op string, err error)) {
	t.Helper()
	for n := 1; n < 10000; n++ {
		f := &failNth{n: n}
		d.step = f.step
		err := try()
		d.step = nil
		after(f.op, err)
		if err == nil && f.op == "" {
			if n < 3 {
				t.Errorf("only %d steps", n)
			}
			return
		}
	}
	t.Fatal("never succeeded")
}

// TestWriteCrashes: whichever step of writing epoch 4 fails, epoch 3 is whole,
// and epoch 4 is whole or not there.
func TestWriteCrashes(t *testing.T) {
	d := testDir(t)
	writeTest(t, d, testID, Options{}, 1)
	next := testID
	next.Epoch = 4
	untilSuccess(t, d, func() error {
		_, err := tryWrite(d, next, Options{}, 2)
		return err
	}, func(op string, err error) {
		if err := fullCheck(d, testID); err != nil {
			t.Fatalf("after %q: epoch 3: %v", op, err)
		}
		checkErr := fullCheck(d, next)
		switch {
		case err == nil && checkErr != nil:
			t.Fatalf("epoch 4 written, but %v", checkErr)
		case errors.Is(checkErr, os.ErrNotExist):
		case checkErr != nil:
			t.Fatalf("after %q: epoch 4: %v", op, checkErr)
		case err != nil: // only the last sync failed
			if op != "sync directory 4" {
				t.Fatalf("after %q: epoch 4 is there", op)
			}
			if err := os.RemoveAll(filepath.Join(d.Path(), "4")); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestRemoveCrashes: a removal that is cut short leaves the epoch whole or
// invisible, the others whole, and can be repeated; the number stays used.
func TestRemoveCrashes(t *testing.T) {
	d := testDir(t)
	writeTest(t, d, testID, Options{}, 1)
	next := testID
	next.Epoch = 4
	writeTest(t, d, next, Options{}, 2)
	commit(t, d, 4)
	untilSuccess(t, d, func() error { return d.Remove(4) }, func(op string, _ error) {
		if err := fullCheck(d, testID); err != nil {
			t.Fatalf("after %q: epoch 3: %v", op, err)
		}
		if err := fullCheck(d, next); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("after %q: epoch 4: %v", op, err)
		}
	})
	if _, err := d.Create(next, Options{}); !errors.Is(err, ErrEpochUsed) {
		t.Errorf("epoch 4 again: %v", err)
	}
	if _, err := d.Committed(4); !errors.Is(err, ErrNotCommitted) {
		t.Errorf("epoch 4 committed: %v", err)
	}
	entries, err := os.ReadDir(d.Path())
	if err != nil || len(entries) != 2 { // 3 and USED
		t.Errorf("left: %v (%v)", entries, err)
	}
}

func commit(t *testing.T, d *JobDir, e job.Epoch) {
	t.Helper()
	if err := tryCommit(d, e); err != nil {
		t.Fatal(err)
	}
}

func tryCommit(d *JobDir, e job.Epoch) error {
	pods := map[job.PodIndex]string{0: "aa", 2: "bb"}
	return d.MarkCommitted(Commit{Job: 7, Epoch: e, RaftIndex: 99, SetDigest: SetDigest(pods), Pods: pods, Record: []byte(`{"a":1}`)})
}

func TestCommitCrashes(t *testing.T) {
	d := testDir(t)
	writeTest(t, d, testID, Options{}, 1)
	untilSuccess(t, d, func() error { return tryCommit(d, 3) }, func(op string, err error) {
		c, readErr := d.Committed(3)
		if readErr != nil && (err == nil || !errors.Is(readErr, ErrNotCommitted)) {
			t.Fatalf("after %q: %v", op, readErr)
		}
		if readErr == nil && (c.RaftIndex != 99 || string(c.Record) != `{"a":1}`) {
			t.Fatalf("after %q: %+v", op, c)
		}
	})
	commit(t, d, 3)
	if err := d.MarkCommitted(Commit{Job: 7, Epoch: 3, SetDigest: SetDigest(nil)}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("other digests: %v", err)
	}
	epochs, err := d.Epochs()
	if err != nil || len(epochs) != 1 || !epochs[0].Committed || !slices.Equal(epochs[0].Pods, []job.PodIndex{2}) {
		t.Errorf("epochs %+v (%v)", epochs, err)
	}
}

// transfer sends image w of src to dst, with change applied to each file.
func transfer(src, dst *JobDir, w podapi.Written, change func(name string, b []byte) []byte) (err error) {
	r, err := dst.Receive(testID.Epoch, testID.Pod, w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Abort()) }()
	for _, name := range r.Missing() {
		f, err := src.OpenFile(testID.Epoch, testID.Pod, name)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		if err := r.File(context.Background(), name, bytes.NewReader(change(name, b))); err != nil {
			return err
		}
	}
	_, err = r.Commit()
	return err
}

func TestReceive(t *testing.T) {
	src, dst := testDir(t), testDir(t)
	w := writeTest(t, src, testID, Options{}, 1)
	same := func(_ string, b []byte) []byte { return b }
	for i, bad := range []func(string, []byte) []byte{
		func(_ string, b []byte) []byte { return b[:len(b)-1] },
		func(_ string, b []byte) []byte { return append(b, 0) },
		func(_ string, b []byte) []byte { b[len(b)/2] ^= 1; return b },
	} {
		if err := transfer(src, dst, w, bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("bad transfer %d: %v", i, err)
		}
	}
	untilSuccess(t, dst, func() error {
		err := transfer(src, dst, w, same)
		if errors.Is(err, ErrExists) { // only the last sync failed
			err = nil
		}
		return err
	}, func(op string, err error) {
		checkErr := fullCheck(dst, testID)
		if checkErr != nil && (err == nil || !errors.Is(checkErr, os.ErrNotExist)) {
			t.Fatalf("after %q: %v (%v)", op, checkErr, err)
		}
	})
	if err := transfer(src, dst, w, same); !errors.Is(err, ErrExists) {
		t.Errorf("again: %v", err)
	}
}

// TestReceiveLists: a peer's list of files is not believed.
func TestReceiveLists(t *testing.T) {
	src, dst := testDir(t), testDir(t)
	w := writeTest(t, src, testID, Options{}, 1)
	list := func(change func(map[string]podapi.File)) podapi.Written {
		c := w
		c.Files = map[string]podapi.File{}
		for n, f := range w.Files {
			c.Files[n] = f
		}
		change(c.Files)
		c.Digest = listDigest(c.Files)
		return c
	}
	for _, name := range []string{"../x", "/etc/x", "p0-3.pages", "p01-3.pages", "p-1-3.pages", "p1.pages", "p1-0.pages", "p1-03.pages", "p1-3.pages/x", ".", "", "p1-3.pages\x00", "COMMITTED", "p99999999999-3.pages"} {
		bad := list(func(f map[string]podapi.File) { f[name] = podapi.File{Size: 1} })
		if _, err := dst.Receive(3, 2, bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("name %q: %v", name, err)
		}
		if _, err := src.OpenFile(3, 2, name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("open %q: %v", name, err)
		}
	}
	bad := w
	bad.Digest = "00"
	if _, err := dst.Receive(3, 2, bad); !errors.Is(err, ErrCorrupt) {
		t.Errorf("digest: %v", err)
	}
	// Whole, but of another epoch than announced.
	r, err := dst.Receive(9, 2, w)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Abort() //nolint:errcheck // a test
	for name, want := range map[string]error{ProcessFile(1000, 3): ErrIncomplete, ManifestName: ErrCorrupt} {
		b, err := os.ReadFile(filepath.Join(w.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err = r.File(t.Context(), name, bytes.NewReader(b)); !errors.Is(err, want) {
			t.Errorf("%s of another epoch's image: %v, want %v", name, err, want)
		}
	}
	if _, err := r.Commit(); !errors.Is(err, ErrIncomplete) {
		t.Errorf("another epoch's image: %v", err)
	}
}

func TestEpochNumbers(t *testing.T) {
	d := testDir(t)
	writeTest(t, d, testID, Options{}, 1)
	if _, err := d.Create(testID, Options{}); !errors.Is(err, ErrExists) {
		t.Errorf("epoch 3 twice: %v", err)
	}
	if err := d.Remove(5); err != nil { // abandoned before anything was written
		t.Fatal(err)
	}
	for e := job.Epoch(1); e <= 5; e++ {
		id := testID
		id.Epoch, id.Pod = e, 9
		if _, err := d.Create(id, Options{}); !errors.Is(err, ErrEpochUsed) {
			t.Errorf("epoch %d: %v", e, err)
		}
	}
	id := testID
	id.Epoch = 6
	writeTest(t, d, id, Options{}, 1)
	if err := fullCheck(d, testID); err != nil {
		t.Errorf("epoch 3: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	h := Host{Machine: "x86_64", PageSize: 4096, UID: 5, GID: 6, CPU: []string{"avx", "sse2"}}
	more := h
	more.CPU = []string{"avx", "avx2", "sse2"}
	if err := h.Fits(more); err != nil {
		t.Error(err)
	}
	for _, change := range []func(*Host){
		func(h *Host) { h.CPU = []string{"sse2"} }, func(h *Host) { h.UID = 0 }, func(h *Host) { h.GID = 0 },
		func(h *Host) { h.Machine = "aarch64" }, func(h *Host) { h.PageSize = 65536 },
		func(h *Host) { h.VDSO = "00" },
	} {
		other := h
		change(&other)
		if err := h.Fits(other); !errors.Is(err, ErrMismatch) {
			t.Errorf("%+v: %v", other, err)
		}
	}
	pod := func(p job.PodIndex, ranks ...job.Rank) *Manifest {
		m := &Manifest{Identity: Identity{Job: 1, Epoch: 2, Pod: p}, Ranks: map[job.Rank]int{}}
		for _, r := range ranks {
			m.Ranks[r] = 1
		}
		return m
	}
	if err := CheckRanks(3, pod(0, 0, 1), pod(1, 2)); err != nil {
		t.Error(err)
	}
	if err := CheckRanks(4, pod(0, 0, 1), pod(1, 3)); !errors.Is(err, ErrIncomplete) {
		t.Errorf("missing rank: %v", err)
	}
	for i, pods := range [][]*Manifest{{pod(0, 0, 1), pod(1, 1)}, {pod(0, 0, 1, 2)}, {pod(0, 0), {Identity: Identity{Job: 2}, Ranks: map[job.Rank]int{1: 1}}}} {
		if err := CheckRanks(2, pods...); !errors.Is(err, ErrCorrupt) {
			t.Errorf("set %d: %v", i, err)
		}
	}
}

func TestLocalHost(t *testing.T) {
	h, err := LocalHost()
	if err != nil || h.VDSO == "" || len(h.CPU) < 5 || h.Machine == "" || h.PageSize != pageSize {
		t.Errorf("%+v (%v)", h, err)
	}
	if err := h.Fits(h); err != nil {
		t.Error(err)
	}
}

func TestMappedFiles(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{exe, plain, "/bin/sh"} {
		a, err := IdentifyFile(path)
		if err != nil || (a.BuildID == "" && a.SHA256 == "") {
			t.Fatalf("%s: %+v (%v)", path, a, err)
		}
		b := a
		b.Ino++
		if err := a.Same(b); err != nil {
			t.Error(err)
		}
		for i, change := range []func(*MappedFile){func(f *MappedFile) { f.Size++ }, func(f *MappedFile) { f.BuildID += "0" }} {
			b := a
			change(&b)
			if err := a.Same(b); !errors.Is(err, ErrMismatch) {
				t.Errorf("%s: change %d: %v", path, i, err)
			}
		}
	}
	m := testManifest()
	if m.Processes[0].Exe, err = IdentifyFile(plain); err != nil {
		t.Fatal(err)
	}
	if err := m.CheckFiles(""); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(plain, []byte("atad"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.CheckFiles(""); !errors.Is(err, ErrMismatch) {
		t.Errorf("changed file: %v", err)
	}
}
