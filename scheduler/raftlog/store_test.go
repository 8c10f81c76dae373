package raftlog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func entry(i uint64) *raft.Log {
	return &raft.Log{
		Index: i, Term: i / 3, Type: raft.LogCommand, Data: []byte(fmt.Sprintf("command %d", i)),
		Extensions: []byte{byte(i)}, AppendedAt: time.Unix(1700000000, int64(i)),
	}
}

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	s := open(t, path)
	bounds := func(first, last uint64) {
		t.Helper()
		f, err := s.FirstIndex()
		l, err2 := s.LastIndex()
		if err != nil || err2 != nil || f != first || l != last {
			t.Fatalf("bounds %d..%d (%v, %v), want %d..%d", f, l, err, err2, first, last)
		}
	}
	bounds(0, 0)
	var logs []*raft.Log
	for i := uint64(1); i <= 300; i++ {
		logs = append(logs, entry(i))
	}
	if err := s.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	bounds(1, 300)
	if err := s.DeleteRange(1, 100); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteRange(290, 400); err != nil {
		t.Fatal(err)
	}
	bounds(101, 289)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	bounds(101, 289)
	for i := uint64(101); i <= 289; i++ {
		var got raft.Log
		if err := s.GetLog(i, &got); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(*entry(i), got); d != "" {
			t.Fatal(d)
		}
	}
	if err := s.GetLog(100, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("deleted entry: %v", err)
	}
	// An entry may be replaced, as a follower does with what was not committed.
	if err := s.StoreLog(&raft.Log{Index: 200, Term: 99}); err != nil {
		t.Fatal(err)
	}
	var got raft.Log
	if err := s.GetLog(200, &got); err != nil || got.Term != 99 || len(got.Data) != 0 || !got.AppendedAt.IsZero() {
		t.Errorf("replaced entry: %+v, %v", got, err)
	}
}

func TestStable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	s := open(t, path)
	if v, err := s.Get([]byte("x")); v != nil || err != nil {
		t.Errorf("unknown key: %v, %v", v, err)
	}
	if v, err := s.GetUint64([]byte("x")); v != 0 || err != nil {
		t.Errorf("unknown number: %v, %v", v, err)
	}
	if err := errors.Join(s.Set([]byte("a"), []byte("b")), s.SetUint64([]byte("n"), 1<<40)); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	s = open(t, path)
	if v, err := s.Get([]byte("a")); string(v) != "b" || err != nil {
		t.Errorf("a = %q, %v", v, err)
	}
	if v, err := s.GetUint64([]byte("n")); v != 1<<40 || err != nil {
		t.Errorf("n = %d, %v", v, err)
	}
	if _, err := s.GetUint64([]byte("a")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("number of one byte: %v", err)
	}
}

func TestDamagedRecord(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "log"))
	raw, err := encode(entry(7))
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 0x10
		if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(logBucket()).Put(key(7), bad) }); err != nil {
			t.Fatal(err)
		}
		if err := s.GetLog(7, new(raft.Log)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	for n := range raw {
		if err := decode(raw[:n], new(raft.Log)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d: %v", n, err)
		}
	}
}

// TestTornCopies takes the file as it is on disk after every write, as a power
// cut would leave it, and demands everything that was acknowledged by then.
func TestTornCopies(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "log"))
	for i := uint64(1); i <= 40; i++ {
		if err := errors.Join(s.StoreLog(entry(i)), s.SetUint64([]byte("term"), i)); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			if err := s.DeleteRange(1, i-5); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := os.ReadFile(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "copy")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Open(path)
		if err != nil {
			t.Fatalf("after %d: %v", i, err)
		}
		last, err := c.LastIndex()
		term, err2 := c.GetUint64([]byte("term"))
		if err != nil || err2 != nil || last != i || term != i {
			t.Fatalf("after %d: last %d, term %d, %v, %v", i, last, term, err, err2)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKilled kills a writing process again and again; whatever it had said to
// be stored must be there.
func TestKilled(t *testing.T) {
	if path := os.Getenv("RAFTLOG_WRITE"); path != "" {
		writeForever(path)
		return
	}
	path := filepath.Join(t.TempDir(), "log")
	for round := range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "RAFTLOG_WRITE="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := uint64(0)
		sc := bufio.NewScanner(out)
		for n := 0; sc.Scan(); {
			if v, err := strconv.ParseUint(strings.TrimSpace(sc.Text()), 10, 64); err == nil {
				said = v
				if n++; n == 15+7*round {
					cancel() // SIGKILL; what it says after that still counts
				}
			}
		}
		_ = cmd.Wait()
		cancel()
		s, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		last, err := s.LastIndex()
		if err != nil || last < said || said == 0 {
			t.Fatalf("round %d: said %d, kept %d, %v", round, said, last, err)
		}
		for i := uint64(1); i <= last; i++ {
			var l raft.Log
			if err := s.GetLog(i, &l); err != nil || !bytes.Equal(l.Data, entry(i).Data) {
				t.Fatalf("round %d: entry %d: %v", round, i, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func writeForever(path string) {
	s, err := Open(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	last, err := s.LastIndex()
	for i := last + 1; err == nil; i++ {
		if err = s.StoreLog(entry(i)); err == nil {
			fmt.Println(i)
		}
	}
	fmt.Println(err)
}

func FuzzDecode(f *testing.F) {
	raw, err := encode(entry(3))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var l raft.Log
		if decode(raw, &l) != nil {
			return
		}
		back, err := encode(&l)
		if err != nil || !bytes.Equal(back, raw) {
			t.Fatalf("%x -> %+v -> %x (%v)", raw, l, back, err)
		}
	})
}
