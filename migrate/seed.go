package migrate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// SeedPath is what the seed is executed as: descriptor 0 of the seed is the
// file that SeedFile returned.
const SeedPath = "/proc/self/fd/0"

// seedSock is the seed's end of its socket. The seed is started with exactly
// two descriptors: 0, its own program, and 1, its socket.
const seedSock = 1

// Seed is a running seed, from which processes are cloned. It must be a child
// of the process that shall be their parent, run in the pod's namespaces with
// CAP_CHECKPOINT_RESTORE (for the pids), and have one thread.
type Seed struct {
	PID  int      // as the caller sees it
	Sock *os.File // our end of the SOCK_SEQPACKET socketpair; the seed's is its descriptor 1
}

// SeedSocket returns a socketpair for a seed: ours, and the one that becomes
// its descriptor 1. Both have close-on-exec set; the caller closes both.
//
// Expected errors: those of socketpair(2).
func SeedSocket() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("migrate: seed socket: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "seed"), os.NewFile(uintptr(fds[1]), "seed-end"), nil
}

// SeedFile returns a memory file with the seed's program, to become its
// descriptor 0. The caller closes it.
//
// Expected errors: those of memfd_create(2).
func SeedFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("lam-seed", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // MFD_EXEC is of Linux 6.3
		fd, err = unix.MemfdCreate("lam-seed", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("migrate: seed: memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "lam-seed")
	if _, err := f.Write(seedELF()); err != nil {
		return nil, errors.Join(fmt.Errorf("migrate: seed: %w", err), f.Close())
	}
	return f, nil
}

// seedELF returns a static program that waits for signals for ever: ELF
// header, one loaded segment, a header that asks for a stack that is not
// executable, and the code.
// Source: elf(5), pause(2).
func seedELF() []byte {
	const (
		base    = 0x10000
		headers = 64 + 2*56
	)
	code := []byte{
		0xb8, 34, 0, 0, 0, // mov eax, SYS_pause
		0x0f, 0x05, // syscall
		0xeb, 0xf7, // jmp to the start
	}
	size := uint64(headers + len(code))
	var b bytes.Buffer
	put := func(v ...any) {
		for _, x := range v {
			_ = binary.Write(&b, binary.LittleEndian, x) // to memory: cannot fail
		}
	}
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	put(uint16(2), uint16(62), uint32(1))              // executable, x86-64, version
	put(uint64(base+headers), uint64(64), uint64(0))   // entry, program headers, sections
	put(uint32(0), uint16(64), uint16(56), uint16(2))  // flags, sizes, number of program headers
	put(uint16(64), uint16(0), uint16(0))              // no sections
	put(uint32(1), uint32(5), uint64(0), uint64(base)) // PT_LOAD, r-x
	put(uint64(base), size, size, uint64(0x1000))      //
	put(uint32(0x6474e551), uint32(6), uint64(0))      // PT_GNU_STACK, rw-
	put(uint64(0), uint64(0), uint64(0), uint64(0), uint64(16))
	b.Write(code)
	return b.Bytes()
}
