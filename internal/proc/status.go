package proc

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Status is what /proc/PID/status tells; masks have bit n-1 for signal n.
type Status struct {
	Name       string
	State      byte // R S D T t Z X
	Umask      uint32
	Tgid       int
	PPid       int
	TracerPid  int
	UID        [4]int // real, effective, saved, file system
	GID        [4]int
	NSTgid     []int // outermost namespace first
	NSPid      []int
	NSPgid     []int
	NSSid      []int
	SigPnd     uint64
	ShdPnd     uint64
	SigBlk     uint64
	SigIgn     uint64
	SigCgt     uint64
	CapEff     uint64
	NoNewPrivs bool
	Seccomp    int
	RSSAnon    int64 // bytes of anonymous memory that are present
	Swap       int64 // bytes that are swapped out
}

// Inner returns the innermost pid: the one the process itself sees.
func (s *Status) Inner() int {
	if len(s.NSPid) == 0 {
		return 0
	}
	return s.NSPid[len(s.NSPid)-1]
}

// ReadStatus reads /proc/PID/status; pid may also be a thread.
func ReadStatus(pid int) (*Status, error) {
	b, err := readProc(pid, "status")
	if err != nil {
		return nil, err
	}
	s, err := ParseStatus(b)
	if err != nil {
		return nil, errorf(pid, "status: %w", err)
	}
	return s, nil
}

// ParseStatus parses the text of /proc/PID/status.
//
// Expected errors: one that quotes the line that is not understood.
func ParseStatus(text []byte) (*Status, error) {
	s := &Status{}
	err := lines(text, s.set)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Status) set(key, value string) (err error) {
	switch key {
	case "Name":
		s.Name = unescape(value)
	case "State":
		if value == "" {
			return fmt.Errorf("no state")
		}
		s.State = value[0]
	case "Umask":
		var n uint64
		n, err = strconv.ParseUint(value, 8, 32)
		s.Umask = uint32(n)
	case "Tgid":
		s.Tgid, err = strconv.Atoi(value)
	case "PPid":
		s.PPid, err = strconv.Atoi(value)
	case "TracerPid":
		s.TracerPid, err = strconv.Atoi(value)
	case "Uid":
		err = four(&s.UID, value)
	case "Gid":
		err = four(&s.GID, value)
	case "NStgid":
		s.NSTgid, err = numbers(value)
	case "NSpid":
		s.NSPid, err = numbers(value)
	case "NSpgid":
		s.NSPgid, err = numbers(value)
	case "NSsid":
		s.NSSid, err = numbers(value)
	case "SigPnd":
		s.SigPnd, err = strconv.ParseUint(value, 16, 64)
	case "ShdPnd":
		s.ShdPnd, err = strconv.ParseUint(value, 16, 64)
	case "SigBlk":
		s.SigBlk, err = strconv.ParseUint(value, 16, 64)
	case "SigIgn":
		s.SigIgn, err = strconv.ParseUint(value, 16, 64)
	case "SigCgt":
		s.SigCgt, err = strconv.ParseUint(value, 16, 64)
	case "CapEff":
		s.CapEff, err = strconv.ParseUint(value, 16, 64)
	case "NoNewPrivs":
		s.NoNewPrivs = value == "1"
	case "RssAnon":
		s.RSSAnon, err = kiloBytes(value)
	case "VmSwap":
		s.Swap, err = kiloBytes(value)
	case "Seccomp":
		s.Seccomp, err = strconv.Atoi(value)
	}
	return err
}

// kiloBytes parses "123 kB".
func kiloBytes(value string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSuffix(value, " kB"), 10, 54)
	return n << 10, err
}

func numbers(value string) ([]int, error) {
	fields := strings.Fields(value)
	out := make([]int, len(fields))
	for i, f := range fields {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, err
		}
		out[i] = n
	}
	return out, nil
}

func four(dst *[4]int, value string) error {
	n, err := numbers(value)
	if err != nil {
		return err
	}
	if len(n) != 4 {
		return fmt.Errorf("%d ids, want 4", len(n))
	}
	copy(dst[:], n)
	return nil
}

// Stat is what /proc/PID/stat tells, as far as an image needs it.
type Stat struct {
	Comm       string
	State      byte
	PPid       int
	PGrp       int
	Session    int
	TTY        int // device of the controlling terminal, 0 without
	TTYGroup   int // its foreground process group, -1 without
	Nice       int
	MinFlt     uint64 // page faults that needed no disk
	StartTicks uint64 // since boot: with the pid the identity of a process
	StartCode  uint64
	EndCode    uint64
	StartStack uint64
	RTPriority int
	Policy     int
	StartData  uint64
	EndData    uint64
	StartBrk   uint64
	ArgStart   uint64
	ArgEnd     uint64
	EnvStart   uint64
	EnvEnd     uint64
	ExitCode   int // wait status of a zombie
}

// ReadStat reads /proc/PID/stat; pid may also be a thread.
func ReadStat(pid int) (*Stat, error) {
	b, err := readProc(pid, "stat")
	if err != nil {
		return nil, err
	}
	s, err := ParseStat(b)
	if err != nil {
		return nil, errorf(pid, "stat: %w", err)
	}
	return s, nil
}

// ParseStat parses the text of /proc/PID/stat. The command name is in
// parentheses and may itself hold parentheses and blanks.
//
// Expected errors: one that names the field that is missing or not a number.
func ParseStat(text []byte) (*Stat, error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return nil, fmt.Errorf("no command name")
	}
	f := strings.Fields(string(text[end+1:])) // f[0] is field 3 of proc(5)
	if len(f) < 50 {
		return nil, fmt.Errorf("%d fields, want 52", len(f)+2)
	}
	s := &Stat{Comm: string(text[open+1 : end]), State: f[0][0]}
	for _, p := range []struct {
		field int
		dst   *int
	}{
		{4, &s.PPid},
		{5, &s.PGrp},
		{6, &s.Session},
		{7, &s.TTY},
		{8, &s.TTYGroup},
		{19, &s.Nice},
		{40, &s.RTPriority},
		{41, &s.Policy},
		{52, &s.ExitCode},
	} {
		n, err := strconv.Atoi(f[p.field-3])
		if err != nil {
			return nil, fmt.Errorf("field %d: %w", p.field, err)
		}
		*p.dst = n
	}
	for _, p := range []struct {
		field int
		dst   *uint64
	}{
		{10, &s.MinFlt},
		{22, &s.StartTicks},
		{26, &s.StartCode},
		{27, &s.EndCode},
		{28, &s.StartStack},
		{45, &s.StartData},
		{46, &s.EndData},
		{47, &s.StartBrk},
		{48, &s.ArgStart},
		{49, &s.ArgEnd},
		{50, &s.EnvStart},
		{51, &s.EnvEnd},
	} {
		n, err := strconv.ParseUint(f[p.field-3], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("field %d: %w", p.field, err)
		}
		*p.dst = n
	}
	return s, nil
}
