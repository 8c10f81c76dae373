package membership

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/vishvananda/netlink"

	"github.com/lampause/lampause/job"
)

// The benchmark below measures on a real network of real processes: a laboratory
// in a user and network namespace of its own holds a bridge, every node is a
// process in a network namespace, and as many processes as the machine has cores
// spin. Everything ends with the laboratory.
//
//	go test -run '^$' -bench Detect -benchtime 1x ./membership
//	LAM_BENCH_ROUNDS=10 LAM_BENCH_QUIET=10m \
//		go test -run '^$' -bench Detect/nodes=16/busy=true -benchtime 1x -timeout 30m ./membership
//
// reports the time from "link down, then killed" to Dead, as seen by all the
// survivors, and false deaths during the rounds and the quiet time after them;
// the second takes eleven minutes. The spinning processes are the load, so the
// figures need nothing else on the machine.

// roleEnv makes the test binary play a part instead of testing.
const roleEnv = "LAM_MEMBERSHIP_BENCH_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "lab":
		err = labMain()
	case "node":
		err = nodeMain()
	case "spin":
		for x := uint64(1); ; x *= 3 { // the load; odd numbers never become 0
			if x == 0 {
				return
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// outcome is what the laboratory prints.
type outcome struct {
	Nodes, Spinners, Rounds int
	DetectMS                []float64 // every survivor of every round
	FirstMS                 []float64 // the fastest of each round
	FalseDeaths             int
	QuietS                  float64
}

func BenchmarkDetect(b *testing.B) {
	for _, nodes := range []int{5, 16} {
		for _, busy := range []bool{false, true} {
			b.Run(fmt.Sprintf("nodes=%d/busy=%v", nodes, busy), func(b *testing.B) {
				for b.Loop() {
					o := runLab(b, nodes, busy)
					slices.Sort(o.DetectMS)
					slices.Sort(o.FirstMS)
					b.ReportMetric(o.DetectMS[len(o.DetectMS)/2], "ms-median")
					b.ReportMetric(o.DetectMS[len(o.DetectMS)-1], "ms-max")
					b.ReportMetric(o.FirstMS[len(o.FirstMS)/2], "ms-first-median")
					b.ReportMetric(float64(o.FalseDeaths), "false-deaths")
					b.Logf("%d rounds, %d spinners, %.0f s without losses: all %.0f, first %.0f", o.Rounds, o.Spinners, o.QuietS, o.DetectMS, o.FirstMS)
				}
			})
		}
	}
}

// runLab starts the laboratory and waits for its outcome.
func runLab(b *testing.B, nodes int, busy bool) outcome {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	cmd := self(ctx, "lab", syscall.CLONE_NEWUSER|syscall.CLONE_NEWNET|syscall.CLONE_NEWPID)
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	spinners := 0
	if busy {
		spinners = runtime.NumCPU()
	}
	cmd.Env = append(cmd.Env, fmt.Sprintf("LAM_BENCH_NODES=%d", nodes), fmt.Sprintf("LAM_BENCH_SPINNERS=%d", spinners))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		b.Skipf("the laboratory could not run (user namespaces?): %v", err)
	}
	var o outcome
	if err := json.Unmarshal(out, &o); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	if len(o.DetectMS) == 0 {
		b.Fatal("nothing was measured")
	}
	return o
}

// self is this program in another role, in new namespaces and a session of its
// own, which dies with its parent.
func self(ctx context.Context, role string, flags uintptr) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Setsid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func envInt(name string, def int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return def
}

// laboratory is the parent of all nodes.
type laboratory struct {
	ctx    context.Context
	bridge *netlink.Bridge
	nodes  []*labNode
	news   chan news
}

// labNode is one node's process.
type labNode struct {
	index int
	boot  int
	cmd   *exec.Cmd
	link  netlink.Link
}

// news is an event that a node told.
type news struct {
	from int
	Kind Kind
	Node job.NodeID
	Boot job.Boot
	At   int64 // unix nanoseconds; all nodes share the clock
}

// labMain is pid 1 of the laboratory.
func labMain() error {
	runtime.LockOSThread() // Pdeathsig is of the thread
	l := &laboratory{ctx: context.Background(), news: make(chan news, 10000)}
	la := netlink.NewLinkAttrs()
	la.Name = "br0"
	l.bridge = &netlink.Bridge{LinkAttrs: la}
	if err := netlink.LinkAdd(l.bridge); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	if err := netlink.LinkSetUp(l.bridge); err != nil {
		return fmt.Errorf("bridge up: %w", err)
	}
	o := outcome{Nodes: envInt("LAM_BENCH_NODES", 5), Spinners: envInt("LAM_BENCH_SPINNERS", 0), Rounds: envInt("LAM_BENCH_ROUNDS", 5)}
	for i := range o.Nodes {
		n := &labNode{index: i + 1}
		l.nodes = append(l.nodes, n)
		if err := l.boot(n); err != nil {
			return err
		}
	}
	if err := l.settle(30 * time.Second); err != nil {
		return err
	}
	for range o.Spinners {
		if err := self(l.ctx, "spin", 0).Start(); err != nil {
			return err
		}
	}
	time.Sleep(2 * time.Second)
	for range o.Rounds {
		if err := l.round(&o); err != nil {
			return err
		}
	}
	quiet, err := time.ParseDuration(os.Getenv("LAM_BENCH_QUIET"))
	if err != nil {
		quiet = 10 * time.Second
	}
	o.QuietS = quiet.Seconds()
	l.watch(quiet, "", 0, &o)
	return json.NewEncoder(os.Stdout).Encode(o)
}

// boot starts a node's process and plugs its link into the bridge.
func (l *laboratory) boot(n *labNode) error {
	n.boot++
	n.cmd = self(l.ctx, "node", syscall.CLONE_NEWNET)
	n.cmd.Env = append(n.cmd.Env, fmt.Sprintf("LAM_BENCH_INDEX=%d", n.index), fmt.Sprintf("LAM_BENCH_BOOT=%d", n.boot))
	n.cmd.Stderr = os.Stderr
	in, err := n.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := n.cmd.Start(); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	la := netlink.NewLinkAttrs()
	la.Name = fmt.Sprintf("v%dx%d", n.index, n.boot)
	la.MasterIndex = l.bridge.Attrs().Index
	n.link = &netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerNamespace: netlink.NsPid(n.cmd.Process.Pid)}
	if err := netlink.LinkAdd(n.link); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	if err := netlink.LinkSetUp(n.link); err != nil {
		return fmt.Errorf("veth up: %w", err)
	}
	go l.listen(n.index, out)
	_, err = io.WriteString(in, "go\n")
	return err
}

// listen passes on what one node tells.
func (l *laboratory) listen(index int, out io.Reader) {
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		e := news{}
		if json.Unmarshal(sc.Bytes(), &e) == nil {
			e.from = index
			l.news <- e
		}
	}
}

// settle waits until every node has told of every other one's newest boot.
func (l *laboratory) settle(limit time.Duration) error {
	seen := map[string]bool{}
	deadline := time.After(limit)
	for len(seen) < len(l.nodes)*len(l.nodes) {
		select {
		case e := <-l.news:
			if e.Kind == Alive {
				seen[fmt.Sprint(e.from, e.Node)] = true
			}
		case <-deadline:
			return fmt.Errorf("only %d of %d sightings", len(seen), len(l.nodes)*len(l.nodes))
		}
	}
	return nil
}

// round powers one node off, measures, and boots it anew.
func (l *laboratory) round(o *outcome) error {
	n := l.nodes[rand.IntN(len(l.nodes))]
	time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
	if err := netlink.LinkSetDown(n.link); err != nil {
		return err
	}
	start := time.Now()
	if err := n.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = n.cmd.Wait() // killed, as it should be
	detected := l.watch(15*time.Second, job.NodeID(fmt.Sprintf("n%d", n.index)), len(l.nodes)-1, o)
	var ms []float64
	for _, at := range detected {
		ms = append(ms, float64(at-start.UnixNano())/1e6)
	}
	if len(ms) < len(l.nodes)-1 {
		fmt.Fprintf(os.Stderr, "round: only %d of %d survivors told the death of n%d#%d\n", len(ms), len(l.nodes)-1, n.index, n.boot)
	}
	if len(ms) > 0 {
		o.DetectMS = append(o.DetectMS, ms...)
		o.FirstMS = append(o.FirstMS, slices.Min(ms))
	}
	_ = netlink.LinkDel(n.link) // it went with its namespace
	if err := l.boot(n); err != nil {
		return err
	}
	l.watch(3*time.Second, "", 0, o)
	return nil
}

// watch counts deaths for a while: of the victim they are returned, others are
// false. With a victim it ends when all want survivors have told.
func (l *laboratory) watch(d time.Duration, victim job.NodeID, want int, o *outcome) []int64 {
	var told []int64
	deadline := time.After(d)
	for victim == "" || len(told) < want {
		select {
		case e := <-l.news:
			switch {
			case e.Kind != Dead:
			case e.Node == victim:
				told = append(told, e.At)
			case int(e.Boot) < l.bootOf(e.Node): // late about an earlier victim
			default:
				o.FalseDeaths++
				fmt.Fprintf(os.Stderr, "false death of %s#%d told by n%d\n", e.Node, e.Boot, e.from)
			}
		case <-deadline:
			return told
		}
	}
	return told
}

func (l *laboratory) bootOf(n job.NodeID) int {
	i, err := strconv.Atoi(strings.TrimPrefix(string(n), "n"))
	if err != nil || i < 1 || i > len(l.nodes) {
		return 0
	}
	return l.nodes[i-1].boot
}

// nodeMain is one node: it waits for its link and tells its events.
func nodeMain() error {
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	index := envInt("LAM_BENCH_INDEX", 0)
	addr := netip.AddrFrom4([4]byte{10, 78, 0, byte(index)})
	for name, cidr := range map[string]string{"lo": "127.0.0.1/8", "eth0": addr.String() + "/24"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		ip, ipnet, err := net.ParseCIDR(cidr)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: ipnet.Mask}}); err != nil && name != "lo" {
			return fmt.Errorf("address: %w", err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("%s up: %w", name, err)
		}
	}
	c, err := New(Config{
		Node: job.NodeID(fmt.Sprintf("n%d", index)), Boot: job.Boot(envInt("LAM_BENCH_BOOT", 1)), Session: 1, Addr: addr,
		Seeds: func() []string { return []string{"10.78.0.1", "10.78.0.2", "10.78.0.3"} },
		Log:   zerolog.Nop(),
	})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		enc := json.NewEncoder(os.Stdout)
		for e := range c.Events() {
			_ = enc.Encode(news{Kind: e.Kind, Node: e.Node, Boot: e.Boot, At: time.Now().UnixNano()})
		}
	})
	err = c.Run(context.Background())
	wg.Wait()
	return err
}
