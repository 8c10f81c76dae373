package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// writeAtomically replaces a file by v as JSON: temporary name, fsync, rename,
// fsync of the directory. After a crash the file is the old or the new one.
func writeAtomically(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// eventLog is the stream of what a supervisor reports upwards. Safe for
// concurrent use.
type eventLog struct {
	mu      sync.Mutex // guards below
	events  []podapi.Event
	changed chan struct{} // closed and replaced when an event comes
	inc     job.Incarnation
}

func newEventLog(inc job.Incarnation) *eventLog {
	return &eventLog{changed: make(chan struct{}), inc: inc}
}

// add appends an event and numbers it.
func (l *eventLog) add(e podapi.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Seq, e.Incarnation = uint64(len(l.events))+1, l.inc
	l.events = append(l.events, e)
	close(l.changed)
	l.changed = make(chan struct{})
}

// setIncarnation is for the events from now on.
func (l *eventLog) setIncarnation(inc job.Incarnation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inc = inc
}

// from returns the events with numbers >= seq; if there are none it waits.
func (l *eventLog) from(ctx context.Context, seq uint64) ([]podapi.Event, error) {
	for {
		l.mu.Lock()
		changed := l.changed
		var out []podapi.Event
		if i := max(seq, 1) - 1; i < uint64(len(l.events)) {
			out = slices.Clone(l.events[i:])
		}
		l.mu.Unlock()
		if len(out) > 0 {
			return out, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// exitBook records how ranks ended, in memory and in exits.json. Safe for
// concurrent use.
type exitBook struct {
	path string

	mu    sync.Mutex // guards below
	exits map[job.Rank]job.Exit
}

func newExitBook(path string) *exitBook {
	return &exitBook{path: path, exits: map[job.Rank]job.Exit{}}
}

// add records the end of a rank. The record in memory holds even when the disk
// does not take it.
func (b *exitBook) add(e job.Exit) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exits[e.Rank] = e
	return b.save()
}

// reset replaces all records: a rollback brings ended ranks back.
func (b *exitBook) reset(exits map[job.Rank]job.Exit) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exits = maps.Clone(exits)
	if b.exits == nil {
		b.exits = map[job.Rank]job.Exit{}
	}
	return b.save()
}

// save writes the file. Precondition: mu is held.
func (b *exitBook) save() error {
	list := slices.SortedFunc(maps.Values(b.exits), func(x, y job.Exit) int { return int(x.Rank) - int(y.Rank) })
	if err := writeAtomically(b.path, list); err != nil {
		return fmt.Errorf("record exits: %w", err)
	}
	return nil
}

// all returns a copy of the records.
func (b *exitBook) all() map[job.Rank]job.Exit {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.exits)
}
