package pmi

import (
	"errors"
	"fmt"
	"strings"
)

// Bounds of the protocol. The first three are told to the client in maxes.
const (
	maxName  = 256  // bytes of a kvsname
	maxKey   = 64   // bytes of a key
	maxValue = 1024 // bytes of a value
	// MaxLine bounds one line of a rank, newline excluded. MPICH's own buffer
	// for a line (PMIU_MAXLINE) is 1024 bytes; a value of maxValue does not
	// fit there, so that clients send shorter ones.
	MaxLine = 4096
	// maxKeysPerRank bounds the key-value space: at most this many keys per
	// rank of the job. MPICH puts one or two.
	maxKeysPerRank = 64
)

var (
	// ErrProtocol marks a line that no PMI-1 client sends. The rank cannot be
	// served any longer.
	ErrProtocol = errors.New("pmi: protocol violation")
	// ErrRefused marks a request that is understood and not granted (spawn,
	// publish).
	ErrRefused = errors.New("pmi: refused")
)

// command is a parsed line: "cmd=NAME key=value key=value".
type command struct {
	name string
	args map[string]string
}

// parse reads one line without its newline. Keys are short words; a value runs
// to the next space, except that the last one of "msg=" and "error_msg="
// takes the rest of the line.
//
// Expected errors: ErrProtocol.
func parse(line string) (command, error) {
	c := command{args: map[string]string{}}
	if len(line) > MaxLine {
		return c, fmt.Errorf("%w: line of %d bytes", ErrProtocol, len(line))
	}
	if strings.ContainsAny(line, "\x00\n") {
		return c, fmt.Errorf("%w: control byte in a line", ErrProtocol)
	}
	rest := strings.TrimLeft(line, " ")
	for rest != "" {
		key, after, ok := strings.Cut(rest, "=")
		if !ok || key == "" || strings.Contains(key, " ") || len(key) > maxKey {
			return c, fmt.Errorf("%w: %q is not key=value", ErrProtocol, clip(rest))
		}
		var val string
		if key == "msg" || key == "error_msg" {
			val, rest = after, ""
		} else {
			val, rest, _ = strings.Cut(after, " ")
			rest = strings.TrimLeft(rest, " ")
		}
		if _, dup := c.args[key]; dup {
			return c, fmt.Errorf("%w: key %q twice", ErrProtocol, key)
		}
		c.args[key] = val
	}
	c.name = c.args["cmd"]
	if c.name == "" {
		c.name = c.args["mcmd"]
	}
	if c.name == "" {
		return c, fmt.Errorf("%w: no command in %q", ErrProtocol, clip(line))
	}
	return c, nil
}

// clip shortens untrusted text for a message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
