package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// pages returns n pages of seeded noise in which every zeroEvery-th page is
// zero.
func pages(seed uint64, n, zeroEvery int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n*pageSize)
	for i := 0; i < n; i++ {
		if zeroEvery > 0 && i%zeroEvery == 0 {
			continue
		}
		for j := i * pageSize; j < (i+1)*pageSize; j += 8 {
			b[j] = byte(r.Uint32())
		}
	}
	return b
}

const testBase = 0x7f0000000000

// testManifest has two processes, an object, and a blob of every kind.
func testManifest() *Manifest {
	thread := func(tid int) Thread {
		return Thread{TID: tid, XState: bytes.Repeat([]byte{byte(tid)}, 2432), Pending: [][]byte{make([]byte, 128)}}
	}
	return &Manifest{
		Node:  "n1",
		Ranks: map[job.Rank]int{0: 1000, 1: 1001},
		Processes: []Process{
			{
				PID: 1000, Threads: []Thread{thread(1000), thread(1002)}, MM: MM{Auxv: []byte{1, 2}},
				Maps: []Mapping{{Start: testBase, End: testBase + 64*pageSize, Kind: MapAnon}},
				FDs:  []FD{{Num: 0, Desc: 1}, {Num: 3, Desc: 2}},
			},
			{PID: 1001, PPID: 1000, Threads: []Thread{thread(1001)}},
		},
		Descriptions: []Description{
			{Kind: FDPipe, Pipe: &PipeEnd{ID: 9, Data: []byte("in the pipe")}},
			{Kind: FDTCP, TCP: &TCPEnd{Local: "10.0.0.1:1", Recv: []byte("r"), Send: []byte{}}},
			{Kind: FDUnixPair, Unix: &UnixEnd{Type: 1, Peer: 3, Queue: [][]byte{[]byte("m1"), nil, []byte("m3")}}},
		},
		Objects: []Object{{Kind: ObjectMemfd, Name: "x", Size: 5000}},
		PMI:     []byte("pmi state"),
		Stdio:   []StdioCount{{Rank: 0, FD: 1, Bytes: 17}},
		Host:    Host{Machine: "x86_64", PageSize: 4096},
	}
}

var testID = Identity{Job: 7, Pod: 2, Epoch: 3, Incarnation: 1}

// writeTest writes an image of testManifest with about 200 KB of memory.
func writeTest(t testing.TB, d *JobDir, id Identity, o Options, seed uint64) podapi.Written {
	t.Helper()
	written, err := tryWrite(d, id, o, seed)
	if err != nil {
		t.Fatal(err)
	}
	return written
}

func tryWrite(d *JobDir, id Identity, o Options, seed uint64) (_ podapi.Written, err error) {
	w, err := d.Create(id, o)
	if err != nil {
		return podapi.Written{}, err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	for _, pid := range []int{1000, 1001} {
		p, err := w.Process(pid)
		if err != nil {
			return podapi.Written{}, err
		}
		s := seed + uint64(pid)
		if err := errors.Join(p.Write(testBase, pages(s, 20, 7)), p.Write(testBase+20*pageSize, pages(s+1, 3, 0)),
			p.Write(testBase+40*pageSize, pages(s+2, 3, 2)), p.Close()); err != nil {
			return podapi.Written{}, err
		}
	}
	p, err := w.Object(1)
	if err != nil {
		return podapi.Written{}, err
	}
	if err := errors.Join(p.Write(0, pages(seed, 2, 0)), p.Close()); err != nil {
		return podapi.Written{}, err
	}
	return w.Commit(context.Background(), testManifest())
}

func testDir(t testing.TB) *JobDir {
	t.Helper()
	s, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.CreateJob(7, -1, -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(d.Close(), s.Close()) })
	return d
}

func TestRoundTrip(t *testing.T) {
	for _, o := range []Options{{}, {Direct: true}, {Compression: CompressS2}, {Compression: CompressZstd}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			d := testDir(t)
			written := writeTest(t, d, testID, o, 1)
			r, err := d.Open(testID.Epoch, testID.Pod)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if err := errors.Join(r.Verify(t.Context(), 2), r.VerifyDigests(t.Context())); err != nil {
				t.Fatal(err)
			}
			want := testManifest()
			want.Version, want.Identity = Version, testID
			want.Files, want.Tails = r.Manifest().Files, r.Manifest().Tails
			if diff := cmp.Diff(want, r.Manifest()); diff != "" {
				t.Errorf("manifest (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(written, r.Written(), cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "Dir" }, cmp.Ignore())); diff != "" {
				t.Errorf("written (-want +got):\n%s", diff)
			}
			if written.Dir != filepath.Join(d.Path(), "3", "pod2") {
				t.Errorf("dir %s", written.Dir)
			}
			checkMemory(t, r)
			checkModes(t, written)
		})
	}
}

func checkMemory(t *testing.T, r *Reader) {
	t.Helper()
	for _, pid := range []int{1000, 1001} {
		p, err := r.Process(pid)
		if err != nil {
			t.Fatal(err)
		}
		s := 1 + uint64(pid)
		want := append(append(pages(s, 20, 7), pages(s+1, 3, 0)...), make([]byte, 17*pageSize)...)
		want = append(want, pages(s+2, 3, 2)...)
		got := make([]byte, len(want))
		if err := p.ReadAt(testBase, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("process %d: memory differs (%v)", pid, err)
		}
		if data, zero := p.Pages(); data != 17+3+1 || zero != 3+2 {
			t.Errorf("process %d: %d data and %d zero pages", pid, data, zero)
		}
		if err := p.ReadAt(testBase+19*pageSize, got[:2*pageSize]); err != nil || !bytes.Equal(got[:2*pageSize], want[19*pageSize:21*pageSize]) {
			t.Errorf("process %d: a part of two runs differs (%v)", pid, err)
		}
	}
}

func checkModes(t *testing.T, w podapi.Written) {
	t.Helper()
	err := filepath.WalkDir(w.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if want := fs.FileMode(0o600); err == nil && info.Mode().Perm() != want && !(e.IsDir() && info.Mode().Perm() == 0o700) {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if !e.IsDir() {
			delete(w.Files, e.Name())
		}
		return err
	})
	if err != nil || len(w.Files) != 0 {
		t.Errorf("files %v not there (%v)", w.Files, err)
	}
	if n := filepath.Join(filepath.Dir(w.Dir), ".pod2.tmp"); exists(n) {
		t.Errorf("%s was left", n)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
