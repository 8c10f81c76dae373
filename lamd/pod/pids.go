package pod

import "github.com/lampause/lampause/job"

// Process numbers of ranks. They are high, so that what the pod starts besides
// (pod-init's threads, frozen copies of ranks) stays clear of them, and fixed,
// so that a rank comes back under its old number.
const (
	pidBase  = 1024 // ranks have numbers above
	pidSpace = 512  // between ranks, for their threads
)

// pickPIDs returns the process number of each local rank in its pid namespace,
// below pidMax. Numbers differ between the pods of a job where pidMax allows
// it; if not, only within the pod, and closer together.
func pickPIDs(local []job.Rank, size, pidMax int) map[job.Rank]int {
	out := make(map[job.Rank]int, len(local))
	for i, r := range local {
		n, of := int(r), size
		if pidBase+size*pidSpace >= pidMax {
			n, of = i, len(local)
		}
		out[r] = pidBase + n*min(pidSpace, max((pidMax-pidBase)/max(of, 1), 1))
	}
	return out
}
