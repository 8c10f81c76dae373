package pause

import (
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
)

// TestKeepFilesAbsent: each journal that is not there is noted, whatever the
// inode numbers of the databases are.
func TestKeepFilesAbsent(t *testing.T) {
	dir := t.TempDir()
	ft := &fileTable{}
	var want, got []string
	for i := range uint64(12) {
		d := &description{}
		d.Kind, d.Path, d.File = image.FDFile, filepath.Join(dir, string(rune('a'+i))), &image.FileState{}
		d.id.mode = unix.O_RDWR
		o := &openFile{}
		o.stat.Dev, o.stat.Ino, o.stat.Mode = 1, 100+i, unix.S_IFREG|0o600
		d.holders = []*openFile{o}
		ft.descs = append(ft.descs, d)
		for _, s := range journals() {
			want = append(want, d.Path+s)
		}
	}
	seen := map[fileKey]int{}
	err := keepFiles(ft, "", func(k fileKey, o image.Object) int {
		if seen[k] == 0 {
			seen[k] = len(seen) + 1
			if o.Kind == image.ObjectAbsent {
				got = append(got, o.Name)
			}
		}
		return seen[k]
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d of %d absent journals noted, %v", len(got), len(want), err)
	}
}

// TestDropAbsent: an epoch with files that were not there can be dropped, and
// the next one finds its buffers.
func TestDropAbsent(t *testing.T) {
	g := newGroup(Config{Budget: 64 << 20})
	defer g.close()
	snap := newSnapshot(1)
	snap.objects = []*object{{Object: image.Object{Kind: image.ObjectAbsent}, pages: newMemory(nil, nil)}}
	snap.release(g)
	b, err := g.takeBuffer(t.Context(), pageSize)
	if err != nil {
		t.Fatal(err)
	}
	g.giveBuffer(b)
}
