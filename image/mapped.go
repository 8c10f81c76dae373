package image

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// maxHashedFile bounds the files without a build-id that are identified by
// their contents, in bytes; of larger ones only size counts.
const maxHashedFile = 64 << 20

// IdentifyFile describes the file at path so that a restart can tell whether
// it is the same: build-id for ELF files that have one, else SHA-256 up to
// 64 MB. It reads the file; callers in a hurry cache by (device, inode, size,
// modification time).
//
// Expected errors: those of opening and reading path.
func IdentifyFile(path string) (MappedFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return MappedFile{}, fmt.Errorf("identify: %w", err)
	}
	defer f.Close()
	id, err := identify(f, path)
	if err != nil {
		return MappedFile{}, fmt.Errorf("identify %s: %w", path, err)
	}
	return id, nil
}

// IdentifyOpen is IdentifyFile for an open file that is reached by path; it
// reads with pread only.
//
// Expected errors: those of reading.
func IdentifyOpen(f *os.File, path string) (MappedFile, error) {
	id, err := identify(f, path)
	if err != nil {
		return MappedFile{}, fmt.Errorf("identify %s: %w", path, err)
	}
	return id, nil
}

func identify(f *os.File, path string) (MappedFile, error) {
	st, err := f.Stat()
	if err != nil {
		return MappedFile{}, err
	}
	m := MappedFile{Path: path, Size: st.Size()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		m.Dev, m.Ino = sys.Dev, sys.Ino
	}
	if !st.Mode().IsRegular() {
		return m, nil
	}
	if m.BuildID = buildID(f); m.BuildID != "" || st.Size() > maxHashedFile {
		return m, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, st.Size())); err != nil {
		return MappedFile{}, err
	}
	m.SHA256 = hex.EncodeToString(h.Sum(nil))
	return m, nil
}

// buildID returns the GNU build-id of an ELF file, "" if it has none.
// Source: elf(5), NT_GNU_BUILD_ID.
func buildID(r io.ReaderAt) string {
	f, err := elf.NewFile(r)
	if err != nil {
		return ""
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<16 {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil && !errors.Is(err, io.EOF) {
			continue
		}
		if id := noteBuildID(notes, f.ByteOrder); id != "" {
			return id
		}
	}
	return ""
}

func noteBuildID(b []byte, order binary.ByteOrder) string {
	const ntGNUBuildID = 3
	pad := func(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
	for len(b) >= 12 {
		nameLen, descLen, kind := order.Uint32(b), order.Uint32(b[4:]), order.Uint32(b[8:])
		b = b[12:]
		if pad(nameLen)+pad(descLen) > uint64(len(b)) {
			return ""
		}
		name, desc := b[:nameLen], b[pad(nameLen):pad(nameLen)+uint64(descLen)]
		if kind == ntGNUBuildID && string(name) == "GNU\x00" {
			return hex.EncodeToString(desc)
		}
		b = b[pad(nameLen)+pad(descLen):]
	}
	return ""
}

// Same reports how now, the file that is at m's path today, differs from m in
// a way that matters to a process that has it mapped. Device and inode numbers
// may differ: another node has its own copy.
//
// Expected errors: ErrMismatch, naming the file.
func (m MappedFile) Same(now MappedFile) error {
	switch {
	case m.Size != now.Size:
		return fmt.Errorf("%w: %s: size was %d, is %d", ErrMismatch, m.Path, m.Size, now.Size)
	case m.BuildID != now.BuildID:
		return fmt.Errorf("%w: %s: build-id was %q, is %q", ErrMismatch, m.Path, m.BuildID, now.BuildID)
	case m.SHA256 != "" && now.SHA256 != "" && m.SHA256 != now.SHA256:
		return fmt.Errorf("%w: %s: contents changed", ErrMismatch, m.Path)
	}
	return nil
}
