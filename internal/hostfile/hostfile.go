// Package hostfile reads lists of hosts: the host files of Hydra ("host:4"),
// of Open MPI ("host slots=4 max_slots=8") and the bracket notation of Slurm
// ("n[1-3,5]"), all of them in one file if need be, and the lists behind
// mpirun's -H. The word "spare" on a line keeps its hosts free of ranks until
// one is lost.
//
// The package only parses. It does not know which nodes exist.
package hostfile

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/lampause/lampause/job"
)

// Limits on what is read, so that a wrong file cannot take all memory.
const (
	maxLine  = 64 << 10 // bytes
	maxHosts = 1 << 16
	maxSlots = 1 << 16
)

// Entry is one host. Slots 0 means that the file does not say. Line counts
// from 1, 0 for an entry of a list.
type Entry struct {
	Host  string
	Slots int
	Spare bool
	Line  int
}

// Error is a fault in a host file. Line is 0 where the fault is the file's
// as a whole, or a list's.
type Error struct {
	File string
	Line int
	Text string
}

// Error implements error: "FILE:LINE: TEXT".
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Text
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text)
}

// Read reads the host file path.
//
// Expected errors: *Error, also when the file cannot be read.
func Read(path string) ([]Entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &Error{File: path, Text: "cannot be read: " + cause(err)}
	}
	defer func() { _ = f.Close() }()
	return Parse(path, f)
}

// cause drops the path that os errors repeat.
func cause(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		return text[i+2:]
	}
	return text
}

// Parse reads a host file; name is what errors call it. Hosts keep the order
// of their first line; the slots of a host that is named again are added up.
//
// Expected errors: *Error.
func Parse(name string, r io.Reader) ([]Entry, error) {
	l := list{name: name, at: make(map[string]int)}
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxLine)
	for in.Scan() {
		l.line++
		text, _, _ := strings.Cut(in.Text(), "#")
		if err := l.addLine(strings.Fields(text)); err != nil {
			return nil, err
		}
	}
	if err := in.Err(); err != nil {
		l.line++
		return nil, l.fail("cannot be read: %v", err)
	}
	if len(l.entries) == 0 {
		l.line = 0
		return nil, l.fail("names no host")
	}
	return l.entries, nil
}

// ParseList reads hosts separated by commas, "a:2,n[1-3],b"; name is what
// errors call the list ("--host").
//
// Expected errors: *Error.
func ParseList(name, text string) ([]Entry, error) {
	l := list{name: name, at: make(map[string]int)}
	for _, part := range splitList(text) {
		if err := l.addLine([]string{part}); err != nil {
			return nil, err
		}
	}
	if len(l.entries) == 0 {
		return nil, l.fail("names no host")
	}
	return l.entries, nil
}

// splitList splits at the commas outside of brackets and drops blanks.
func splitList(text string) []string {
	var parts []string
	depth, start := 0, 0
	for i := 0; i <= len(text); i++ {
		switch {
		case i < len(text) && text[i] == '[':
			depth++
		case i < len(text) && text[i] == ']':
			depth--
		case i == len(text) || text[i] == ',' && depth == 0:
			if part := strings.TrimSpace(text[start:i]); part != "" {
				parts = append(parts, part)
			}
			start = i + 1
		}
	}
	return parts
}

// list collects entries.
type list struct {
	name    string
	line    int
	entries []Entry
	at      map[string]int // host -> index in entries
}

func (l *list) fail(format string, args ...any) error {
	return &Error{File: l.name, Line: l.line, Text: fmt.Sprintf(format, args...)}
}

// addLine adds the hosts of one line: a name, then words.
func (l *list) addLine(words []string) error {
	if len(words) == 0 {
		return nil
	}
	name, slots, err := l.splitSlots(words[0])
	if err != nil {
		return err
	}
	e := Entry{Slots: slots, Line: l.line}
	limit := 0
	for _, w := range words[1:] {
		key, value, assigned := strings.Cut(w, "=")
		switch {
		case key == "spare" && !assigned:
			e.Spare = true
		case key == "slots" && assigned:
			if e.Slots != 0 {
				return l.fail("slots of %s are given twice", name)
			}
			e.Slots, err = l.number(w, value)
		case (key == "max_slots" || key == "max-slots") && assigned:
			limit, err = l.number(w, value)
		default:
			return l.fail("%q: not one of slots=N, max_slots=N, spare", w)
		}
		if err != nil {
			return err
		}
	}
	if limit != 0 && e.Slots > limit {
		return l.fail("%s: %d slots, but at most %d", name, e.Slots, limit)
	}
	hosts, err := l.expand(name)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		e.Host = h
		if err := l.add(e); err != nil {
			return err
		}
	}
	return nil
}

// splitSlots splits "host:4".
func (l *list) splitSlots(word string) (name string, slots int, err error) {
	name, text, found := strings.Cut(word, ":")
	if !found {
		return name, 0, nil
	}
	slots, err = l.number(word, text)
	return name, slots, err
}

func (l *list) number(word, text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxSlots {
		return 0, l.fail("%q: %q is not a number of slots (1..%d)", word, text, maxSlots)
	}
	return n, nil
}

func (l *list) add(e Entry) error {
	if i, known := l.at[e.Host]; known {
		if l.entries[i].Spare != e.Spare {
			return l.fail("%s: both a spare and not", e.Host)
		}
		sum := l.entries[i].Slots + e.Slots
		if l.entries[i].Slots == 0 || e.Slots == 0 {
			return l.fail("%s: named twice, but not with slots both times", e.Host)
		}
		if sum > maxSlots {
			return l.fail("%s: more than %d slots", e.Host, maxSlots)
		}
		l.entries[i].Slots = sum
		return nil
	}
	if len(l.entries) == maxHosts {
		return l.fail("more than %d hosts", maxHosts)
	}
	l.at[e.Host] = len(l.entries)
	l.entries = append(l.entries, e)
	return nil
}

// expand turns "n[1-3,5]x" into the names it stands for: n1x n2x n3x n5x. A
// range keeps leading zeros: [08-10] is 08 09 10.
func (l *list) expand(name string) ([]string, error) {
	prefix, rest, bracket := strings.Cut(name, "[")
	if !bracket {
		return l.checked(name, []string{name})
	}
	inner, suffix, closed := strings.Cut(rest, "]")
	if !closed || strings.ContainsAny(prefix+inner, "[]") || strings.ContainsAny(suffix, "[]") {
		return nil, l.fail("%q: brackets do not match; one pair is allowed, as in n[1-3,5]", name)
	}
	var names []string
	for part := range strings.SplitSeq(inner, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		from, err1 := strconv.ParseUint(lo, 10, 31)
		to, err2 := strconv.ParseUint(hi, 10, 31)
		if err1 != nil || err2 != nil || from > to {
			return nil, l.fail("%q: %q is not a range of numbers", name, part)
		}
		if to-from >= maxHosts || len(names) > maxHosts {
			return nil, l.fail("%q: more than %d hosts", name, maxHosts)
		}
		for n := from; n <= to; n++ {
			names = append(names, fmt.Sprintf("%s%0*d%s", prefix, len(lo), n, suffix))
		}
	}
	return l.checked(name, names)
}

// checked refuses names that no node can have.
func (l *list) checked(written string, names []string) ([]string, error) {
	for _, n := range names {
		if !job.ValidNode(job.NodeID(n)) {
			return nil, l.fail("%q: not a host name", written)
		}
	}
	return names, nil
}
