package pause

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/lampause/lampause/image"
)

// readTimers lists the POSIX timers of pid, without their times.
func readTimers(pid int) ([]image.PosixTimer, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/timers")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // a kernel without CONFIG_CHECKPOINT_RESTORE
	}
	if err != nil {
		return nil, fmt.Errorf("timers: %w", err)
	}
	return parseTimers(string(b))
}

// parseTimers parses /proc/PID/timers: blocks of
//
//	ID: 0
//	signal: 14/0000000000000000
//	notify: signal/pid.1234
//	ClockID: 1
//
// Expected errors: one that quotes the line that is not understood.
func parseTimers(text string) ([]image.PosixTimer, error) {
	var out []image.PosixTimer
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			continue
		}
		if key == "ID" {
			id, err := strconv.Atoi(value)
			if err != nil {
				return nil, fmt.Errorf("timers: line %q: %w", line, err)
			}
			out = append(out, image.PosixTimer{ID: id})
			continue
		}
		if len(out) == 0 {
			return nil, fmt.Errorf("timers: line %q before any ID", line)
		}
		if err := setTimer(&out[len(out)-1], key, value); err != nil {
			return nil, fmt.Errorf("timers: line %q: %w", line, err)
		}
	}
	return out, nil
}

func setTimer(t *image.PosixTimer, key, value string) (err error) {
	switch key {
	case "signal":
		sig, data, ok := strings.Cut(value, "/")
		if !ok {
			return fmt.Errorf("no value")
		}
		if t.Signal, err = strconv.Atoi(sig); err != nil {
			return err
		}
		t.Value, err = strconv.ParseUint(strings.TrimPrefix(data, "0x"), 16, 64)
	case "notify":
		how, who, _ := strings.Cut(value, "/")
		switch how {
		case "signal":
			t.Notify = 0
		case "none":
			t.Notify = 1
		case "thread":
			t.Notify = 2
		default:
			return fmt.Errorf("unknown notification")
		}
		if kind, id, ok := strings.Cut(who, "."); ok && kind == "tid" {
			t.Notify |= 4 // SIGEV_THREAD_ID
			t.TID, err = strconv.Atoi(id)
		}
	case "ClockID":
		t.Clock, err = strconv.Atoi(value)
	}
	return err
}
