package proc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// Map is one line of /proc/PID/maps. Flags are the VmFlags of smaps, nil when
// they were not read.
type Map struct {
	kernel.Range
	Prot   uint32 // PROT_*
	Shared bool
	Offset uint64
	Dev    uint64 // as st_dev
	Ino    uint64
	Path   string   // unescaped; with " (deleted)" cut off
	Gone   bool     // the path ended in " (deleted)"
	Flags  []string // "rd", "gd", "nh", ...
}

// HasFlag reports whether VmFlags contain name.
func (m *Map) HasFlag(name string) bool {
	for _, f := range m.Flags {
		if f == name {
			return true
		}
	}
	return false
}

// Special reports whether m is a mapping that the kernel itself placed:
// [vdso], [vvar], [vvar_vclock], [vsyscall].
func (m *Map) Special() bool {
	switch m.Path {
	case "[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]":
		return true
	}
	return false
}

// Maps reads /proc/PID/maps.
func Maps(pid int) ([]Map, error) {
	return readMaps(pid, "maps")
}

// SMaps reads /proc/PID/smaps, which also has the VmFlags; it walks the page
// tables and costs milliseconds per GB.
func SMaps(pid int) ([]Map, error) {
	return readMaps(pid, "smaps")
}

func readMaps(pid int, name string) ([]Map, error) {
	b, err := readProc(pid, name)
	if err != nil {
		return nil, err
	}
	maps, err := ParseMaps(b)
	if err != nil {
		return nil, errorf(pid, "%s: %w", name, err)
	}
	return maps, nil
}

// readProc reads a file of /proc/PID in large pieces; the kernel hands out
// whole lines of a seq_file, so big reads mean few calls and a steadier view.
func readProc(pid int, name string) ([]byte, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/" + name)
	if err != nil {
		return nil, errorf(pid, "%w", err)
	}
	defer func() { _ = f.Close() }() // read only
	buf := make([]byte, 0, 64<<10)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := f.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return nil, errorf(pid, "%w", err)
		}
	}
}

// ParseMaps parses the text of /proc/PID/maps or smaps.
//
// Expected errors: one that quotes the line that is not understood.
func ParseMaps(text []byte) ([]Map, error) {
	var out []Map
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		if len(line) == 0 {
			continue
		}
		if line[0] >= 'A' && line[0] <= 'Z' { // a line of smaps: "Rss: ..."
			if flags, ok := bytes.CutPrefix(line, []byte("VmFlags:")); ok && len(out) > 0 {
				out[len(out)-1].Flags = strings.Fields(string(flags))
			}
			continue
		}
		m, err := parseMapLine(string(line))
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// parseMapLine parses "start-end perms offset major:minor inode   path".
func parseMapLine(line string) (Map, error) {
	bad := func() (Map, error) { return Map{}, fmt.Errorf("maps line %q: not understood", line) }
	var m Map
	var f [5]string
	rest := line
	for i := range f {
		rest = strings.TrimLeft(rest, " ")
		f[i], rest, _ = strings.Cut(rest, " ")
	}
	lo, hi, ok := strings.Cut(f[0], "-")
	if !ok || len(f[1]) != 4 {
		return bad()
	}
	major, minor, ok := strings.Cut(f[3], ":")
	if !ok {
		return bad()
	}
	var errs [6]error
	var maj, mnr uint64
	m.Start, errs[0] = strconv.ParseUint(lo, 16, 64)
	m.End, errs[1] = strconv.ParseUint(hi, 16, 64)
	m.Offset, errs[2] = strconv.ParseUint(f[2], 16, 64)
	maj, errs[3] = strconv.ParseUint(major, 16, 32)
	mnr, errs[4] = strconv.ParseUint(minor, 16, 32)
	m.Ino, errs[5] = strconv.ParseUint(f[4], 10, 64)
	for _, err := range errs {
		if err != nil {
			return bad()
		}
	}
	if m.Start >= m.End {
		return bad()
	}
	for i, bit := range []struct {
		char byte
		prot uint32
	}{{'r', unix.PROT_READ}, {'w', unix.PROT_WRITE}, {'x', unix.PROT_EXEC}} {
		switch f[1][i] {
		case bit.char:
			m.Prot |= bit.prot
		case '-':
		default:
			return bad()
		}
	}
	m.Shared = f[1][3] == 's'
	m.Dev = unix.Mkdev(uint32(maj), uint32(mnr))
	m.Path = unescape(strings.TrimLeft(rest, " "))
	m.Path, m.Gone = strings.CutSuffix(m.Path, " (deleted)")
	return m, nil
}

// unescape undoes the kernel's octal escapes of newlines and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Tasks lists the threads of process pid, ascending.
func Tasks(pid int) ([]int, error) {
	return listNumbers(pid, "task")
}

// FDs lists the descriptors of process pid, ascending.
func FDs(pid int) ([]int, error) {
	return listNumbers(pid, "fd")
}

func listNumbers(pid int, dir string) ([]int, error) {
	d, err := os.Open("/proc/" + strconv.Itoa(pid) + "/" + dir)
	if err != nil {
		return nil, errorf(pid, "%w", err)
	}
	defer func() { _ = d.Close() }() // read only
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, errorf(pid, "%w", err)
	}
	out := make([]int, 0, len(names))
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			out = append(out, n)
		}
	}
	sort.Ints(out)
	return out, nil
}

// Children lists the child processes of all threads of pid, ascending.
func Children(pid int) ([]int, error) {
	tids, err := Tasks(pid)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, tid := range tids {
		b, err := readProc(pid, fmt.Sprintf("task/%d/children", tid))
		if err != nil {
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue
			}
			return nil, err
		}
		for _, w := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(w)
			if err != nil {
				return nil, errorf(pid, "children: %w", err)
			}
			out = append(out, n)
		}
	}
	sort.Ints(out)
	return out, nil
}

// lines calls fn with "Key" and trimmed "value" of each "Key:\tvalue" line.
func lines(text []byte, fn func(key, value string) error) error {
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		key, value, ok := strings.Cut(sc.Text(), ":")
		if !ok {
			continue
		}
		if err := fn(key, strings.TrimSpace(value)); err != nil {
			return fmt.Errorf("line %q: %w", sc.Text(), err)
		}
	}
	return sc.Err()
}
