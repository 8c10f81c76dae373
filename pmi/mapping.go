package pmi

import (
	"fmt"
	"strings"

	"github.com/lampause/lampause/job"
)

// Mapping returns the value of PMI_process_mapping for a placement: which pod
// each rank is in, as a vector of (first pod, pods, ranks per pod) blocks. The
// shortest prefix that repeats is given, as MPICH starts the vector again when
// ranks are left. An empty string (MPICH then compares hostnames) stands for
// layouts that do not fit into a value.
func Mapping(layout []job.PodPlacement) string {
	total := 0
	for _, p := range layout {
		total += len(p.Ranks)
	}
	podOf := make([]int, total)
	for i, p := range layout {
		for _, r := range p.Ranks {
			if int(r) < 0 || int(r) >= total {
				return ""
			}
			podOf[r] = i
		}
	}
	blocks := shorten(merge(runs(podOf)))
	var b strings.Builder
	b.WriteString("(vector")
	for _, x := range blocks {
		fmt.Fprintf(&b, ",(%d,%d,%d)", x.first, x.pods, x.each)
	}
	b.WriteString(")")
	if b.Len() > maxValue {
		return ""
	}
	return b.String()
}

// block is one element of the vector.
type block struct{ first, pods, each int }

// runs groups consecutive ranks of the same pod.
func runs(podOf []int) []block {
	var out []block
	for _, p := range podOf {
		if n := len(out); n > 0 && out[n-1].first == p {
			out[n-1].each++
			continue
		}
		out = append(out, block{p, 1, 1})
	}
	return out
}

// merge joins runs of equal length in consecutive pods.
func merge(in []block) []block {
	var out []block
	for _, b := range in {
		if n := len(out); n > 0 && out[n-1].each == b.each && out[n-1].first+out[n-1].pods == b.first {
			out[n-1].pods++
			continue
		}
		out = append(out, b)
	}
	return out
}

// shorten cuts the blocks to their shortest period.
func shorten(in []block) []block {
	for n := 1; n <= len(in)/2; n++ {
		if len(in)%n == 0 && periodic(in, n) {
			return in[:n]
		}
	}
	return in
}

func periodic(in []block, n int) bool {
	for i := n; i < len(in); i++ {
		if in[i] != in[i-n] {
			return false
		}
	}
	return true
}
