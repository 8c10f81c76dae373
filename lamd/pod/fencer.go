package pod

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/pmi"
)

// fencePoll bounds one wait for a fence; the pod then asks again, so that a
// restarted lamd or a new leader hears of it soon.
const fencePoll = 10 * time.Second

// maxFenceReply bounds an answer, in bytes.
const maxFenceReply = 64 << 20

// lamdFencer meets the other pods through the node's lamd.
type lamdFencer struct {
	client *http.Client
	header func() podapi.Header
	pod    job.PodIndex
}

// newLamdClient returns a client of lamd's unix socket.
func newLamdClient(socket string) *http.Client {
	d := &net.Dialer{Timeout: 2 * time.Second}
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
	}}
}

// message turns a fence into the words of podapi.
func (f *lamdFencer) message(x pmi.Fence) podapi.Fence {
	return podapi.Fence{Header: f.header(), Pod: f.pod, Seq: x.Seq, Puts: x.Puts, Early: x.Early, Ask: x.Ask}
}

// Fence implements pmi.Fencer by a long poll.
func (f *lamdFencer) Fence(ctx context.Context, x pmi.Fence) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, fencePoll)
	defer cancel()
	b, err := json.Marshal(f.message(x))
	if err != nil {
		return nil, fmt.Errorf("fence %d: %w", x.Seq, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://lamd"+podapi.PathFence, bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("fence %d: %w", x.Seq, err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fence %d: %w", x.Seq, err)
	}
	defer func() { _ = resp.Body.Close() }() // read only
	body := io.LimitReader(resp.Body, maxFenceReply)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(body, 512)) // only for the message
		return nil, fmt.Errorf("fence %d: lamd answered %s: %s", x.Seq, resp.Status, bytes.TrimSpace(text))
	}
	var reply podapi.FenceReply
	if err := json.NewDecoder(body).Decode(&reply); err != nil {
		return nil, fmt.Errorf("fence %d: %w", x.Seq, err)
	}
	if reply.Seq != x.Seq {
		return nil, fmt.Errorf("fence %d: answer is for fence %d", x.Seq, reply.Seq)
	}
	return reply.Puts, nil
}

// prober looks at the receive queues of ranks.
type prober struct {
	pids func([]job.Rank) map[job.Rank]int
}

// Unread implements pmi.Prober: the sockets of the ranks are those of
// /proc/PID/fd, their queues those of /proc/net/tcp of the pod's network
// namespace (proc_pid_net(5)).
func (p prober) Unread(_ context.Context, ranks []job.Rank) (bool, error) {
	f, err := os.Open("/proc/self/net/tcp")
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }() // read only
	unread, err := unreadSockets(f)
	if err != nil || len(unread) == 0 {
		return false, err
	}
	for _, pid := range p.pids(ranks) {
		for _, pid := range family(pid) {
			for _, to := range openFiles(pid) {
				if ino, ok := strings.CutPrefix(to, "socket:["); ok && unread[strings.TrimSuffix(ino, "]")] {
					return true, nil
				}
			}
		}
	}
	return false, nil
}

// maxFamily bounds the processes of a rank that are looked at.
const maxFamily = 1000

// family returns a process and its descendants: the MPI program may be started
// by a shell. Processes that end meanwhile are left out. Source:
// proc_pid_task(5), children.
func family(pid int) []int {
	out := []int{pid}
	for i := 0; i < len(out) && len(out) < maxFamily; i++ {
		tasks, err := filepath.Glob("/proc/" + strconv.Itoa(out[i]) + "/task/*/children")
		if err != nil { // only for a malformed pattern
			return out
		}
		for _, t := range tasks {
			b, err := os.ReadFile(t)
			if err != nil {
				continue
			}
			for _, w := range strings.Fields(string(b)) {
				if kid, err := strconv.Atoi(w); err == nil {
					out = append(out, kid)
				}
			}
		}
	}
	return out
}

// openFiles returns what the descriptors of a process refer to.
func openFiles(pid int) []string {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if to, err := os.Readlink(dir + "/" + e.Name()); err == nil { // else closed meanwhile
			out = append(out, to)
		}
	}
	return out
}

// unreadSockets returns the inodes of the connections with unread bytes:
// established, or closed by the peer.
func unreadSockets(r io.Reader) (map[string]bool, error) {
	const established, closeWait = "01", "08"
	out := map[string]bool{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		w := strings.Fields(lines.Text())
		if len(w) < 10 || w[3] != established && w[3] != closeWait {
			continue
		}
		_, rx, ok := strings.Cut(w[4], ":")
		if ok && strings.Trim(rx, "0") != "" {
			out[w[9]] = true
		}
	}
	return out, lines.Err()
}
