package image

import (
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestDigests: what is computed while bytes come in pieces of any size is what
// is read from the file, and what the definition says.
func TestDigests(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 5))
	for _, size := range []int{0, 1, pieceBytes - 1, pieceBytes, pieceBytes + 1, 2*pieceBytes + 7} {
		data := make([]byte, size)
		for i := 0; i < size; i += 1 + rnd.IntN(999) {
			data[i] = byte(rnd.Uint32())
		}
		h := newPieceHasher()
		for rest := data; len(rest) > 0; {
			n := min(len(rest), rnd.IntN(2<<20))
			h.write([][]byte{rest[:n/2], rest[n/2 : n]})
			rest = rest[n:]
		}
		got := h.sum()
		outer := sha256.New()
		for rest := data; len(rest) > 0; rest = rest[min(len(rest), pieceBytes):] {
			s := sha256.Sum256(rest[:min(len(rest), pieceBytes)])
			outer.Write(s[:])
		}
		if want := hex.EncodeToString(outer.Sum(nil)); got != want {
			t.Errorf("%d bytes: %s, want %s", size, got, want)
		}
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		read, err := hashFile(t.Context(), f, 3)
		if err != nil || read.SHA256 != got || read.Size != int64(size) {
			t.Errorf("%d bytes: read %+v (%v), want %s", size, read, err, got)
		}
		_ = f.Close()
	}
}
