package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/lamd/nodelink"
)

// Names of the stages.
const (
	stageCluster    = "cluster"
	stageSupervisor = "supervisor"
	stagePod        = "pod"
)

// Checks of the stages.
const (
	checkUserns = "user namespaces"
	checkMounts = "own /proc and /dev/shm"
	checkSys    = "own /sys"
	checkSwitch = "veth and macvlan"
	checkNested = "nested user namespaces"
	checkLink   = "macvlan into a pod"
	checkRepair = "TCP_REPAIR without root"
	checkKill   = "closing sockets (INET_DIAG_DESTROY)"
	checkPIDs   = "fixed process ids"
)

const (
	cureUserns = "root: sysctl user.max_user_namespaces=65536; on Debian and Ubuntu also kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0; inside a container: run it with user namespaces allowed, or boot as root"
	cureLink   = "root: modprobe macvlan veth (CONFIG_MACVLAN, CONFIG_VETH)"
	cureMounts = "a container that covers parts of /proc does not allow a fresh one; run outside of it or with an uncovered /proc (docker: --security-opt systempaths=unconfined)"
)

// stages runs the chain of stages and returns all their results.
func (c Config) stages(ctx context.Context) []Result {
	cmd := c.command(ctx, stageCluster, unix.CLONE_NEWUSER|unix.CLONE_NEWPID|unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC, os.Geteuid(), os.Getegid())
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	all := parse(out)
	if len(all) == 0 {
		if err == nil {
			err = errors.New("the test process said nothing")
		}
		return []Result{result(checkUserns, fmt.Errorf("%w %s", err, complaints.String()), "", Missing, cureUserns)}
	}
	return all
}

// command is this program as a stage, in new namespaces, with one id mapped.
func (c Config) command(ctx context.Context, stage string, flags uintptr, uid, gid int) *exec.Cmd {
	argv := c.Stage(stage)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  flags,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	return cmd
}

// RunStage is what the program does when it is started as a stage. Results go
// to out.
//
// Expected errors: an unknown stage; that of out.
func (c Config) RunStage(ctx context.Context, name string, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s := stage{c: c, enc: json.NewEncoder(out), in: in, out: out}
	switch name {
	case stageCluster:
		s.cluster(ctx)
	case stageSupervisor:
		s.supervisor(ctx)
	case stagePod:
		s.pod(ctx)
	default:
		return fmt.Errorf("unknown stage %q", name)
	}
	return s.err
}

// stage is a running stage. The first error of out is kept.
type stage struct {
	c   Config
	enc *json.Encoder
	in  io.Reader
	out io.Writer
	err error
}

func (s *stage) say(r Result) {
	if err := s.enc.Encode(r); s.err == nil {
		s.err = err
	}
}

// cluster is the part of the holder, of a node-init and of lamd.
func (s *stage) cluster(ctx context.Context) {
	s.say(Result{Check: checkUserns, Status: OK, Detail: "made, as uid " + strconv.Itoa(os.Getuid())})
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
	if err == nil {
		err = unix.Mount("proc", "/proc", "proc", flags|unix.MS_NOEXEC, "")
	}
	if err == nil {
		err = unix.Mount("shm", "/dev/shm", "tmpfs", flags, "mode=1777")
	}
	s.say(result(checkMounts, err, "mounted", Missing, cureMounts))
	err = unix.Mount("sysfs", "/sys", "sysfs", flags|unix.MS_NOEXEC|unix.MS_RDONLY, "")
	s.say(result(checkSys, err, "mounted", Warn, "without it MPI sees the host's names of network links; works where the host has an eth0"))
	parent, err := links()
	s.say(result(checkSwitch, err, "made", Missing, cureLink))
	if err != nil {
		return
	}
	s.startSupervisor(ctx, parent)
}

// links makes what a local cluster has: a link that all nodes hang on, and a
// node's link on it, whose name it returns.
func links() (string, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lam0"
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "lam0-end"
	if err := netlink.LinkAdd(veth); err != nil {
		return "", fmt.Errorf("veth: %w", err)
	}
	parent, err := netlink.LinkByName(attrs.Name)
	if err != nil {
		return "", fmt.Errorf("veth: %w", err)
	}
	for _, l := range []netlink.Link{parent, &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: veth.PeerName}}} {
		if err := netlink.LinkSetUp(l); err != nil {
			return "", fmt.Errorf("veth: %w", err)
		}
	}
	attrs = netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = "node1", parent.Attrs().Index
	if err := netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
		return "", fmt.Errorf("macvlan: %w", err)
	}
	return attrs.Name, nil
}

// startSupervisor runs the next stage, and gives it its link before it begins.
func (s *stage) startSupervisor(ctx context.Context, parent string) {
	cmd := s.c.command(ctx, stageSupervisor, unix.CLONE_NEWUSER|unix.CLONE_NEWNET, 0, 0)
	cmd.Stdout, cmd.Stderr = s.out, os.Stderr
	begin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	s.say(result(checkNested, err, "made", Missing, cureUserns))
	if err != nil {
		return
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	err = nodelink.NewMacvlan(parent).Attach(ctx, nodelink.Link{NetnsPID: cmd.Process.Pid, MAC: mac})
	s.say(result(checkLink, err, "attached", Missing, cureLink))
	_ = begin.Close()
	if err := cmd.Wait(); err != nil {
		s.say(result("supervisor of a pod", err, "", Missing, cureUserns))
	}
}

// supervisor is the part of a pod's supervisor.
func (s *stage) supervisor(ctx context.Context) {
	_, _ = io.Copy(io.Discard, s.in) // until the link is there, or never will be
	self := job.PodAddress{IP: netip.AddrFrom4([4]byte{10, 77, 1, 1}), MAC: "02:00:00:00:00:01"}
	other := job.PodAddress{Pod: 1, IP: netip.AddrFrom4([4]byte{10, 77, 1, 2}), MAC: "02:00:00:00:00:02"}
	err := nodelink.Inside(self, []job.PodAddress{self, other})
	s.say(result("network of a pod", err, "configured", Missing, cureLink))
	sys := kernel.New(nil)
	s.say(result(checkRepair, repair(sys), "granted in the pod's own network namespace", Missing, "a kernel with CONFIG_CHECKPOINT_RESTORE"))
	s.say(result(checkKill, destroy(sys), "granted", Missing, "a kernel with CONFIG_INET_DIAG_DESTROY; root: modprobe inet_diag tcp_diag"))
	cmd := s.c.command(ctx, stagePod, unix.CLONE_NEWUSER|unix.CLONE_NEWPID|unix.CLONE_NEWNS|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS, 0, 0)
	cmd.Stdout, cmd.Stderr = s.out, os.Stderr
	if err := cmd.Run(); err != nil {
		s.say(result("namespaces of a pod", err, "", Missing, cureUserns))
	}
}

func repair(sys *kernel.Sys) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return sys.TCPRepair(fd)
}

func destroy(sys *kernel.Sys) error {
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = sys.TCPDestroyAll(int(f.Fd()))
	return err
}

// pod is the part of a pod-init that starts ranks.
func (s *stage) pod(ctx context.Context) {
	s.say(result(checkPIDs, choosePID(ctx, s.c.Stage("none")), "a process got the id it was to have", Missing,
		"Linux 5.9 or later with CONFIG_CHECKPOINT_RESTORE"))
}

// choosePID starts a process under a process id chosen before. argv is a
// program that ends soon.
func choosePID(ctx context.Context, argv []string) error {
	const want = 31000
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(want-1)), 0); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if err := cmd.Start(); err != nil {
		return err
	}
	got := cmd.Process.Pid
	_ = cmd.Wait() // it complains about its stage
	if got < want || got > want+100 {
		return fmt.Errorf("asked for %d, got %d", want, got)
	}
	return nil
}
