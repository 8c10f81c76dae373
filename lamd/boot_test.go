package lamd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lampause/lampause/job"
)

func TestBootRises(t *testing.T) {
	b := bootFile{path: filepath.Join(t.TempDir(), "state", "boot")}
	for _, c := range []struct{ want, got job.Boot }{{1, 1}, {1, 1}, {5, 5}, {3, 5}, {6, 6}, {1, 6}} {
		got, err := b.atLeast(c.want)
		if err != nil || got != c.got {
			t.Errorf("at least %d: %d, %v; want %d", c.want, got, err, c.got)
		}
	}
	left, err := os.ReadDir(filepath.Dir(b.path))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A damaged file must not give an earlier life another go.
func TestBootFileDamaged(t *testing.T) {
	for _, text := range []string{"", "x", "-1", "1 2", "18446744073709551616", "\x00\x00"} {
		b := bootFile{path: filepath.Join(t.TempDir(), "boot")}
		if err := os.WriteFile(b.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := b.atLeast(1); err == nil || !strings.Contains(err.Error(), "boot number") {
			t.Errorf("%q: %d, %v", text, n, err)
		}
		if now, err := os.ReadFile(b.path); err != nil || string(now) != text {
			t.Errorf("%q was replaced by %q, %v", text, now, err)
		}
	}
}

// A crash before the rename leaves the former number, and rubbish beside it
// that nobody reads.
func TestBootFileAfterACrash(t *testing.T) {
	dir := t.TempDir()
	b := bootFile{path: filepath.Join(dir, "boot")}
	if _, err := b.atLeast(4); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".new-123"), []byte("9"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := b.atLeast(1); err != nil || n != 4 {
		t.Errorf("%d, %v", n, err)
	}
}

func TestBootFileThatCannotBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := (bootFile{path: filepath.Join(file, "boot")}).atLeast(1); err == nil {
		t.Errorf("got %d", n)
	}
}
