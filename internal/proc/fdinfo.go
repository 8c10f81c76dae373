package proc

import (
	"fmt"
	"strconv"
	"strings"
)

// FDInfo is what /proc/PID/fdinfo/N tells. Only the fields of the
// descriptor's kind are set.
type FDInfo struct {
	Pos   int64
	Flags int // O_*, with O_CLOEXEC
	Ino   uint64
	Locks []string // lines of file locks

	Eventfd      bool
	EventCount   uint64
	EventSemaph  bool
	Epoll        []EpollTarget
	Timerfd      bool
	TimerClock   int
	TimerTicks   uint64
	TimerFlags   int
	TimerValueNS int64 // remaining
	TimerIntvlNS int64
	Signalfd     bool
	SigMask      uint64
}

// EpollTarget is a `tfd:` line: a registration in an epoll set.
type EpollTarget struct {
	FD     int
	Events uint32
	Data   uint64
	Pos    int64
	Ino    uint64
	Dev    uint64 // the kernel's internal numbering, not st_dev
}

// ReadFDInfo reads /proc/PID/fdinfo/fd.
func ReadFDInfo(pid, fd int) (*FDInfo, error) {
	b, err := readProc(pid, "fdinfo/"+strconv.Itoa(fd))
	if err != nil {
		return nil, err
	}
	info, err := ParseFDInfo(b)
	if err != nil {
		return nil, errorf(pid, "fdinfo/%d: %w", fd, err)
	}
	return info, nil
}

// ParseFDInfo parses the text of a file of /proc/PID/fdinfo.
//
// Expected errors: one that quotes the line that is not understood.
func ParseFDInfo(text []byte) (*FDInfo, error) {
	info := &FDInfo{}
	if err := lines(text, info.set); err != nil {
		return nil, err
	}
	return info, nil
}

func (i *FDInfo) set(key, value string) (err error) {
	switch key {
	case "pos":
		i.Pos, err = strconv.ParseInt(value, 10, 64)
	case "flags":
		var n uint64
		n, err = strconv.ParseUint(value, 8, 32)
		i.Flags = int(n)
	case "ino":
		i.Ino, err = strconv.ParseUint(value, 10, 64)
	case "lock":
		i.Locks = append(i.Locks, value)
	case "eventfd-count":
		i.Eventfd = true
		i.EventCount, err = strconv.ParseUint(value, 16, 64)
	case "eventfd-semaphore":
		i.EventSemaph = value == "1"
	case "tfd":
		var t EpollTarget
		t, err = parseTarget(value)
		i.Epoll = append(i.Epoll, t)
	case "clockid":
		i.Timerfd = true
		i.TimerClock, err = strconv.Atoi(value)
	case "ticks":
		i.TimerTicks, err = strconv.ParseUint(value, 10, 64)
	case "settime flags":
		var n uint64
		n, err = strconv.ParseUint(value, 8, 32)
		i.TimerFlags = int(n)
	case "it_value":
		i.TimerValueNS, err = parseTimespec(value)
	case "it_interval":
		i.TimerIntvlNS, err = parseTimespec(value)
	case "sigmask":
		i.Signalfd = true
		i.SigMask, err = strconv.ParseUint(value, 16, 64)
	}
	return err
}

// parseTarget parses "8 events: 19 data: 7f00  pos:0 ino:1b sdev:9", the part
// of a tfd line after its key.
func parseTarget(value string) (EpollTarget, error) {
	var t EpollTarget
	value = strings.ReplaceAll(value, ":", " ")
	f := strings.Fields(value)
	if len(f) < 5 || f[1] != "events" || f[3] != "data" {
		return t, fmt.Errorf("no events and data")
	}
	fd, err := strconv.Atoi(f[0])
	if err != nil {
		return t, err
	}
	ev, err := strconv.ParseUint(f[2], 16, 32)
	if err != nil {
		return t, err
	}
	t.FD, t.Events = fd, uint32(ev)
	if t.Data, err = strconv.ParseUint(f[4], 16, 64); err != nil {
		return t, err
	}
	for k := 5; k+1 < len(f); k += 2 {
		switch f[k] {
		case "pos":
			t.Pos, err = strconv.ParseInt(f[k+1], 10, 64)
		case "ino":
			t.Ino, err = strconv.ParseUint(f[k+1], 16, 64)
		case "sdev":
			t.Dev, err = strconv.ParseUint(f[k+1], 16, 64)
		}
		if err != nil {
			return t, err
		}
	}
	return t, nil
}

// parseTimespec parses "(seconds, nanoseconds)".
func parseTimespec(value string) (int64, error) {
	value = strings.Trim(value, "()")
	sec, nsec, ok := strings.Cut(value, ",")
	if !ok {
		return 0, fmt.Errorf("not a pair")
	}
	s, err := strconv.ParseInt(strings.TrimSpace(sec), 10, 64)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(nsec), 10, 64)
	if err != nil {
		return 0, err
	}
	return s*1e9 + n, nil
}
