package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/lampause/lampause/internal/podapi"
)

// The digest of a page file is the SHA-256 of the SHA-256s of its pieces, each
// of pieceBytes but the last: as hard to forge as that of the whole, and several
// cores can work on one file. That of a manifest is its plain SHA-256.
const (
	pieceBytes = 4 << 20

	// hashWorkers is how many pieces of a file that is being written are hashed
	// at a time: two cores hash faster than disks write.
	hashWorkers = 2
)

// pieceHasher computes the digest of a file from its bytes in order. It is used
// by one goroutine; others do the work.
type pieceHasher struct {
	slots chan struct{}
	done  sync.WaitGroup
	sums  []*[sha256.Size]byte
	cur   [][]byte // of the piece that is not whole yet
	have  int      // bytes in cur
}

func newPieceHasher() *pieceHasher {
	return &pieceHasher{slots: make(chan struct{}, hashWorkers)}
}

// write takes the next bytes, which must stay as they are until sum returns. It
// waits when the workers are behind.
func (h *pieceHasher) write(bufs [][]byte) {
	for _, b := range bufs {
		for len(b) > 0 {
			n := min(len(b), pieceBytes-h.have)
			h.cur = append(h.cur, b[:n:n])
			b = b[n:]
			if h.have += n; h.have == pieceBytes {
				h.next()
			}
		}
	}
}

// next hands a piece to a worker.
func (h *pieceHasher) next() {
	bufs, sum := h.cur, new([sha256.Size]byte)
	h.cur, h.have, h.sums = nil, 0, append(h.sums, sum)
	h.slots <- struct{}{}
	h.done.Go(func() {
		s := sha256.New()
		for _, b := range bufs {
			s.Write(b)
		}
		s.Sum(sum[:0])
		<-h.slots
	})
}

// sum waits for the workers and returns the digest.
func (h *pieceHasher) sum() string {
	if h.have > 0 {
		h.next()
	}
	h.done.Wait()
	return joinSums(h.sums)
}

func joinSums(sums []*[sha256.Size]byte) string {
	s := sha256.New()
	for _, sum := range sums {
		s.Write(sum[:])
	}
	return hex.EncodeToString(s.Sum(nil))
}

// hashFile returns size and digest of a page file, read with pread by workers
// goroutines.
func hashFile(ctx context.Context, f *os.File, workers int) (podapi.File, error) {
	st, err := f.Stat()
	if err != nil {
		return podapi.File{}, err
	}
	sums := make([]*[sha256.Size]byte, (st.Size()+pieceBytes-1)/pieceBytes)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, workers))
	for i := range sums {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			h := sha256.New()
			part := io.NewSectionReader(f, int64(i)*pieceBytes, pieceBytes)
			if _, err := io.CopyBuffer(h, struct{ io.Reader }{part}, make([]byte, 256<<10)); err != nil {
				return err
			}
			sums[i] = (*[sha256.Size]byte)(h.Sum(nil))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return podapi.File{}, err
	}
	return podapi.File{Size: st.Size(), SHA256: joinSums(sums)}, nil
}

// digestOf returns size and SHA-256 of data.
func digestOf(data []byte) podapi.File {
	sum := sha256.Sum256(data)
	return podapi.File{Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
}
