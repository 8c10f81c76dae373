package pod

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideEnv marks a test process that is pid 1 of a test cluster.
const insideEnv = "LAM_POD_TEST_INSIDE"

// The test binary plays lamd's part, too: supervisors and pod-inits are it. It
// runs cluster tests again inside namespaces of their own, see inCluster.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains(Commands(), os.Args[1]) {
		os.Exit(Main(context.Background(), os.Args[1:], os.Stderr))
	}
	if os.Getenv(insideEnv) != "" {
		if err := buildCluster(); err != nil {
			fmt.Fprintln(os.Stderr, "test cluster:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// buildCluster mounts /proc for the new pid namespace and makes the links of
// two nodes: the two ends of a cable.
func buildCluster() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	cable := netlink.NewVeth(netlink.LinkAttrs{Name: "node0", MTU: 9000})
	cable.PeerName, cable.PeerMTU = "node1", 9000
	if err := netlink.LinkAdd(cable); err != nil {
		return err
	}
	for _, n := range []string{"node0", "node1"} {
		l, err := netlink.LinkByName(n)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	return nil
}

// inCluster runs f inside a test cluster: user, pid, mount and network
// namespaces that end with the test. It does so once per kind of user: the
// caller, and an ordinary one when the caller is root.
func inCluster(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	inClusters(t, f, true)
}

// inOneCluster is inCluster for the caller only: for long tests.
func inOneCluster(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	inClusters(t, f, false)
}

func inClusters(t *testing.T, f func(t *testing.T), everybody bool) {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		f(t)
		return
	}
	for _, tool := range []string{"mpicc", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: no real MPI program to run", tool)
		}
	}
	uids := []int{os.Getuid()}
	if os.Getuid() == 0 && everybody {
		uids = append(uids, 1500)
	}
	bin := reachable(t)
	for _, uid := range uids {
		t.Run("uid"+strconv.Itoa(uid), func(t *testing.T) { runInside(t, bin, uid) })
	}
}

// runInside runs the current test again as pid 1 of a test cluster.
func runInside(t *testing.T, bin string, uid int) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	outer := t.Name()[:bytes.IndexByte([]byte(t.Name()), '/')]
	args := []string{"-test.run=^" + outer + "$", "-test.v", "-test.timeout=150s"}
	cmd := exec.CommandContext(ctx, bin, args...)
	work, err := os.MkdirTemp("", "podtest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(work) })
	if err := os.Chown(work, uid, uid); err != nil && uid != os.Getuid() {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), insideEnv+"=1", "HOME="+work, "TMPDIR="+work)
	cmd.Dir = "/"
	size := 1
	if uid == 0 {
		size = 65535 // jobs of other users, too
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: size}},
		GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: size}},
		GidMappingsEnableSetgroups: uid == 0,
		Credential:                 &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: uid != 0},
		Pdeathsig:                  unix.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("inside the test cluster: %v", err)
	}
}

// reachable copies the test binary to where every user can execute it.
func reachable(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "podbin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "pod.test")
	if err := os.WriteFile(path, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// The fixtures are beside the sources, which others may not be able to read.
	if err := os.CopyFS(filepath.Join(dir, "testdata"), os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "nas"), os.DirFS("../../bench/nas")); err != nil {
		t.Logf("no NAS kernels: %v", err)
	}
	return path
}
