package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/job"
)

// HolderMain is `lamd local`: pid 1 of a local cluster. It builds the network
// and the nodes, reports, and then serves fail, revive and halt until it is
// told to end.
//
// Precondition: started by Boot, with descriptors 3 to 6.
func HolderMain(ctx context.Context, log zerolog.Logger) int {
	rep, err := inherited(fdReport, "report")
	if err != nil {
		log.Error().Err(err).Msg("holder cannot start")
		return job.ExitUsage
	}
	for fd := fdConfig; fd <= fdLocks+1; fd++ {
		syscall.CloseOnExec(fd)
	}
	defer func() { _ = rep.Close() }()
	h := &holder{log: log}
	if err := h.setUp(ctx); err != nil {
		log.Error().Err(err).Msg("local cluster cannot start")
		_ = json.NewEncoder(rep).Encode(report{Kind: reportError, Text: err.Error(), Exit: job.ExitInternal})
		return job.ExitInternal
	}
	if err := json.NewEncoder(rep).Encode(report{Kind: reportReady, HostPID: h.cluster.HolderPID}); err != nil {
		// Whoever boots us has gone: nobody will ever use this cluster.
		log.Error().Err(err).Msg("booting command has gone")
		h.powerOffAll()
		h.cleanUp()
		return job.ExitInternal
	}
	_ = rep.Close()
	if err := h.serve(ctx); err != nil {
		log.Error().Err(err).Msg("local cluster ended")
		return job.ExitInternal
	}
	return 0
}

// holder is the state of a local cluster.
//
// Lock order: op before mu. op serialises boot, fail, revive and halt; mu
// guards cluster and is never held across a wait.
type holder struct {
	log zerolog.Logger
	cfg holderConfig

	op       sync.Mutex
	machines []*machine // fixed after setUp
	listener net.Listener
	halt     chan struct{} // closed by the first halt request
	halting  sync.Once

	mu      sync.Mutex
	cluster Cluster

	saving sync.Mutex // serialises writers of cluster.json
	swept  bool       // the file is gone for good; guarded by saving
}

func (h *holder) setUp(ctx context.Context) error {
	if os.Getpid() != 1 {
		return errors.New("not pid 1 of its own pid namespace")
	}
	if err := readConfig(&h.cfg); err != nil {
		return err
	}
	h.halt = make(chan struct{})
	if err := h.describe(); err != nil {
		return err
	}
	if err := forgetLogs(h.cfg.State); err != nil {
		return err
	}
	if err := makeSwitch(h.cfg.MTU); err != nil {
		return err
	}
	if err := os.Remove(h.cfg.ClusterSocket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("control socket: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", h.cfg.ClusterSocket())
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	h.listener = l
	if err := os.Chmod(h.cfg.ClusterSocket(), 0o600); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	for i, id := range names(h.cfg.Nodes, h.cfg.Spares) {
		h.machines = append(h.machines, &machine{h: h, index: i, id: id})
	}
	if err := h.saveCluster(); err != nil { // before any process: a dead holder's files must be found
		return err
	}
	var g errgroup.Group
	for _, m := range h.machines {
		g.Go(func() error { return m.powerOn(ctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return h.saveCluster()
}

// describe fills in the cluster's description, all nodes still down.
func (h *holder) describe() error {
	pid, err := hostPID()
	if err != nil {
		return err
	}
	start, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("own start time: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	c := Cluster{
		Version: Version, Dirs: h.cfg.Dirs, Subnet: h.cfg.Subnet,
		HolderPID: pid, HolderStart: start, BootID: boot,
		UID: h.cfg.UID, Created: time.Now(), MadeRuntime: h.cfg.Made,
	}
	for i, id := range names(h.cfg.Nodes, h.cfg.Spares) {
		role := roleCompute
		if i >= h.cfg.Nodes {
			role = roleSpare
		}
		last, err := lastBoot(h.cfg.NodeState(id))
		if err != nil {
			return err
		}
		c.Nodes = append(c.Nodes, Node{Node: id, Addr: address(h.cfg.Subnet, i), Role: role, State: NodeDown, Boot: last})
	}
	h.cluster = c
	return nil
}

// saveCluster writes cluster.json, unless the cluster is being removed.
func (h *holder) saveCluster() error {
	h.saving.Lock()
	defer h.saving.Unlock()
	if h.swept {
		return nil
	}
	c := h.snapshot()
	return writeCluster(&c)
}

// snapshot returns a copy of the description.
func (h *holder) snapshot() Cluster {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.cluster
	c.Nodes = append([]Node(nil), c.Nodes...)
	return c
}

// update changes one node's description.
func (h *holder) update(i int, change func(*Node)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(&h.cluster.Nodes[i])
}

// peers is lamd's --peers: every node with its address.
func (h *holder) peers() string {
	c := h.snapshot()
	var all []string
	for _, n := range c.Nodes {
		all = append(all, fmt.Sprintf("%s=%s", n.Node, n.Addr))
	}
	return strings.Join(all, ",")
}

// serve answers control requests until halt, SIGTERM or ctx; then it ends the
// nodes and removes the runtime files.
func (h *holder) serve(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	srv := &http.Server{Handler: h.routes(), ConnContext: withPeer, ReadHeaderTimeout: 10 * time.Second}
	var g errgroup.Group
	g.Go(func() error {
		if err := srv.Serve(h.listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	select {
	case <-ctx.Done():
	case <-h.halt:
	}
	h.op.Lock() // no fail or revive from here on
	defer h.op.Unlock()
	h.log.Info().Msg("halting")
	h.stopAll()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = srv.Shutdown(bounded)
	err := g.Wait()
	h.cleanUp()
	return err
}

// stopAll ends every node in order, and the stubborn ones by force.
func (h *holder) stopAll() {
	var g errgroup.Group
	for _, m := range h.machines {
		g.Go(func() error {
			m.shutDown()
			return nil
		})
	}
	_ = g.Wait()
}

// powerOffAll ends every node at once.
func (h *holder) powerOffAll() {
	for _, m := range h.machines {
		if err := m.powerOff(); err != nil {
			h.log.Warn().Err(err).Str("node", string(m.id)).Msg("power off")
		}
	}
}

// cleanUp removes the runtime files.
func (h *holder) cleanUp() {
	h.saving.Lock()
	defer h.saving.Unlock()
	h.swept = true
	c := h.snapshot()
	if err := sweep(&c); err != nil {
		h.log.Warn().Err(err).Msg("remove runtime files")
	}
	unclaim(c.Dirs, c.MadeRuntime)
}
