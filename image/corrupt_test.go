package image

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/lampause/lampause/internal/podapi"
)

// fullCheck is what a restart does with an image before it uses anything.
func fullCheck(d *JobDir, id Identity) error {
	r, err := d.Open(id.Epoch, id.Pod)
	if err != nil {
		return err
	}
	err = r.Verify(context.Background(), 1)
	return errors.Join(err, r.Close())
}

// TestCorruptions changes an image in 10,000 random ways; each must be refused
// by the XXH3 checks alone, and as corrupt or incomplete.
func TestCorruptions(t *testing.T) {
	n := 10000
	if testing.Short() {
		n = 500
	}
	for _, o := range []Options{{}, {Compression: CompressS2}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			t.Parallel()
			d := testDir(t)
			written := writeTest(t, d, testID, o, 1)
			foreign := foreignFiles(t, o)
			names := fileNames(written)
			rnd := rand.New(rand.NewPCG(42, 42))
			for i := range n / 2 {
				name := names[rnd.IntN(len(names))]
				path := filepath.Join(written.Dir, name)
				good, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				how, bad := corrupt(rnd, good, name, foreign)
				if string(bad) == string(good) {
					continue
				}
				writeOver(t, path, bad)
				err = fullCheck(d, testID)
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrIncomplete) {
					t.Fatalf("corruption %d of %s (%s): %v", i, name, how, err)
				}
				writeOver(t, path, good)
			}
			if err := fullCheck(d, testID); err != nil {
				t.Fatalf("put back: %v", err)
			}
		})
	}
}

func writeOver(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func fileNames(w podapi.Written) []string {
	var names []string
	for n := range w.Files {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// foreignFiles returns files of the same names from images with another job,
// epoch, pod or incarnation but the same contents, and from the same identity
// with other contents.
func foreignFiles(t *testing.T, o Options) map[string][][]byte {
	t.Helper()
	out := map[string][][]byte{}
	for i, id := range []Identity{
		{Job: 8, Pod: 2, Epoch: 3, Incarnation: 1},
		{Job: 7, Pod: 1, Epoch: 3, Incarnation: 1},
		{Job: 7, Pod: 2, Epoch: 4, Incarnation: 1},
		{Job: 7, Pod: 2, Epoch: 3, Incarnation: 2},
		testID,
	} {
		s, err := OpenStore(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.CreateJob(id.Job, -1, -1)
		if err != nil {
			t.Fatal(err)
		}
		w := writeTest(t, d, id, o, uint64(1+i/4))
		for n := range w.Files {
			b, err := os.ReadFile(filepath.Join(w.Dir, n))
			if err != nil {
				t.Fatal(err)
			}
			if n == ManifestName {
				continue // of the same identity it is as good as ours, until its files are read
			}
			out[n] = append(out[n], b)
		}
		if err := errors.Join(d.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// corrupt returns a changed copy of b.
func corrupt(r *rand.Rand, b []byte, name string, foreign map[string][][]byte) (string, []byte) {
	bad := slices.Clone(b)
	off := r.IntN(len(bad))
	switch r.IntN(8) {
	case 0:
		bad[off] ^= 1 << r.IntN(8)
		return fmt.Sprintf("bit of byte %d", off), bad
	case 1:
		for i := off; i < min(len(bad), off+1+r.IntN(5000)); i++ {
			bad[i] = byte(r.Uint32())
		}
		return fmt.Sprintf("noise at %d", off), bad
	case 2:
		return fmt.Sprintf("cut at %d", off), bad[:off]
	case 3:
		return "longer", append(bad, make([]byte, 1+r.IntN(5000))...)
	case 4: // swap two pages of the file
		n := len(bad) / pageSize
		if n < 2 {
			return "cut", bad[:off]
		}
		i, j := r.IntN(n)*pageSize, r.IntN(n)*pageSize
		copy(bad[i:i+pageSize], b[j:j+pageSize])
		copy(bad[j:j+pageSize], b[i:i+pageSize])
		return fmt.Sprintf("pages at %d and %d swapped", i, j), bad
	case 5: // zero a stretch, as a lost write does
		clear(bad[off:min(len(bad), off+pageSize)])
		return fmt.Sprintf("zeroes at %d", off), bad
	case 6: // another image's file
		if f := foreign[name]; len(f) > 0 {
			return "file of another image", f[r.IntN(len(f))]
		}
		return "empty", nil
	default: // tail of another image's file, or of another file
		for other, f := range foreign {
			from := f[r.IntN(len(f))]
			if other != name || len(from) < off {
				continue
			}
			return fmt.Sprintf("tail of another image from %d", off), append(bad[:off], from[off:]...)
		}
		bad[off]++
		return fmt.Sprintf("byte %d", off), bad
	}
}

// TestSwappedFiles gives the files of one image each other's names.
func TestSwappedFiles(t *testing.T) {
	d := testDir(t)
	w := writeTest(t, d, testID, Options{}, 1)
	names := fileNames(w)
	for i, a := range names {
		for _, b := range names[i+1:] {
			swap(t, w.Dir, a, b)
			if err := fullCheck(d, testID); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s and %s swapped: %v", a, b, err)
			}
			swap(t, w.Dir, a, b)
		}
		if err := os.Rename(filepath.Join(w.Dir, a), filepath.Join(w.Dir, "x")); err != nil {
			t.Fatal(err)
		}
		if err := fullCheck(d, testID); !errors.Is(err, ErrIncomplete) {
			t.Errorf("%s missing: %v", a, err)
		}
		if err := os.Rename(filepath.Join(w.Dir, "x"), filepath.Join(w.Dir, a)); err != nil {
			t.Fatal(err)
		}
	}
}

func swap(t *testing.T, dir, a, b string) {
	t.Helper()
	a, b = filepath.Join(dir, a), filepath.Join(dir, b)
	if err := errors.Join(os.Rename(a, a+".x"), os.Rename(b, a), os.Rename(a+".x", b)); err != nil {
		t.Fatal(err)
	}
}

// TestSymlinks: a file or directory that is a symbolic link is never followed.
func TestSymlinks(t *testing.T) {
	d := testDir(t)
	w := writeTest(t, d, testID, Options{}, 1)
	p := filepath.Join(w.Dir, ProcessFile(1000, testID.Epoch))
	if err := errors.Join(os.Rename(p, p+".real"), os.Symlink(p+".real", p)); err != nil {
		t.Fatal(err)
	}
	if err := fullCheck(d, testID); err == nil {
		t.Error("link to a file was followed")
	}
	if err := errors.Join(os.Remove(p), os.Rename(p+".real", p), os.Rename(w.Dir, w.Dir+".real"), os.Symlink(w.Dir+".real", w.Dir)); err != nil {
		t.Fatal(err)
	}
	if err := fullCheck(d, testID); err == nil {
		t.Error("link to a directory was followed")
	}
}

func FuzzManifest(f *testing.F) {
	good, err := encodeManifest(testManifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(manifestMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= manifestHeader { // let the fuzzer get past the checksum
			sum := manifestSum(b)
			copy(b[40:], sum[:])
		}
		m, err := decodeManifest(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrIncomplete) && !errors.Is(err, ErrVersion) {
				t.Errorf("unexpected error %v", err)
			}
			return
		}
		if _, err := encodeManifest(m); err != nil {
			t.Errorf("decoded manifest does not encode: %v", err)
		}
	})
}

func FuzzPageFile(f *testing.F) {
	d := testDir(f)
	w := writeTest(f, d, testID, Options{}, 1)
	b, err := os.ReadFile(filepath.Join(w.Dir, ObjectFile(1, testID.Epoch)))
	if err != nil {
		f.Fatal(err)
	}
	at := len(b) - trailerSize - runEntrySize - 2*8 // one run of two pages
	f.Add(b[:headerSize], b[at:len(b)-trailerSize], b[len(b)-trailerSize:], int64(len(b)))
	f.Fuzz(func(t *testing.T, header, index, tail []byte, size int64) {
		part, c, sum, err := decodeHeader(header)
		if err != nil {
			return
		}
		if size < headerSize+trailerSize {
			return
		}
		tr, err := decodeTrailer(tail, sum, size)
		if err != nil {
			return
		}
		if tr.runs > uint64(size)/runEntrySize || tr.dataPages > uint64(size)/8 {
			t.Errorf("%d runs of %d pages in %d bytes", tr.runs, tr.dataPages, size)
		}
		tr.indexSum = xxh3.Hash(index) // let the fuzzer get past the checksum
		segs, runs, err := decodeIndex(index, tr, c, part.Epoch)
		if err != nil {
			return
		}
		var sums int
		for _, r := range runs {
			sums += len(r.sums)
			if r.seg > len(segs) {
				t.Errorf("run of segment %d of %d", r.seg, len(segs))
			}
		}
		if len(runs) > len(index)/runEntrySize || sums > len(index)/8 {
			t.Errorf("%d runs from %d bytes of index", len(runs), len(index))
		}
	})
}

func FuzzCommitRecord(f *testing.F) {
	f.Add([]byte("{}\n0000000000000000\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseCommit(b) //nolint:errcheck // must not panic
		if kind, id, epoch, ok := parsePart(string(b)); ok {
			if back := (partID{Identity: Identity{Epoch: epoch}, kind: kind, id: id}).name(); back != string(b) {
				t.Errorf("%q is %q", b, back)
			}
		}
	})
}
