package pause

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/internal/stream"
	"github.com/lampause/lampause/job"
)

// mpiJob is a job that MPICH's own launcher started.
type mpiJob struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    *bufio.Reader
	ranks  []Rank
	ext    []External
	cancel context.CancelFunc
}

// startMPI builds and starts testdata/c/NAME.c with MPICH over TCP.
func startMPI(t *testing.T, exe string, ranks int, args ...string) *mpiJob {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	// Hydra leaves many descriptors of its own open in the ranks.
	const clean = `for f in /proc/$$/fd/*; do n=${f##*/}; [ $n -gt 2 ] && [ $n != $PMI_FD ] && eval "exec $n>&-"; done; exec "$@"`
	cmd := exec.CommandContext(ctx, "mpiexec.hydra",
		append([]string{"-n", fmt.Sprint(ranks), "bash", "-c", clean, "bash", exe}, args...)...)
	cmd.Env = append(os.Environ(), "UCX_TLS=tcp,self", "UCX_NET_DEVICES=lo", "MPIR_CVAR_NOLOCAL=1", "HWLOC_COMPONENTS=-gl")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	j := &mpiJob{t: t, cmd: cmd, out: bufio.NewReader(out), cancel: cancel}
	t.Cleanup(func() {
		for _, r := range j.ranks {
			_ = unix.Kill(r.PID, unix.SIGKILL)
		}
		cancel()
		_ = cmd.Wait()
	})
	if line, err := j.out.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("job said %q, %v", line, err)
	}
	j.find(cmd.Process.Pid, filepath.Base(exe))
	if len(j.ranks) != ranks {
		t.Fatalf("found ranks %v", j.ranks)
	}
	return j
}

// find collects the ranks below pid and what the launcher gave them.
func (j *mpiJob) find(pid int, comm string) {
	kids, err := proc.Children(pid)
	if err != nil {
		j.t.Fatal(err)
	}
	for _, k := range kids {
		st, err := proc.ReadStat(k)
		if err != nil {
			j.t.Fatal(err)
		}
		if st.Comm != comm {
			j.find(k, comm)
			continue
		}
		rank := job.Rank(len(j.ranks))
		j.ranks = append(j.ranks, Rank{Rank: rank, PID: k})
		for fd, name := range map[int]string{0: "stdin", 1: "stdout", 2: "stderr", pmiFD(k): "pmi"} {
			var s unix.Stat_t
			if err := unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", k, fd), &s); err != nil {
				j.t.Fatal(err)
			}
			j.ext = append(j.ext, External{Name: name, Rank: rank, Dev: s.Dev, Ino: s.Ino})
		}
	}
}

// pmiFD reads PMI_FD of a rank's environment.
func pmiFD(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	for _, kv := range strings.Split(string(b), "\x00") {
		if v, ok := strings.CutPrefix(kv, "PMI_FD="); ok {
			n := -1
			_, _ = fmt.Sscan(v, &n)
			return n
		}
	}
	return -1
}

func (j *mpiJob) result() string {
	j.t.Helper()
	rest, _ := io.ReadAll(j.out)
	if err := j.cmd.Wait(); err != nil {
		j.t.Fatalf("job: %v, said %q", err, rest)
	}
	return string(rest)
}

// checkpointMPI retries rounds that meet connections in the making.
func checkpointMPI(t *testing.T, pod *Pod, dir *image.JobDir, e job.Epoch) *Report {
	t.Helper()
	ctx := testCtx(t)
	var marks *Report
	begin := time.Now()
	for _, s := range []func(context.Context, job.Epoch) (*Report, error){pod.Freeze, pod.CaptureSend, pod.CaptureRecv} {
		r, err := s(ctx, e)
		if err != nil {
			t.Fatalf("epoch %d: %v", e, err)
		}
		t.Logf("%v", r.TimesMS)
		marks = r
	}
	peers, err := stream.Pair(map[job.PodIndex][]podapi.Mark{0: marks.Marks})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pod.Resume(ctx, e, peers[0]); err != nil {
		t.Fatal(err)
	}
	t.Logf("stall %v for %d MB", time.Since(begin), marks.Bytes>>20)
	if _, err := pod.Write(ctx, e, dir, image.Options{}, Extra{}); err != nil {
		t.Fatalf("epoch %d: %v", e, err)
	}
	if err := pod.Commit(ctx, e); err != nil {
		t.Fatalf("epoch %d: %v", e, err)
	}
	return marks
}

// TestMPICH checkpoints, with either backing, and rolls back two ranks of
// unmodified MPICH.
func TestMPICH(t *testing.T) {
	mpicc, err := exec.LookPath("mpicc")
	if err != nil {
		t.Skip("mpicc is not installed: the MPI program cannot be built")
	}
	if _, err := exec.LookPath("mpiexec.hydra"); err != nil {
		t.Skip("mpiexec.hydra is not installed: nothing to start ranks with")
	}
	if os.Getuid() != 0 {
		t.Skip("repairing TCP connections needs CAP_NET_ADMIN in the network namespace of the ranks")
	}
	exe := filepath.Join(t.TempDir(), "ring")
	if b, err := exec.CommandContext(t.Context(), mpicc, "-O1", "-o", exe, "testdata/c/ring.c").CombinedOutput(); err != nil {
		t.Fatalf("mpicc: %v\n%s", err, b)
	}
	const steps = "3000"
	want := startMPI(t, exe, 2, steps).result()
	j := startMPI(t, exe, 2, steps)
	log := zerolog.New(zerolog.NewTestWriter(t))
	pod := New(Config{Job: 1, Node: "n1", Incarnation: 1, Streams: stream.New(nil, -1, log), Log: log})
	defer func() { _ = pod.Close() }()
	pod.SetRanks(j.ranks, j.ext)
	dir, err := image.OpenJob(t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	rnd := rand.New(rand.NewPCG(1, 2))
	gen := uint64(1)
	for e := job.Epoch(1); e <= 3; e++ {
		time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
		if err := pod.Prepare(testCtx(t)); err != nil {
			t.Fatal(err)
		}
		pod.cfg.Backing = []Backing{BackingCopy, BackingFork}[e%2]
		r := checkpointMPI(t, pod, dir, e)
		t.Log(r.Backing)
		for range 2 {
			time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
			r := rollback(t, pod, e, gen)
			t.Logf("rollback %d MB: %v", r.Bytes>>20, r.TimesMS)
			gen++
		}
	}
	if got := j.result(); got != want {
		t.Fatalf("result %q, want %q", got, want)
	}
}
