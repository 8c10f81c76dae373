package proctool

import (
	"context"
	"fmt"
	"slices"

	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/pause"
)

// setRanks tells the pod what belongs to process pid; extra are its
// descriptors that come from outside, beside standard input and output.
func setRanks(pod *pause.Pod, pid int, extra []int) ([]pause.Rank, error) {
	externals, err := stdioOf(pid)
	if err != nil {
		return nil, err
	}
	more, err := extrasOf(pid, extra)
	if err != nil {
		return nil, err
	}
	externals = append(externals, more...)
	ranks, err := ranksOf(pid)
	if err != nil {
		return nil, err
	}
	pod.SetRanks(ranks, externals)
	return ranks, nil
}

// freezeAll begins a checkpoint. A process whose parent ended between the look
// at the tree and the stop is found by another look.
func freezeAll(ctx context.Context, pod *pause.Pod, pid int, extra []int, epoch job.Epoch) error {
	const tries = 20
	for range tries {
		ranks, err := setRanks(pod, pid, extra)
		if err != nil {
			return err
		}
		if _, err := pod.Freeze(ctx, epoch); err != nil {
			return err
		}
		if sameOrphans(pid, ranks) {
			return nil
		}
		if err := pod.Abandon(context.WithoutCancel(ctx), epoch); err != nil {
			return err
		}
	}
	return fmt.Errorf("process %d: its descendants are left behind by their parents faster than they can be stopped", pid)
}

// ranksOf returns process pid as rank 0. In the namespaces of `lam proc run`
// the processes that were left behind by their parents, such as daemons, belong
// to the program as well: they are children of init, and ranks of their own.
func ranksOf(pid int) ([]pause.Rank, error) {
	ranks := []pause.Rank{{Rank: 0, PID: pid}}
	orphans, err := orphansOf(pid)
	if err != nil {
		return nil, err
	}
	for _, o := range orphans {
		ranks = append(ranks, pause.Rank{Rank: ranks[len(ranks)-1].Rank + 1, PID: o})
	}
	return ranks, nil
}

// orphansOf returns the other children of pid's parent when that is the init
// of a pid namespace of its own, as the caller sees it.
func orphansOf(pid int) ([]int, error) {
	st, err := proc.ReadStatus(pid)
	if err != nil {
		return nil, err
	}
	parent, err := proc.ReadStatus(st.PPid)
	if err != nil || len(parent.NSPid) < 2 || parent.Inner() != 1 {
		return nil, nil //nolint:nilerr // its parent ended, or is not ours to look at
	}
	kids, err := proc.Children(st.PPid)
	if err != nil {
		return nil, err
	}
	kids = slices.DeleteFunc(kids, func(kid int) bool {
		s, err := proc.ReadStat(kid)
		return kid == pid || err != nil || s.State == 'Z' || s.State == 'X'
	})
	slices.Sort(kids)
	return kids, nil
}

// trees returns pid, its orphans, and the descendants of all.
func trees(pid int) ([]int, error) {
	out, err := tree(pid)
	if err != nil {
		return nil, err
	}
	orphans, err := orphansOf(pid)
	if err != nil {
		return nil, err
	}
	for _, o := range orphans {
		below, err := tree(o)
		if err != nil {
			continue // it ended meanwhile
		}
		out = append(out, below...)
	}
	return out, nil
}

// sameOrphans reports whether nobody was left behind since ranks were listed.
func sameOrphans(pid int, ranks []pause.Rank) bool {
	now, err := orphansOf(pid)
	return err == nil && slices.EqualFunc(now, ranks[1:], func(p int, r pause.Rank) bool { return p == r.PID })
}
