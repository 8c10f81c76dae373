package local

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// hostPIDOf finds the child of process parent (a pid of the host, through the
// host's /proc) whose pid in its innermost namespace is inner; 0 when there is
// none. It needs CONFIG_PROC_CHILDREN (proc_pid_task(5)).
func hostPIDOf(parent, inner int) int {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	if err != nil {
		return 0
	}
	for _, list := range lists {
		raw, err := os.ReadFile(list)
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(raw)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				continue
			}
			if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil && innermostPID(string(status)) == inner {
				return pid
			}
		}
	}
	return 0
}

// innermostPID returns the last number of the NSpid line of a
// /proc/PID/status, 0 when there is none.
func innermostPID(status string) int {
	for line := range strings.Lines(status) {
		rest, ok := strings.CutPrefix(line, "NSpid:")
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		if len(f) == 0 {
			return 0
		}
		pid, err := strconv.Atoi(f[len(f)-1])
		if err != nil {
			return 0
		}
		return pid
	}
	return 0
}
