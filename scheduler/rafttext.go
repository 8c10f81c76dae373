package scheduler

import (
	"bytes"

	"github.com/rs/zerolog"
)

// logWriter passes raft's own log lines ("time [LEVEL]  raft: text: k=v") to
// zerolog, one level lower than raft thinks: it warns of every silent peer.
type logWriter struct{ log zerolog.Logger }

// Write implements io.Writer; p is one line.
func (w logWriter) Write(p []byte) (int, error) {
	line := bytes.TrimSpace(p)
	level := zerolog.DebugLevel
	if i := bytes.IndexByte(line, '['); i >= 0 {
		line = line[i:]
		switch {
		case bytes.HasPrefix(line, []byte("[ERROR]")):
			level = zerolog.WarnLevel
		case bytes.HasPrefix(line, []byte("[WARN]")):
			level = zerolog.InfoLevel
		}
		if k := bytes.IndexByte(line, ']'); k >= 0 {
			line = bytes.TrimSpace(line[k+1:])
		}
	}
	w.log.WithLevel(level).Msg(string(line))
	return len(p), nil
}
