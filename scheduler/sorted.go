package scheduler

import (
	"maps"
	"slices"
)

// SortedNodes returns all nodes, past and present, in the order of their
// names, n2 before n10.
func (s *State) SortedNodes() []Node {
	return slices.SortedFunc(maps.Values(s.Nodes), func(a, b Node) int { return compareNames(string(a.ID), string(b.ID)) })
}
