package control

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/lampause/lampause/job"
)

// Stream names one output stream of a job: FD is 1 (stdout) or 2 (stderr).
type Stream struct {
	Rank job.Rank
	FD   int
}

// Cursor says how far a reader is in the output of a job: for each stream the
// offset of the next byte it wants. Streams that are absent are at 0. The nil
// Cursor reads everything from the start.
type Cursor map[Stream]int64

// String returns the form that ParseCursor reads: "RANK.FD:OFFSET" joined by
// commas, in the order of the ranks, streams at 0 left out.
func (c Cursor) String() string {
	streams := make([]Stream, 0, len(c))
	for s, offset := range c {
		if offset > 0 {
			streams = append(streams, s)
		}
	}
	sort.Slice(streams, func(i, j int) bool {
		a, b := streams[i], streams[j]
		return a.Rank < b.Rank || a.Rank == b.Rank && a.FD < b.FD
	})
	var b strings.Builder
	for i, s := range streams {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%d.%d:%d", s.Rank, s.FD, c[s])
	}
	return b.String()
}

// ParseCursor parses what String printed. The empty text is the nil Cursor.
//
// Expected errors: one that names the malformed part.
func ParseCursor(text string) (Cursor, error) {
	if text == "" {
		return nil, nil
	}
	c := make(Cursor)
	for part := range strings.SplitSeq(text, ",") {
		name, offset, ok1 := strings.Cut(part, ":")
		rank, fd, ok2 := strings.Cut(name, ".")
		r, err1 := strconv.Atoi(rank)
		f, err2 := strconv.Atoi(fd)
		o, err3 := strconv.ParseInt(offset, 10, 64)
		bad := !ok1 || !ok2 || err1 != nil || err2 != nil || err3 != nil
		if bad || r < 0 || r >= job.MaxRanks || f < 1 || f > 2 || o < 0 {
			return nil, fmt.Errorf("output position %q: not RANK.FD:OFFSET", part)
		}
		c[Stream{Rank: job.Rank(r), FD: f}] = o
	}
	return c, nil
}
