// Package raftlog keeps a raft log and raft's stable values in one bbolt file.
//
// Mechanism: two buckets, "log" (8-byte big-endian index -> record) and
// "stable" (key -> value). Every write is one bbolt transaction, which ends
// with fdatasync of the pages and then of the meta page, so that an entry is
// on disk before StoreLogs returns and a crash in between leaves the former
// state. Each record carries a CRC-32C, since bbolt has none: a damaged entry
// is an error, never another command.
//
// Record layout, little-endian:
//
//	offset size
//	0      4    CRC-32C of the rest
//	4      1    layout version, 1
//	5      1    raft.LogType
//	6      8    term
//	14     8    AppendedAt, Unix nanoseconds, 0 for none
//	22     4    length D of the data
//	26     D    data
//	26+D   ...  extensions
//
// Thread-safety: a Store may be used by any number of goroutines. It does not
// compact; raft calls DeleteRange after a snapshot and bbolt reuses the pages.
package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// ErrCorrupt is in the chain of errors about damaged records.
var ErrCorrupt = errors.New("corrupt record")

const (
	headLen     = 26
	layout      = 1
	lockTimeout = 5 * time.Second
	mapBytes    = 64 << 20 // mapped from the start, so that readers do not stop writers while it grows
)

// Store is a raft.LogStore and a raft.StableStore.
type Store struct {
	db *bbolt.DB
}

// Open opens or makes the file at path, with mode 0600.
//
// Expected errors: the file is locked by another process for more than five
// seconds, or cannot be made or read.
func Open(path string) (*Store, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: lockTimeout, InitialMmapSize: mapBytes, FreelistType: bbolt.FreelistMapType,
	})
	if err != nil {
		return nil, fmt.Errorf("raftlog: open %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucketIfNotExists(logBucket()); err != nil {
			return err
		}
		_, err := tx.CreateBucketIfNotExists(stableBucket())
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raftlog: prepare %s: %w", path, err), db.Close())
	}
	return &Store{db: db}, nil
}

// Close releases the file. Later calls fail.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("raftlog: close: %w", err)
	}
	return nil
}

func logBucket() []byte    { return []byte("log") }
func stableBucket() []byte { return []byte("stable") }

// FirstIndex implements raft.LogStore.
func (s *Store) FirstIndex() (uint64, error) { return s.edge((*bbolt.Cursor).First) }

// LastIndex implements raft.LogStore.
func (s *Store) LastIndex() (uint64, error) { return s.edge((*bbolt.Cursor).Last) }

func (s *Store) edge(move func(*bbolt.Cursor) ([]byte, []byte)) (uint64, error) {
	var index uint64
	err := s.db.View(func(tx *bbolt.Tx) error {
		if k, _ := move(tx.Bucket(logBucket()).Cursor()); k != nil {
			index = binary.BigEndian.Uint64(k)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("raftlog: %w", err)
	}
	return index, nil
}

// GetLog implements raft.LogStore.
//
// Expected errors: raft.ErrLogNotFound; ErrCorrupt.
func (s *Store) GetLog(index uint64, log *raft.Log) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(logBucket()).Get(key(index))
		if raw == nil {
			return raft.ErrLogNotFound
		}
		if err := decode(raw, log); err != nil {
			return fmt.Errorf("raftlog: entry %d: %w", index, err)
		}
		log.Index = index
		return nil
	})
}

// StoreLog implements raft.LogStore.
func (s *Store) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore: all of logs are on disk when it returns,
// or none.
func (s *Store) StoreLogs(logs []*raft.Log) error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(logBucket())
		b.FillPercent = 0.9 // keys come in ascending order
		for _, l := range logs {
			raw, err := encode(l)
			if err != nil {
				return fmt.Errorf("entry %d: %w", l.Index, err)
			}
			if err := b.Put(key(l.Index), raw); err != nil {
				return fmt.Errorf("entry %d: %w", l.Index, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("raftlog: store: %w", err)
	}
	return nil
}

// DeleteRange implements raft.LogStore; both ends are included.
func (s *Store) DeleteRange(from, to uint64) error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		c := tx.Bucket(logBucket()).Cursor()
		for k, _ := c.Seek(key(from)); k != nil && binary.BigEndian.Uint64(k) <= to; k, _ = c.Seek(key(from)) {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("raftlog: delete %d..%d: %w", from, to, err)
	}
	return nil
}

// Set implements raft.StableStore.
func (s *Store) Set(k, v []byte) error {
	err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(stableBucket()).Put(k, v) })
	if err != nil {
		return fmt.Errorf("raftlog: set %s: %w", k, err)
	}
	return nil
}

// Get implements raft.StableStore: nil for an unknown key. The caller owns the
// slice.
func (s *Store) Get(k []byte) ([]byte, error) {
	var v []byte
	err := s.db.View(func(tx *bbolt.Tx) error {
		v = append(v, tx.Bucket(stableBucket()).Get(k)...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("raftlog: get %s: %w", k, err)
	}
	return v, nil
}

// SetUint64 implements raft.StableStore.
func (s *Store) SetUint64(k []byte, v uint64) error {
	return s.Set(k, binary.LittleEndian.AppendUint64(nil, v))
}

// GetUint64 implements raft.StableStore: 0 for an unknown key.
//
// Expected errors: ErrCorrupt when the value has another length.
func (s *Store) GetUint64(k []byte) (uint64, error) {
	v, err := s.Get(k)
	switch {
	case err != nil || len(v) == 0:
		return 0, err
	case len(v) != 8:
		return 0, fmt.Errorf("raftlog: get %s: %d bytes: %w", k, len(v), ErrCorrupt)
	}
	return binary.LittleEndian.Uint64(v), nil
}

func key(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

func encode(l *raft.Log) ([]byte, error) {
	if uint64(len(l.Data)) > math.MaxUint32 {
		return nil, fmt.Errorf("%d bytes of data: too many", len(l.Data))
	}
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	raw := make([]byte, 4, headLen+len(l.Data)+len(l.Extensions))
	raw = append(raw, layout, byte(l.Type))
	raw = binary.LittleEndian.AppendUint64(raw, l.Term)
	raw = binary.LittleEndian.AppendUint64(raw, uint64(at))
	raw = binary.LittleEndian.AppendUint32(raw, uint32(len(l.Data)))
	raw = append(raw, l.Data...)
	raw = append(raw, l.Extensions...)
	binary.LittleEndian.PutUint32(raw, checksum(raw[4:]))
	return raw, nil
}

// decode fills in log but for its index. It copies: raw belongs to bbolt.
func decode(raw []byte, log *raft.Log) error {
	if len(raw) < headLen {
		return fmt.Errorf("%d bytes: %w", len(raw), ErrCorrupt)
	}
	if binary.LittleEndian.Uint32(raw) != checksum(raw[4:]) {
		return fmt.Errorf("checksum: %w", ErrCorrupt)
	}
	n := uint64(binary.LittleEndian.Uint32(raw[22:]))
	if raw[4] != layout || n > uint64(len(raw)-headLen) {
		return fmt.Errorf("layout %d with %d bytes of data: %w", raw[4], n, ErrCorrupt)
	}
	*log = raft.Log{Type: raft.LogType(raw[5]), Term: binary.LittleEndian.Uint64(raw[6:])}
	if at := int64(binary.LittleEndian.Uint64(raw[14:])); at != 0 {
		log.AppendedAt = time.Unix(0, at)
	}
	log.Data = append(log.Data, raw[headLen:headLen+n]...)
	log.Extensions = append(log.Extensions, raw[headLen+n:]...)
	return nil
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
