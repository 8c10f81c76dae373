package stream

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/rs/zerolog"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/progtest"
)

// labEnv marks the process that runs inside namespaces of its own.
const labEnv = "LAMPAUSE_STREAM_LAB"

// TestMain runs the tests in a child with its own network namespace, and for
// an ordinary user its own user namespace, in which it has CAP_NET_ADMIN.
// Without user namespaces the tests that need it skip.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(labEnv) == "" && !fuzzing() {
		if code, ok := runLab(); ok {
			os.Exit(code)
		}
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func fuzzing() bool {
	for _, name := range []string{"test.fuzz", "test.fuzzworker"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" && f.Value.String() != "false" {
			return true
		}
	}
	return false
}

// runLab runs this test binary again inside namespaces; ok is false when they
// cannot be had.
func runLab() (code int, ok bool) {
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), labEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	runtime.LockOSThread() // Pdeathsig follows the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "no namespaces:", err)
		return 0, false
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1, true
	}
	return cmd.ProcessState.ExitCode(), true
}

// needLab skips a test that runs outside of the lab.
func needLab(t testing.TB) {
	t.Helper()
	if os.Getenv(labEnv) == "" {
		t.Skip("needs network namespaces of its own: user namespaces are not permitted here")
	}
}

// netns is a network namespace of the lab, standing for a pod.
type netns struct {
	file *os.File
	ip   string
}

// inside runs fn on a thread inside ns.
func (ns *netns) inside(t testing.TB, fn func() error) {
	t.Helper()
	if err := inNS(int(ns.file.Fd()), fn); err != nil {
		t.Fatal(err)
	}
}

func inNS(fd int, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("setns: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// hub is a namespace with a bridge that pods are connected to.
type hub struct {
	*netns
	links int
}

func newNS(t testing.TB) *netns {
	t.Helper()
	var f *os.File
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	ns := &netns{file: f}
	t.Cleanup(func() {
		if err := New(nil, int(f.Fd()), zerolog.Nop()).Forget(); err != nil {
			t.Errorf("connections of the lab: %v", err)
		}
		_ = f.Close()
	})
	ns.inside(t, func() error { return setUp("lo") })
	return ns
}

func setUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func newHub(t testing.TB) *hub {
	t.Helper()
	needLab(t)
	h := &hub{netns: newNS(t)}
	h.inside(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		return setUp("br0")
	})
	return h
}

// pod makes a namespace with an address on the hub's bridge. Buffers are sized
// as those of real pods.
func (h *hub) pod(t testing.TB, ip, mac string) *netns {
	t.Helper()
	ns := newNS(t)
	ns.ip = ip
	h.links++
	port := fmt.Sprintf("p%d", h.links)
	h.inside(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = port
		hw, err := net.ParseMAC(mac)
		if err != nil {
			return err
		}
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: hw, PeerNamespace: netlink.NsFd(ns.file.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("veth: %w", err)
		}
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(veth, br); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	ns.inside(t, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(ip + "/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	ns.sysctl(t, "ipv4/tcp_wmem", "4096 4194304 4194304")
	ns.sysctl(t, "ipv4/tcp_rmem", "4096 2097152 2097152")
	return ns
}

func (ns *netns) sysctl(t testing.TB, name, value string) {
	t.Helper()
	ns.inside(t, func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) })
}

// neighbour makes the hardware address of another pod known for good.
func (ns *netns) neighbour(t testing.TB, ip, mac string) {
	t.Helper()
	ns.inside(t, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		hw, err := net.ParseMAC(mac)
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(ip), HardwareAddr: hw})
	})
}

// cut takes the pod off the network, as the loss of its node does.
func (ns *netns) cut(t testing.TB) {
	t.Helper()
	ns.inside(t, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
}

// streams returns the package under test for the pod.
func (ns *netns) streams(t testing.TB, hook kernel.Hook) *Streams {
	return New(kernel.New(hook), int(ns.file.Fd()), zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel))
}

// twoPods is the usual stage.
func twoPods(t testing.TB) (h *hub, a, b *netns) {
	h = newHub(t)
	a, b = h.pod(t, "10.9.0.1", "02:00:00:00:00:01"), h.pod(t, "10.9.0.2", "02:00:00:00:00:02")
	a.neighbour(t, b.ip, "02:00:00:00:00:02")
	b.neighbour(t, a.ip, "02:00:00:00:00:01")
	return h, a, b
}

// buildC compiles a program of testdata, or skips.
func buildC(t testing.TB, name string, args ...string) string {
	t.Helper()
	return progtest.Build(t, filepath.Join("testdata", name+".c"), append([]string{"-O2", "-Wall"}, args...)...)
}
