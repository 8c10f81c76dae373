package nodelink

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/job"
)

// The test binary plays three parts: the test itself; "cluster", a process in
// a user namespace U with a network namespace of its own, where the links of
// two nodes would be; and "pod", a process in a user namespace S inside U.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "cluster":
			os.Exit(exitOf(cluster()))
		case "pod":
			os.Exit(exitOf(podMain()))
		}
	}
	os.Exit(m.Run())
}

func exitOf(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestNestedUserNamespaces attaches pods as lamd does in a local cluster, once
// per kind of user, and lets them talk.
func TestNestedUserNamespaces(t *testing.T) {
	for _, uid := range []int{os.Getuid(), 1500} {
		t.Run(fmt.Sprintf("uid %d", uid), func(t *testing.T) {
			if uid != os.Getuid() && os.Getuid() != 0 {
				t.Skip("only root can become another user")
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, reachable(t), "cluster")
			cmd.SysProcAttr = userNamespace(uid, uid)
			if uid != os.Getuid() {
				// The user itself must make the namespace and write the maps.
				id := strconv.Itoa(uid)
				cmd = exec.CommandContext(ctx, "setpriv", "--reuid", id, "--regid", id, "--clear-groups",
					"unshare", "--user", "--map-root-user", "--net", cmd.Path, "cluster")
			}
			out, err := cmd.CombinedOutput()
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
				t.Skipf("no user namespaces here: %v", err)
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}

// reachable copies the test binary to where every user can execute it.
func reachable(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := dir + "/nodelink.test"
	if err := os.WriteFile(path, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func userNamespace(uid, gid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
}

// cluster puts two pods on two "nodes" joined by a cable, a third beside the
// first, and checks what they can reach.
func cluster() error {
	cable := netlink.NewVeth(netlink.LinkAttrs{Name: "node1", MTU: 9000})
	cable.PeerName, cable.PeerMTU = "node2", 9000
	if err := netlink.LinkAdd(cable); err != nil {
		return err
	}
	for _, n := range []string{"node1", "node2"} {
		l, err := netlink.LinkByName(n)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	book := make([]job.PodAddress, 3)
	for i := range book {
		book[i] = job.PodAddress{
			Pod: job.PodIndex(i), IP: netip.AddrFrom4([4]byte{10, 77, 1, byte(i + 1)}),
			MAC: fmt.Sprintf("02:00:00:00:01:%02x", i+1), Hostname: fmt.Sprintf("pod%d", i),
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var pods []*testPod
	for i, parent := range []string{"node1", "node2", "node1"} {
		p, err := startPod(ctx, NewMacvlan(parent), book[i], book)
		if err != nil {
			return fmt.Errorf("pod %d: %w", i, err)
		}
		defer p.end()
		pods = append(pods, p)
	}
	for _, step := range []struct{ from, to int }{{0, 1}, {1, 0}, {0, 2}, {2, 1}} {
		if err := pods[step.from].reach(book[step.to].IP, true); err != nil {
			return fmt.Errorf("pod %d to pod %d: %w", step.from, step.to, err)
		}
	}
	return moves(ctx, pods, book)
}

// moves cuts a pod off, from outside and inside, brings it back, and gives
// another one a new hardware address, as a recovery does.
func moves(ctx context.Context, pods []*testPod, book []job.PodAddress) error {
	if err := pods[0].link.Down(ctx, pods[0].cmd.Process.Pid); err != nil {
		return err
	}
	if err := pods[1].reach(book[0].IP, false); err != nil {
		return fmt.Errorf("after Down: %w", err)
	}
	if _, err := pods[0].ask(request{Op: "inside", Self: book[0], Book: book}); err != nil {
		return err
	}
	if err := pods[1].reach(book[0].IP, true); err != nil {
		return fmt.Errorf("after Inside again: %w", err)
	}
	if _, err := pods[0].ask(request{Op: "cutoff"}); err != nil {
		return err
	}
	if err := pods[1].reach(book[0].IP, false); err != nil {
		return fmt.Errorf("after CutOff: %w", err)
	}

	// Pod 0 moves to the other node with a new MAC; the old one is still there,
	// comes to life again and must not be heard.
	next := append([]job.PodAddress(nil), book...)
	next[0].MAC = "02:00:00:00:02:01"
	moved, err := startPod(ctx, NewMacvlan("node2"), next[0], next)
	if err != nil {
		return err
	}
	defer moved.end()
	if _, err := pods[0].ask(request{Op: "inside", Self: book[0], Book: book}); err != nil {
		return err
	}
	for _, p := range pods[1:] {
		if _, err := p.ask(request{Op: "neighbours", Self: next[p.index], Book: next}); err != nil {
			return err
		}
		if err := p.reach(next[0].IP, true); err != nil {
			return fmt.Errorf("moved pod: %w", err)
		}
	}
	if err := moved.reach(book[1].IP, true); err != nil {
		return fmt.Errorf("from the moved pod: %w", err)
	}
	if err := pods[0].reach(book[1].IP, false); err != nil {
		return fmt.Errorf("from the stale pod: %w", err)
	}
	return again(ctx, moved, next)
}

// again repeats what may be repeated.
func again(ctx context.Context, p *testPod, book []job.PodAddress) error {
	mac, err := net.ParseMAC(book[0].MAC)
	if err != nil {
		return err
	}
	pid := p.cmd.Process.Pid
	if err := p.link.Attach(ctx, Link{NetnsPID: pid, MAC: mac}); err != nil {
		return fmt.Errorf("attach again: %w", err)
	}
	if err := p.reach(book[1].IP, true); err != nil {
		return fmt.Errorf("after attaching again: %w", err)
	}
	for range 2 {
		if err := p.link.Detach(ctx, pid); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
	}
	if _, err := p.ask(request{Op: "cutoff"}); err != nil {
		return fmt.Errorf("cut off without a link: %w", err)
	}
	p.end()
	if err := p.link.Detach(ctx, pid); err != nil {
		return fmt.Errorf("detach an ended pod: %w", err)
	}
	if err := p.link.Attach(ctx, Link{NetnsPID: pid, MAC: mac}); !errors.Is(err, ErrNoNamespace) {
		return fmt.Errorf("attach to an ended pod: %v", err) //nolint:errorlint // nil, or the wrong one
	}
	fmt.Println("pods reach each other, and only while they may")
	return nil
}

// testPod is a process in a namespace S of its own that obeys requests.
type testPod struct {
	index int
	link  *Macvlan
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Scanner
}

func startPod(ctx context.Context, m *Macvlan, self job.PodAddress, book []job.PodAddress) (*testPod, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "pod")
	cmd.SysProcAttr = userNamespace(0, 0)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &testPod{index: int(self.Pod), link: m, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	mac, err := net.ParseMAC(self.MAC)
	if err != nil {
		return p, err
	}
	if err := m.Attach(ctx, Link{NetnsPID: cmd.Process.Pid, MAC: mac}); err != nil {
		return p, err
	}
	a, err := p.ask(request{Op: "inside", Self: self, Book: book})
	if err == nil && a.MTU != 9000 {
		err = fmt.Errorf("MTU %d, want that of the node's link", a.MTU)
	}
	return p, err
}

func (p *testPod) end() {
	_ = p.in.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// reach lets the pod connect to port 9 of ip and checks whether it could.
func (p *testPod) reach(ip netip.Addr, want bool) error {
	a, err := p.ask(request{Op: "connect", To: ip})
	if err != nil {
		return err
	}
	if a.OK != want {
		return fmt.Errorf("connected %v, want %v (%s)", a.OK, want, a.Text)
	}
	return nil
}

type request struct {
	Op   string
	Self job.PodAddress
	Book []job.PodAddress
	To   netip.Addr
}

type answer struct {
	OK   bool
	Text string
	MTU  int
	Fail bool
}

func (p *testPod) ask(r request) (answer, error) {
	if err := json.NewEncoder(p.in).Encode(r); err != nil {
		return answer{}, err
	}
	if !p.out.Scan() {
		return answer{}, fmt.Errorf("pod %d is silent", p.index)
	}
	var a answer
	if err := json.Unmarshal(p.out.Bytes(), &a); err != nil {
		return a, err
	}
	if a.Fail {
		return a, fmt.Errorf("%s: %s", r.Op, a.Text)
	}
	return a, nil
}

// podMain is the process of a testPod. It listens on port 9 of every address.
func podMain() error {
	l, err := net.Listen("tcp4", ":9")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var r request
		if err := in.Decode(&r); err != nil {
			return nil //nolint:nilerr // whoever asks is gone
		}
		if err := out.Encode(obey(r)); err != nil {
			return err
		}
	}
}

func obey(r request) answer {
	var err error
	switch r.Op {
	case "inside":
		if err = Inside(r.Self, r.Book); err == nil {
			err = checkInside(r)
		}
	case "neighbours":
		err = Neighbours(r.Self, r.Book)
	case "cutoff":
		err = CutOff()
	case "connect":
		c, err := net.DialTimeout("tcp4", net.JoinHostPort(r.To.String(), "9"), 700*time.Millisecond)
		if err != nil {
			return answer{Text: err.Error()}
		}
		_ = c.Close()
		return answer{OK: true}
	}
	if err != nil {
		return answer{Fail: true, Text: err.Error()}
	}
	mtu := 0
	if l, err := netlink.LinkByName(Name); err == nil {
		mtu = l.Attrs().MTU
	}
	return answer{OK: true, MTU: mtu}
}

// checkInside verifies limits and the one address.
func checkInside(r request) error {
	raw, err := os.ReadFile("/proc/sys/net/ipv4/tcp_rmem")
	if err != nil {
		return err
	}
	if got := strings.Join(strings.Fields(string(raw)), " "); got != tcpRmem {
		return fmt.Errorf("tcp_rmem is %q", got)
	}
	l, err := netlink.LinkByName(Name)
	if err != nil {
		return err
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	if len(addrs) != 1 || addrs[0].IP.String() != r.Self.IP.String() {
		return fmt.Errorf("addresses %v", addrs)
	}
	return nil
}

func TestParentOf(t *testing.T) {
	got, err := ParentOf(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	if err != nil || got != "lo" {
		t.Errorf("127.0.0.1 is on %q, %v", got, err)
	}
	if _, err := ParentOf(netip.AddrFrom4([4]byte{203, 0, 113, 9})); err == nil {
		t.Error("an address that nobody has was found")
	}
}
