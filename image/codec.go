package image

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
)

// The format of a manifest. All numbers are little-endian.
//
//	0    8   magic "LAMPMANI"
//	8    4   version
//	12   4   zero
//	16   8   length of the JSON part
//	24   8   number of blobs
//	32   8   length of all blobs together
//	40   32  SHA-256 of everything else: bytes 0..39 and 72 to the end
//	72       JSON of Manifest, its big byte fields left out
//	         blob lengths, 8 bytes each; all ones for a nil blob
//	         blobs
//
// Which field is which blob follows from the order of eachBlob.
const (
	manifestMagic  = "LAMPMANI"
	manifestHeader = 72
	nilBlob        = ^uint64(0)

	// maxManifest bounds a manifest in bytes. Socket contents dominate: tens
	// of megabytes per connection at worst.
	maxManifest = 4 << 30
)

// eachBlob calls fn for every big byte field of m, in the order of the format.
func eachBlob(m *Manifest, fn func(*[]byte) error) error {
	fields := []*[]byte{&m.PMI}
	for i := range m.Processes {
		p := &m.Processes[i]
		fields = append(fields, &p.MM.Auxv)
		for j := range p.Threads {
			fields = append(fields, &p.Threads[j].XState)
		}
	}
	for i := range m.Descriptions {
		d := &m.Descriptions[i]
		if d.Pipe != nil {
			fields = append(fields, &d.Pipe.Data)
		}
		if d.TCP != nil {
			fields = append(fields, &d.TCP.Recv, &d.TCP.Send)
		}
		if d.Unix != nil {
			for j := range d.Unix.Queue {
				fields = append(fields, &d.Unix.Queue[j])
			}
		}
	}
	for _, f := range fields {
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

// encodeManifest returns m in stored form. m's blobs are taken out while it
// runs and put back before it returns.
func encodeManifest(m *Manifest) ([]byte, error) {
	var blobs [][]byte
	_ = eachBlob(m, func(b *[]byte) error {
		blobs = append(blobs, *b)
		*b = nil
		return nil
	})
	text, err := json.Marshal(m)
	i := 0
	_ = eachBlob(m, func(b *[]byte) error {
		*b = blobs[i]
		i++
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	total := 0
	for _, b := range blobs {
		total += len(b)
	}
	le := binary.LittleEndian
	out := make([]byte, manifestHeader, manifestHeader+len(text)+8*len(blobs)+total)
	copy(out, manifestMagic)
	le.PutUint32(out[8:], Version)
	le.PutUint64(out[16:], uint64(len(text)))
	le.PutUint64(out[24:], uint64(len(blobs)))
	le.PutUint64(out[32:], uint64(total)) //nolint:gosec // a sum of lengths
	out = append(out, text...)
	for _, b := range blobs {
		n := uint64(len(b))
		if b == nil {
			n = nilBlob
		}
		out = le.AppendUint64(out, n)
	}
	for _, b := range blobs {
		out = append(out, b...)
	}
	sum := manifestSum(out)
	copy(out[40:], sum[:])
	return out, nil
}

func manifestSum(b []byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	h.Write(b[:40])
	h.Write(b[manifestHeader:])
	h.Sum(sum[:0])
	return sum
}

// decodeManifest checks and parses a stored manifest. Blobs of the result
// share memory with b. Nothing is allocated by numbers that b does not cover.
//
// Expected errors: ErrCorrupt, ErrIncomplete, ErrVersion.
func decodeManifest(b []byte) (*Manifest, error) {
	le := binary.LittleEndian
	if len(b) < manifestHeader || string(b[:8]) != manifestMagic {
		return nil, fmt.Errorf("%w: not a manifest", ErrCorrupt)
	}
	if sum := manifestSum(b); string(sum[:]) != string(b[40:manifestHeader]) {
		return nil, fmt.Errorf("%w: manifest checksum", ErrCorrupt)
	}
	if v := le.Uint32(b[8:]); v != Version {
		return nil, versionError("manifest", uint64(v))
	}
	if le.Uint32(b[12:]) != 0 {
		return nil, fmt.Errorf("%w: manifest header", ErrCorrupt)
	}
	textLen, count, total := le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:])
	rest := b[manifestHeader:]
	size := uint64(len(rest))
	if textLen > size || count > (size-textLen)/8 || total != size-textLen-8*count {
		return nil, fmt.Errorf("%w: manifest lengths", ErrCorrupt)
	}
	m := new(Manifest)
	if err := json.Unmarshal(rest[:textLen], m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrCorrupt, err)
	}
	if err := takeBlobs(m, rest[textLen:textLen+8*count], rest[textLen+8*count:]); err != nil {
		return nil, err
	}
	return m, m.Validate()
}

// takeBlobs distributes blobs, whose lengths are in lens, over m.
func takeBlobs(m *Manifest, lens, blobs []byte) error {
	short := fmt.Errorf("%w: manifest blobs", ErrCorrupt)
	err := eachBlob(m, func(f *[]byte) error {
		if len(lens) < 8 {
			return short
		}
		n := leUint64(lens)
		lens = lens[8:]
		if n == nilBlob {
			*f = nil
			return nil
		}
		if n > uint64(len(blobs)) {
			return short
		}
		*f = blobs[:n:n]
		blobs = blobs[n:]
		return nil
	})
	if err == nil && (len(lens) > 0 || len(blobs) > 0) {
		return short
	}
	return err
}

// sortedKeys returns the keys of m, ascending.
func sortedKeys[K ~int, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
