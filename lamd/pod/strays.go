package pod

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/pause"
)

// strays are processes of the pod that were left behind by their parents, such
// as daemons that ranks started: children of pod-init that are neither ranks
// nor seeds. They belong to no rank, and so to no checkpoint.
func strays(ranks []member) ([]int, error) {
	var out []int
	for _, m := range ranks {
		if m.outer == 0 {
			continue
		}
		st, err := proc.ReadStatus(m.outer)
		if err != nil {
			continue // it ended; the engine will say so
		}
		kids, err := proc.Children(st.PPid)
		if err != nil {
			return nil, fmt.Errorf("children of pod-init: %w", err)
		}
		for _, kid := range kids {
			known := slices.ContainsFunc(ranks, func(m member) bool { return m.outer == kid })
			exe, err := os.Readlink("/proc/" + strconv.Itoa(kid) + "/exe")
			if !known && err == nil && !strings.HasPrefix(exe, "/memfd:lam-seed") && !slices.Contains(out, kid) {
				out = append(out, kid)
			}
		}
	}
	return out, nil
}

// refuseStrays is the refusal of a checkpoint that would miss processes.
func refuseStrays(ranks []member) error {
	list, err := strays(ranks)
	if err != nil || len(list) == 0 {
		return err
	}
	no := &pause.Refusal{}
	for _, pid := range list {
		name := "?"
		if st, err := proc.ReadStat(pid); err == nil {
			name = st.Comm
		}
		no.Obstacles = append(no.Obstacles, fmt.Sprintf("process %d (%s) was left behind by its parent: daemons of ranks are not supported", pid, name))
	}
	return no
}

// endStrays kills them in a rollback: no epoch has any, so they were born since.
func endStrays(ranks []member) error {
	list, err := strays(ranks)
	for _, pid := range list {
		if kerr := unix.Kill(pid, unix.SIGKILL); kerr != nil && !errors.Is(kerr, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("end process %d: %w", pid, kerr))
		}
	}
	return err
}
