package image

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is what a machine must offer so that an image can go on there.
type Host struct {
	Kernel   string   `json:"kernel"`  // release, for people
	Machine  string   `json:"machine"` // "x86_64"
	PageSize int      `json:"page_size"`
	CPU      []string `json:"cpu"`  // features that user code may have chosen by; sorted
	VDSO     string   `json:"vdso"` // build-id of the vdso: programs keep addresses of its functions
	UID      uint32   `json:"uid"`  // owner of the processes, as the pod sees it
	GID      uint32   `json:"gid"`
}

// LocalHost describes this machine and the calling process' user.
//
// Expected errors: those of reading /proc/cpuinfo.
// Source: uname(2), proc_cpuinfo(5).
func LocalHost() (Host, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Host{}, fmt.Errorf("uname: %w", err)
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return Host{}, fmt.Errorf("cpu features: %w", err)
	}
	vdso, err := vdsoBuildID()
	if err != nil {
		return Host{}, fmt.Errorf("vdso: %w", err)
	}
	return Host{
		VDSO:     vdso,
		Kernel:   unix.ByteSliceToString(u.Release[:]),
		Machine:  unix.ByteSliceToString(u.Machine[:]),
		PageSize: os.Getpagesize(),
		CPU:      cpuFeatures(string(info)),
		UID:      uint32(os.Getuid()), //nolint:gosec // uids are 32 bits
		GID:      uint32(os.Getgid()), //nolint:gosec // as are gids
	}, nil
}

// userFeatures are the CPU flags that libraries choose code by (ifunc, cpuid)
// or that change the size of XSTATE. Other flags concern the kernel only.
func userFeatures() []string {
	return []string{
		"adx", "aes", "avx", "avx2", "avx512_bf16", "avx512_bitalg", "avx512_fp16", "avx512_vbmi2",
		"avx512_vnni", "avx512_vpopcntdq", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512ifma",
		"avx512vbmi", "avx512vl", "avx_vnni", "amx_bf16", "amx_int8", "amx_tile", "bmi1", "bmi2", "clflushopt",
		"clwb", "clzero", "cmov", "cx16", "cx8", "erms", "f16c", "fma", "fsgsbase", "fsrm", "fxsr", "gfni",
		"lahf_lm", "lzcnt", "abm", "movbe", "movdir64b", "movdiri", "mmx", "ospke", "pclmulqdq", "pku", "pni",
		"popcnt", "rdpid", "rdrand", "rdseed", "rdtscp", "rtm", "sha_ni", "sse", "sse2", "sse4_1", "sse4_2",
		"sse4a", "ssse3", "tsc", "vaes", "vpclmulqdq", "waitpkg", "xgetbv1", "xsave", "xsavec", "xsaveopt",
	}
}

func cpuFeatures(cpuinfo string) []string {
	for line := range strings.Lines(cpuinfo) {
		name, flags, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) != "flags" {
			continue
		}
		known := userFeatures()
		var got []string
		for _, f := range strings.Fields(flags) {
			if slices.Contains(known, f) {
				got = append(got, f)
			}
		}
		slices.Sort(got)
		return got
	}
	return nil
}

// Fits reports what keeps an image made on host h from going on at host here,
// run by here's user. A here with more CPU features than h is fine.
//
// Expected errors: ErrMismatch, naming what differs.
func (h Host) Fits(here Host) error {
	switch {
	case h.Machine != here.Machine:
		return fmt.Errorf("%w: made on %s, this is %s", ErrMismatch, h.Machine, here.Machine)
	case h.PageSize != here.PageSize:
		return fmt.Errorf("%w: made with pages of %d bytes, here they have %d", ErrMismatch, h.PageSize, here.PageSize)
	case h.VDSO != here.VDSO:
		return fmt.Errorf("%w: made on kernel %s, whose vdso differs from that of %s", ErrMismatch, h.Kernel, here.Kernel)
	case h.UID != here.UID:
		return fmt.Errorf("%w: owner is uid %d, not %d", ErrMismatch, h.UID, here.UID)
	case h.GID != here.GID:
		return fmt.Errorf("%w: group is gid %d, not %d", ErrMismatch, h.GID, here.GID)
	}
	var missing []string
	for _, f := range h.CPU {
		if !slices.Contains(here.CPU, f) {
			missing = append(missing, f)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: this CPU lacks %s", ErrMismatch, strings.Join(missing, " "))
	}
	return nil
}

// vdsoBuildID reads the vdso of the calling process. Source: vdso(7).
func vdsoBuildID() (string, error) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			continue
		}
		var start, end int64
		if _, err := fmt.Sscanf(line, "%x-%x", &start, &end); err != nil {
			return "", fmt.Errorf("maps line %q: %w", line, err)
		}
		mem, err := os.Open("/proc/self/mem")
		if err != nil {
			return "", err
		}
		defer mem.Close()
		code := make([]byte, end-start)
		if err := readAt(mem, code, start); err != nil {
			return "", err
		}
		return buildID(bytes.NewReader(code)), nil
	}
	return "", nil
}
