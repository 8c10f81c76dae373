package stream

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// startMPI runs two ranks of an unmodified MPICH program, one in each pod, and
// returns them as parties.
func startMPI(t *testing.T, a, b *netns) []*party {
	t.Helper()
	for _, tool := range []string{"mpicc", "mpiexec.hydra", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	bin := filepath.Join(t.TempDir(), "pingpong")
	if out, err := exec.Command("mpicc", "-O2", "-o", bin, "testdata/pingpong.c").CombinedOutput(); err != nil {
		t.Fatalf("mpicc: %v\n%s", err, out)
	}
	log := &lines{got: make(chan struct{}, 1)}
	other := fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), b.file.Fd())
	// The launcher's own sockets, which ranks inherit, are not theirs.
	const only = `for f in /proc/$$/fd/*; do n=${f##*/}; [ $n -gt 2 ] && [ $n != $PMI_FD ] && eval "exec $n>&-"; done; exec "$@"`
	wrap := []string{"bash", "-c", only, "bash"}
	args := append([]string{"-launcher", "fork", "-n", "1"}, append(wrap, bin, ":", "-n", "1")...)
	cmd := exec.Command("mpiexec.hydra", append(args, append(wrap, "nsenter", other, bin)...)...)
	cmd.Env = append(os.Environ(), "UCX_TLS=tcp,self", "UCX_NET_DEVICES=eth0", "HWLOC_COMPONENTS=-gl", "MPIR_CVAR_NOLOCAL=1")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	a.inside(t, cmd.Start)
	t.Cleanup(func() {
		defer func() { _ = cmd.Wait() }()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		for _, pid := range runningAs(t, bin) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	first := &program{t: t, ns: a, cmd: cmd, log: log, tr: proc.NewTracer(kernel.New(nil)), args: []string{bin}}
	t.Cleanup(func() { _ = first.tr.Close() })
	first.ready()
	pids := runningAs(t, bin)
	if len(pids) != 2 {
		t.Fatalf("ranks are %v", pids)
	}
	var ps []*party
	for _, ns := range []*netns{a, b} {
		want, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", ns.file.Fd()))
		must(t, err)
		for _, pid := range pids {
			if have, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && have == want {
				p := &program{t: t, ns: ns, log: log, tr: proc.NewTracer(kernel.New(nil)), args: first.args}
				p.cmd = &exec.Cmd{Process: &os.Process{Pid: pid}}
				t.Cleanup(func() { _ = p.tr.Close() })
				ps = append(ps, parties(p)[0])
			}
		}
	}
	if len(ps) != 2 {
		t.Fatalf("%d ranks are in their pods", len(ps))
	}
	ps[1].pod = 1
	return ps
}

// runningAs returns the processes that run a program.
func runningAs(t testing.TB, bin string) (pids []int) {
	names, err := os.ReadDir("/proc")
	must(t, err)
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name())
		if err != nil {
			continue
		}
		if exe, err := os.Readlink("/proc/" + n.Name() + "/exe"); err == nil && exe == bin {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestMPICH captures the connections of live ranks again and again, and
// replaces them: the same sockets, and new ones, under UCX' feet.
func TestMPICH(t *testing.T) {
	for name, restore := range map[string]func(p *party, gen uint64){
		"capture":  nil,
		"in place": func(p *party, gen uint64) { p.restore(gen, false) },
		"new": func(p *party, gen uint64) {
			p.rec = disown(p.rec)
			p.restore(gen, false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, a, b := twoPods(t)
			ps := startMPI(t, a, b)
			done, most := 0, int64(0)
			defer func() {
				if t.Failed() {
					t.Logf("after %d times: %s", done, ps[0].log)
				}
			}()
			for gen := range uint64(12) {
				pause(60 * time.Millisecond)
				if bytes.Contains([]byte(ps[0].log.String()), []byte("right")) {
					break
				}
				freezeAll(ps)
				if checkpoint(t, ps) {
					most = max(most, ps[0].rec.Bytes()+ps[1].rec.Bytes())
					done++
					if restore != nil {
						for _, p := range ps {
							p.soul = &soul{epolls: p.epolls()}
							restore(p, gen)
						}
						for _, p := range ps {
							p.release()
						}
					}
				}
				thawAll(ps)
			}
			waitFor(t, ps[0], "right\n")
			t.Logf("%d times, up to %d bytes in flight", done, most)
		})
	}
}

func waitFor(t *testing.T, p *party, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for !bytes.Contains([]byte(p.log.String()), []byte(text)) {
		select {
		case <-p.log.got:
		case <-ctx.Done():
			p.dump()
			t.Fatalf("hangs: %s", p.log)
		}
		if bytes.Contains([]byte(p.log.String()), []byte("WRONG")) {
			t.Fatal(p.log.String())
		}
	}
}
