package membership

import (
	"bytes"

	"github.com/rs/zerolog"
)

// logWriter turns memberlist's lines ("[WARN] memberlist: text") into zerolog
// events, two levels lower than memberlist thinks of them: a failed ping is an
// error to memberlist and a Tuesday to us. Only [ERR] is shown by default.
type logWriter struct {
	log zerolog.Logger
}

// Write implements io.Writer; log.Logger calls it once per line.
func (w logWriter) Write(p []byte) (int, error) {
	line := bytes.TrimSpace(p)
	level := zerolog.DebugLevel
	if tag, rest, ok := bytes.Cut(line, []byte("] ")); ok && len(tag) > 0 && tag[0] == '[' {
		line = rest
		switch string(tag) {
		case "[ERR":
			level = zerolog.InfoLevel
		case "[WARN":
			level = zerolog.DebugLevel
		default:
			level = zerolog.TraceLevel
		}
	}
	w.log.WithLevel(level).Msg(string(bytes.TrimPrefix(line, []byte("memberlist: "))))
	return len(p), nil
}
