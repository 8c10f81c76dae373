package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/lampause/lampause/job"
)

// jsonLines begins an answer of JSON lines.
func jsonLines(w http.ResponseWriter) (*json.Encoder, func() error) {
	w.Header().Set("Content-Type", "application/jsonl")
	w.WriteHeader(http.StatusOK)
	c := http.NewResponseController(w)
	_ = c.Flush() // the client sees that the stream began
	return json.NewEncoder(w), c.Flush
}

// getOutput streams output: of one stream with rank, fd and from; of all
// without, from the places in at=RANK.FD:OFFSET,... (others from the start).
// gen is Output.Gen of the last frame that the reader has, if any. With
// follow=0 the answer ends at what there is now; with committed=1 it holds only
// what a committed epoch covers, and does not end before the pod does.
func (s *supervisor) getOutput(w http.ResponseWriter, r *http.Request) {
	c, err := s.cursorOf(r)
	if err != nil {
		fail(w, http.StatusBadRequest, job.ExitUsage, err)
		return
	}
	defer s.out.follow(c)()
	follow := r.URL.Query().Get("follow") != "0"
	enc, flush := jsonLines(w)
	for {
		frames, more, done, err := s.out.next(c)
		if err != nil {
			s.log.Error().Err(err).Msg("output stream cut")
			return
		}
		for _, f := range frames {
			if enc.Encode(f) != nil {
				return
			}
		}
		if len(frames) > 0 {
			if flush() != nil {
				return
			}
			continue
		}
		if !follow {
			return
		}
		if done && s.ended() {
			return
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return
		}
	}
}

func (s *supervisor) cursorOf(r *http.Request) (*cursor, error) {
	q := r.URL.Query()
	c := &cursor{
		gen: s.out.generation(), pos: map[streamKey]int64{}, eof: map[streamKey]bool{},
		covered: q.Get("committed") == "1",
	}
	if v := q.Get("gen"); v != "" {
		g, err := strconv.Atoi(v)
		if err != nil || g < 0 || g > c.gen {
			return nil, fmt.Errorf("gen=%q: there is no such rollback", v)
		}
		c.gen = g
	}
	if q.Get("rank") != "" {
		k, off, err := parsePlace(q.Get("rank") + "." + q.Get("fd") + ":" + q.Get("from"))
		if err != nil {
			return nil, err
		}
		if !slices.Contains(s.out.keys(), k) {
			return nil, fmt.Errorf("rank %d has no output %d in this pod", k.rank, k.fd)
		}
		c.pos[k] = off
		return c, nil
	}
	for _, k := range s.out.keys() {
		c.pos[k] = 0
	}
	for place := range strings.SplitSeq(q.Get("at"), ",") {
		if place == "" {
			continue
		}
		k, off, err := parsePlace(place)
		if err != nil {
			return nil, err
		}
		if _, ok := c.pos[k]; ok {
			c.pos[k] = off
		}
	}
	return c, nil
}

// parsePlace parses RANK.FD:OFFSET.
func parsePlace(s string) (streamKey, int64, error) {
	key, off, _ := strings.Cut(s, ":")
	r, fd, _ := strings.Cut(key, ".")
	rank, err1 := strconv.Atoi(r)
	num, err2 := strconv.Atoi(fd)
	if off == "" {
		off = "0"
	}
	at, err3 := strconv.ParseInt(off, 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil || at < 0 {
		return streamKey{}, 0, fmt.Errorf("place %q: not RANK.FD:OFFSET", s)
	}
	return streamKey{job.Rank(rank), num}, at, nil
}
