package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// model is the memory of a process, by page.
type model map[uint64][]byte

// grow writes model m as epoch of process 5 on top of epoch base (0: none), of
// which the pages in changed are not the same.
func grow(d *JobDir, id Identity, base job.Epoch, m model, changed map[uint64]bool) (_ podapi.Written, err error) {
	w, err := d.Create(id, Options{})
	if err != nil {
		return podapi.Written{}, err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	if base != 0 {
		r, err := d.Open(base, id.Pod)
		if err != nil {
			return podapi.Written{}, err
		}
		defer func() { _ = r.Close() }()
		if err := w.Base(r); err != nil {
			return podapi.Written{}, err
		}
	}
	p, err := w.Process(5)
	if err != nil {
		return podapi.Written{}, err
	}
	var same []Span
	var list []uint64
	for at := range m {
		list = append(list, at)
		if base != 0 && !changed[at] {
			same = append(same, Span{at, at + pageSize})
		}
	}
	left := map[uint64]bool{}
	for _, s := range p.Keep(joinSpans(same)) {
		for at := s.Start; at < s.End; at += pageSize {
			left[at] = true
		}
	}
	for _, at := range list {
		if base == 0 || changed[at] || left[at] {
			err = errors.Join(err, p.Write(at, m[at]))
		}
	}
	if err = errors.Join(err, p.Close()); err != nil {
		return podapi.Written{}, err
	}
	return w.Commit(context.Background(), &Manifest{Processes: []Process{{PID: 5, Threads: []Thread{{TID: 5}}}}})
}

// checkModel compares a whole image with the memory it was made of.
func checkModel(d *JobDir, e job.Epoch, pod job.PodIndex, m model) error {
	r, err := d.Open(e, pod)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if err := errors.Join(r.Verify(context.Background(), 2), r.VerifyDigests(context.Background())); err != nil {
		return err
	}
	p, err := r.Process(5)
	if err != nil {
		return err
	}
	if data, zero := p.Pages(); int(data+zero) != len(m) { //nolint:gosec // small
		return fmt.Errorf("%d pages, want %d", data+zero, len(m))
	}
	return p.Each(context.Background(), 2, func(run Run, data []byte) error {
		for i := range int(run.Pages) {
			want, ok := m[run.Addr+uint64(i*pageSize)] //nolint:gosec // small
			got := make([]byte, pageSize)
			if !run.Zero {
				got = data[i*pageSize : (i+1)*pageSize]
			}
			if !ok || !bytes.Equal(got, want) {
				return fmt.Errorf("page %d of the run at %x differs", i, run.Addr)
			}
		}
		return nil
	})
}

// mutate changes, adds and removes pages at random and says which.
func mutate(rnd *rand.Rand, m model, seed uint64) map[uint64]bool {
	changed := map[uint64]bool{}
	from, n := uint64(rnd.IntN(100)), 1+uint64(rnd.IntN(30))
	for i := range n {
		at := testBase + (from+i)*pageSize
		switch rnd.IntN(6) {
		case 0:
			delete(m, at)
			continue
		case 1:
			m[at] = make([]byte, pageSize)
		default:
			m[at] = pages(seed+i, 1, 0)
		}
		changed[at] = true
	}
	return changed
}

// TestGrow writes long series of epochs, each on top of the one before, which
// is removed then. Every epoch holds its memory, in a bounded number of files
// with a bounded number of pages; a node that received only some of the epochs,
// or lost files, has every epoch whole as well.
func TestGrow(t *testing.T) {
	for seed := range uint64(2) {
		d, other := testDir(t), testDir(t)
		rnd := rand.New(rand.NewPCG(seed, 7))
		m := model{}
		var shared int
		var needed uint64
		for e := job.Epoch(1); e <= 24; e++ {
			id := Identity{Job: 7, Pod: 2, Epoch: e, Incarnation: job.Incarnation(1 + e/9)}
			changed := mutate(rnd, m, seed<<32+uint64(e)<<8)
			w, err := grow(d, id, e-1, m, changed)
			if err != nil {
				t.Fatal(err)
			}
			if err := checkModel(d, e, 2, m); err != nil {
				t.Fatalf("seed %d epoch %d: %v", seed, e, err)
			}
			needed = checkBounds(t, d, e, w, needed)
			if err := d.Remove(e - 1); err != nil {
				t.Fatal(err)
			}
			if rnd.IntN(3) > 0 {
				sent, err := send(d, other, e, w)
				if err == nil {
					err = checkModel(other, e, 2, m)
				}
				if err != nil {
					t.Fatalf("seed %d epoch %d: replica: %v", seed, e, err)
				}
				shared += len(w.Files) - sent
				if err := other.Remove(e - 1 - job.Epoch(rnd.IntN(2))); err != nil {
					t.Fatal(err)
				}
			}
		}
		if shared < 8 {
			t.Errorf("seed %d: only %d files were shared by the replica", seed, shared)
		}
	}
}

// checkBounds returns how many pages of data the epoch needs; before is what the
// one before needed.
func checkBounds(t *testing.T, d *JobDir, e job.Epoch, w podapi.Written, before uint64) uint64 {
	t.Helper()
	r, err := d.Open(e, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	p, err := r.Process(5)
	if err != nil {
		t.Fatal(err)
	}
	var stored uint64
	for _, f := range p.files {
		stored += f.tail.ownPages
	}
	data, _ := p.Pages()
	if stored > data+before || len(p.files) > maxSegments || len(w.Files) != len(p.files)+1 {
		t.Errorf("epoch %d: %d pages stored in %d files, %d needed", e, stored, len(p.files), data)
	}
	return data
}

// send copies an image as a replica does and returns how many files it took.
func send(src, dst *JobDir, e job.Epoch, w podapi.Written) (sent int, err error) {
	r, err := dst.Receive(e, 2, w)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Abort()) }()
	for {
		left := r.Missing()
		if len(left) == 0 {
			break
		}
		f, err := src.OpenFile(e, 2, left[0])
		if err != nil {
			return sent, err
		}
		if err := errors.Join(r.File(context.Background(), left[0], f), f.Close()); err != nil {
			return sent, err
		}
		sent++
	}
	_, err = r.Commit()
	return sent, err
}

// twoEpochs writes epoch 3 and, on top of it, epoch 4 of pod 2.
func twoEpochs(t testing.TB, d *JobDir) (m model, w podapi.Written) {
	t.Helper()
	m = model{}
	for i := range uint64(24) {
		m[testBase+i*pageSize] = pages(i, 1, 0)
	}
	if _, err := grow(d, testID, 0, m, nil); err != nil {
		t.Fatal(err)
	}
	w, err := nextEpoch(d, m)
	if err != nil {
		t.Fatal(err)
	}
	return m, w
}

func nextEpoch(d *JobDir, m model) (podapi.Written, error) {
	id := testID
	id.Epoch = 4
	changed := map[uint64]bool{}
	for i := range uint64(6) {
		at := testBase + (3*i+20)*pageSize // the second half is new
		m[at], changed[at] = pages(100+i, 1, 0), true
	}
	return grow(d, id, 3, m, changed)
}

// TestSharedCorruptions damages the files of an epoch that shares some with
// another, and lets the files of several epochs take each other's places.
func TestSharedCorruptions(t *testing.T) {
	n := 1000
	if testing.Short() {
		n = 300
	}
	d := testDir(t)
	m, w := twoEpochs(t, d)
	id := testID
	id.Epoch = 4
	if len(w.Files) != 3 {
		t.Fatalf("files %v", w.Files)
	}
	names := fileNames(w)
	foreign := map[string][][]byte{}
	for _, name := range names[1:] { // pages of either epoch under the name of the other
		for _, other := range names[1:] {
			b, err := os.ReadFile(filepath.Join(w.Dir, other))
			if err != nil {
				t.Fatal(err)
			}
			if other != name {
				foreign[name] = append(foreign[name], b)
			}
		}
	}
	rnd := rand.New(rand.NewPCG(3, 3))
	for i := range n {
		name := names[rnd.IntN(len(names))]
		path := filepath.Join(w.Dir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		how, bad := corrupt(rnd, good, name, foreign)
		if bytes.Equal(bad, good) {
			continue
		}
		writeOver(t, path, bad)
		if err := fullCheck(d, id); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrIncomplete) {
			t.Fatalf("corruption %d of %s (%s): %v", i, name, how, err)
		}
		writeOver(t, path, good)
	}
	if err := checkModel(d, 4, 2, m); err != nil {
		t.Fatalf("put back: %v", err)
	}
	extra := filepath.Join(w.Dir, ProcessFile(5, 2))
	if err := os.Rename(filepath.Join(w.Dir, ProcessFile(5, 3)), extra); err != nil {
		t.Fatal(err)
	}
	if err := fullCheck(d, id); !errors.Is(err, ErrIncomplete) {
		t.Errorf("a shared file is missing: %v", err)
	}
}

// TestGrowCrashes: whichever step of writing an epoch on top of another fails,
// the base is whole, and the new one is whole or not there.
func TestGrowCrashes(t *testing.T) {
	d := testDir(t)
	base, _ := twoEpochs(t, d)
	if err := os.RemoveAll(filepath.Join(d.Path(), "4")); err != nil {
		t.Fatal(err)
	}
	var m model
	untilSuccess(t, d, func() error {
		m = model{}
		for at, p := range base {
			m[at] = p
		}
		_, err := nextEpoch(d, m)
		return err
	}, func(op string, err error) {
		if err := fullCheck(d, testID); err != nil {
			t.Fatalf("after %q: the base: %v", op, err)
		}
		checkErr := checkModel(d, 4, 2, m)
		if checkErr != nil && (err == nil || !errors.Is(checkErr, os.ErrNotExist)) {
			t.Fatalf("after %q: %v (%v)", op, checkErr, err)
		}
		if checkErr == nil && err != nil { // only the last sync failed
			if err := os.RemoveAll(filepath.Join(d.Path(), "4")); err != nil {
				t.Fatal(err)
			}
		}
	})
	// The same for a node that receives it and has the base.
	w, err := d.Open(4, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	dst := testDir(t)
	b, err := d.Open(3, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	if _, err := send(d, dst, 3, b.Written()); err != nil {
		t.Fatal(err)
	}
	untilSuccess(t, dst, func() error {
		_, err := send(d, dst, 4, w.Written())
		if errors.Is(err, ErrExists) {
			err = nil
		}
		return err
	}, func(op string, err error) {
		if err := fullCheck(dst, testID); err != nil {
			t.Fatalf("after %q: the base: %v", op, err)
		}
		if checkErr := checkModel(dst, 4, 2, m); checkErr != nil && (err == nil || !errors.Is(checkErr, os.ErrNotExist)) {
			t.Fatalf("after %q: %v (%v)", op, checkErr, err)
		}
	})
}

// TestLinkFails: where files cannot be linked, everything is written, and
// everything is received.
func TestLinkFails(t *testing.T) {
	d, dst := testDir(t), testDir(t)
	noLink := func(op string) error {
		if strings.HasPrefix(op, "link ") {
			return errInjected
		}
		return nil
	}
	d.step, dst.step = noLink, noLink
	m, w := twoEpochs(t, d)
	if len(w.Files) != 2 {
		t.Errorf("files %v", w.Files)
	}
	if err := checkModel(d, 4, 2, m); err != nil {
		t.Fatal(err)
	}
	if sent, err := send(d, dst, 4, w); err != nil || sent != 2 {
		t.Errorf("%d files were sent: %v", sent, err)
	}
}

// TestHealShared: a damaged file that two epochs share is brought anew for the
// one that is set aside, although the other one still has it.
func TestHealShared(t *testing.T) {
	d, dst := testDir(t), testDir(t)
	m, w := twoEpochs(t, d)
	b, err := d.Open(3, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	for e, w := range map[job.Epoch]podapi.Written{3: b.Written(), 4: w} {
		if _, err := send(d, dst, e, w); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dst.Path(), "3", "pod2", ProcessFile(5, 3))
	bad, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad[2*pageSize] ^= 1
	writeOver(t, path, bad)
	id := testID
	id.Epoch = 4
	for _, id := range []Identity{testID, id} {
		if err := fullCheck(dst, id); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), ProcessFile(5, 3)) {
			t.Fatalf("epoch %d: %v", id.Epoch, err)
		}
	}
	if err := dst.SetAside(4, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := send(d, dst, 4, w); err != nil {
		t.Fatal(err)
	}
	if err := checkModel(dst, 4, 2, m); err != nil {
		t.Error(err)
	}
	// Now epoch 4 can give it to epoch 3.
	if err := dst.SetAside(3, 2); err != nil {
		t.Fatal(err)
	}
	if sent, err := send(d, dst, 3, b.Written()); err != nil || sent != 1 {
		t.Errorf("%d files were sent: %v", sent, err)
	}
	if err := fullCheck(dst, testID); err != nil {
		t.Error(err)
	}
}

// TestBases: only an earlier image of the same pod can be a base.
func TestBases(t *testing.T) {
	d := testDir(t)
	twoEpochs(t, d)
	r, err := d.Open(3, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	for id, want := range map[Identity]error{
		{Job: 7, Pod: 2, Epoch: 9, Incarnation: 1}: nil,
		{Job: 7, Pod: 2, Epoch: 2, Incarnation: 1}: ErrMismatch,
		{Job: 7, Pod: 1, Epoch: 9, Incarnation: 1}: ErrMismatch,
		{Job: 7, Pod: 2, Epoch: 9, Incarnation: 0}: ErrMismatch,
	} {
		w, err := d.Create(id, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Base(r); !errors.Is(err, want) {
			t.Errorf("%+v: %v", id, err)
		}
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
	}
}

// TestOldVersion: images of the first format are refused by name.
func TestOldVersion(t *testing.T) {
	d := testDir(t)
	w := writeTest(t, d, testID, Options{}, 1)
	path := filepath.Join(w.Dir, ManifestName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(b[8:], 1)
	sum := manifestSum(b)
	copy(b[40:], sum[:])
	writeOver(t, path, b)
	if err := fullCheck(d, testID); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "version 1") {
		t.Error(err)
	}
	header := encodeHeader(partID{Identity: testID, kind: kindProcess, id: 5}, CompressNone)
	binary.LittleEndian.PutUint32(header[8:], 1)
	binary.LittleEndian.PutUint64(header[headerSize-8:], xxh3.Hash(header[:headerSize-8]))
	if _, _, _, err := decodeHeader(header); !errors.Is(err, ErrVersion) {
		t.Error(err)
	}
}
