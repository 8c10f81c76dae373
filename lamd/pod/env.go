package pod

import (
	"strconv"
	"strings"

	"github.com/lampause/lampause/job"
)

// pmiFD is the number under which a rank inherits its PMI descriptor.
const pmiFD = 3

// podTmp is $TMPDIR of the ranks: a directory inside the pod's private
// /dev/shm, so that it has the same name wherever the pod is built.
const podTmp = "/dev/shm/tmp"

// forced are settings of a rank that the program's environment cannot change:
// one transport that a checkpoint understands, over the pod's link; no graphics
// probing (ten connects to X servers in MPI_Init); and no keepalive, which
// would end connections while a lost rank is being replaced.
func forced() map[string]string {
	return map[string]string{
		"UCX_TLS":           "tcp,self",
		"UCX_NET_DEVICES":   "eth0",
		"UCX_TCP_KEEPIDLE":  "inf",
		"MPIR_CVAR_NOLOCAL": "1",
		"HWLOC_COMPONENTS":  "-gl",
	}
}

// rankEnv returns the environment of a rank: its program's, without what another
// launcher may have left in it, with what MPICH needs to find its PMI server.
func rankEnv(spec *job.Spec, r job.Rank, tmp string) []string {
	set := forced()
	set["PMI_FD"] = strconv.Itoa(pmiFD)
	set["PMI_RANK"] = strconv.Itoa(int(r))
	set["PMI_SIZE"] = strconv.Itoa(spec.Ranks)
	if tmp != "" {
		set["TMPDIR"] = tmp
	}
	prog, _ := spec.Program(r)
	out := make([]string, 0, len(prog.Env)+len(set))
	for _, kv := range prog.Env {
		key, _, ok := strings.Cut(kv, "=")
		if _, ours := set[key]; !ok || ours || foreign(key) {
			continue
		}
		out = append(out, kv)
	}
	for _, key := range []string{
		"PMI_FD", "PMI_RANK", "PMI_SIZE", "TMPDIR",
		"UCX_TLS", "UCX_NET_DEVICES", "UCX_TCP_KEEPIDLE", "MPIR_CVAR_NOLOCAL", "HWLOC_COMPONENTS",
	} {
		if v, ok := set[key]; ok {
			out = append(out, key+"="+v)
		}
	}
	return out
}

// foreign reports whether key belongs to another launcher's start-up protocol.
func foreign(key string) bool {
	for _, p := range []string{"PMI_", "PMIX_", "HYDRA_", "HYDI_", "MPI_LOCAL", "OMPI_COMM_WORLD_", "SLURM_PMI"} {
		if strings.HasPrefix(key, p) {
			return true
		}
	}
	return false
}
