package local

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/stream"
)

// namespacesBelow opens the network namespaces of all processes below pid, a
// pid of the host, which it includes, each once. What ends meanwhile is passed
// over. There are none below pid 0.
func namespacesBelow(pid int) ([]*os.File, error) {
	if pid == 0 {
		return nil, nil
	}
	parents, err := parentsOfAll()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var out []*os.File
	for p := range parents {
		if !below(p, pid, parents) {
			continue
		}
		path := "/proc/" + strconv.Itoa(p) + "/ns/net"
		name, err := os.Readlink(path)
		if err != nil || seen[name] {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		seen[name] = true
		out = append(out, f)
	}
	return out, nil
}

func below(pid, top int, parents map[int]int) bool {
	for range len(parents) { // a chain is no longer than that
		if pid == top {
			return true
		}
		next, ok := parents[pid]
		if !ok {
			return false
		}
		pid = next
	}
	return false
}

// parentsOfAll maps every visible process to its parent.
func parentsOfAll() (map[int]int, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	out := map[int]int{}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // ended
		}
		// "PID (NAME) STATE PPID ...": the name may hold anything.
		f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if len(f) < 2 || perr != nil {
			continue
		}
		if ppid, err := strconv.Atoi(string(f[1])); err == nil {
			out[pid] = ppid
		}
	}
	return out, nil
}

// forgetConnections destroys what is left of the TCP connections in
// namespaces whose processes are dead, and closes them. A machine without
// power has no sockets; here their orphans would hold memory and namespaces
// for minutes.
func forgetConnections(namespaces []*os.File, log zerolog.Logger) error {
	var errs []error
	for _, f := range namespaces {
		err := stream.New(kernel.New(nil), int(f.Fd()), log).Forget()
		errs = append(errs, err, f.Close())
	}
	return errors.Join(errs...)
}
