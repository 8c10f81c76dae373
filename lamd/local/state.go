package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lampause/lampause/internal/paths"
)

// forgetLogs removes the replicas of an earlier cluster's log beneath a state
// directory. A new local cluster starts a new log, whatever its number of
// nodes; images stay, and say by themselves what they are.
func forgetLogs(state string) error {
	logs, err := filepath.Glob(filepath.Join(state, "*", "raft"))
	if err != nil {
		return fmt.Errorf("state directory %s: %w", state, err)
	}
	for _, l := range logs {
		if err := os.RemoveAll(l); err != nil {
			return fmt.Errorf("old log: %w", err)
		}
	}
	return nil
}

// releaseState removes the state directory of an ended cluster when purge asks
// for it or when there is nothing in it that a later cluster could use: no
// image of any job. It reports whether something was kept.
func releaseState(d paths.Dirs, purge bool) (kept bool, err error) {
	lock := filepath.Join(d.State, "cluster.lock")
	f, err := lockFile(lock)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("state directory: %w", err)
	}
	defer func() { _ = f.Close() }()
	images, err := filepath.Glob(filepath.Join(d.State, "*", "jobs", "*", "*"))
	if err != nil {
		return true, fmt.Errorf("state directory %s: %w", d.State, err)
	}
	if len(images) > 0 && !purge {
		return true, nil
	}
	nodes, err := filepath.Glob(filepath.Join(d.State, "*", bootFile))
	if err != nil {
		return true, fmt.Errorf("state directory %s: %w", d.State, err)
	}
	for _, n := range nodes { // only what nodes of ours made
		err = errors.Join(err, os.RemoveAll(filepath.Dir(n)))
	}
	err = errors.Join(err, os.Remove(lock))
	_ = os.Remove(d.State) // fails when something else is in it
	return false, err
}
