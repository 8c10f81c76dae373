package lamd

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/lampause/lampause/internal/podapi"
)

// process is a process of a pod. Its start time tells it from a later one that
// got the same number.
type process struct {
	pid   int
	start string // field 22 of /proc/PID/stat, clock ticks since boot
}

// processOf identifies the process that has the number pid now; false when
// there is none.
func processOf(pid int) (process, bool) {
	if pid <= 1 {
		return process{}, false
	}
	_, start, ok := procStat(pid)
	return process{pid, start}, ok
}

// processesOf identifies those of pids that exist.
func processesOf(pids ...int) []process {
	var out []process
	for _, pid := range pids {
		if p, ok := processOf(pid); ok {
			out = append(out, p)
		}
	}
	return out
}

// alive reports whether the process exists and is no zombie.
func (p process) alive() bool {
	state, start, ok := procStat(p.pid)
	return ok && start == p.start && state != "Z" && state != "X"
}

// kill ends the process if it is still the same one.
func (p process) kill() {
	if p.alive() {
		_ = syscall.Kill(p.pid, syscall.SIGKILL) // gone already is what we want
	}
}

// procStat reads the state and the start time of a process (proc_pid_stat(5)).
func procStat(pid int) (state, start string, ok bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", "", false
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // f[0] is field 3
	if len(f) < 20 {
		return "", "", false
	}
	return string(f[0]), string(f[19]), true
}

// children lists the children of all threads of a process.
func children(pid int) []int {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	var out []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		for _, w := range bytes.Fields(b) {
			if n, err := strconv.Atoi(string(w)); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// processes returns the processes to wait for when the pod ends. Those of a
// supervisor that never said who it is are found by its socket: the kernel
// knows who listens there, also when it does not answer.
func (p *localPod) processes(ctx context.Context) []process {
	if len(p.procs) > 0 {
		return p.procs
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", filepath.Join(p.dir, podapi.Socket))
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }()
	cred, err := peerCred(conn)
	if err != nil {
		return nil
	}
	pid := int(cred.Pid)
	return processesOf(append([]int{pid}, children(pid)...)...)
}

// awaitGone waits until every process is gone or a zombie. A zombie pod-init
// has seen the end of every process of its pid namespace (pid_namespaces(7)).
func awaitGone(ctx context.Context, procs []process) error {
	tick := time.NewTicker(pollPod)
	defer tick.Stop()
	for _, p := range procs {
		for p.alive() {
			select {
			case <-ctx.Done():
				return fmt.Errorf("process %d of the pod does not end: %w", p.pid, ctx.Err())
			case <-tick.C:
			}
		}
	}
	return nil
}
