package lamd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/lamd/nodelink"
	"github.com/lampause/lampause/lamd/pod"
	"github.com/lampause/lampause/membership"
	"github.com/lampause/lampause/scheduler"
)

// Daemon is a node's lamd. It runs once.
type Daemon struct {
	cfg     Config
	log     zerolog.Logger
	peers   *peers
	store   *image.Store
	pods    *pods
	agent   *agent
	members *membership.Cluster
	sched   *scheduler.Scheduler
	news    *news
	finder  *leaderFinder
	fan     *fanout
	node    *nodeAPI

	leaving atomic.Bool        // the node takes its leave: it does not join again
	left    context.CancelFunc // ends this daemon; set by runOnce

	mu      sync.Mutex // guards below
	leading *lead
	addrs   map[job.NodeID]netip.Addr // from boot and gossip
}

// staleBoot says that this life of the node was declared dead: it must end its
// pods and join with a higher boot.
type staleBoot struct{ boot job.Boot }

// Error implements error.
func (e *staleBoot) Error() string {
	return fmt.Sprintf("this life of the node was declared dead; it joins again with boot %d", e.boot)
}

// Run runs a node's daemon until ctx ends. A node that the others declared
// dead while it lived ends its pods and joins again as a new boot.
//
// Expected errors: those of Config.Validate; bind and file system errors.
func Run(ctx context.Context, cfg Config, log zerolog.Logger) error {
	if cfg.Slots == 0 {
		cfg.Slots = runtime.NumCPU()
	}
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("lamd: %w", err)
	}
	boots := bootFile{path: filepath.Join(cfg.StateDir, "boot")}
	for {
		boot, err := boots.atLeast(cfg.Boot)
		if err != nil {
			return fmt.Errorf("lamd: %w", err)
		}
		cfg.Boot = boot
		err = runOnce(ctx, cfg, log.With().Str("node", string(cfg.Node)).Uint64("boot", uint64(boot)).Logger())
		var stale *staleBoot
		if !errors.As(err, &stale) {
			return err
		}
		log.Warn().Err(err).Msg("node was declared dead")
		cfg.Boot = max(stale.boot, cfg.Boot+1)
	}
}

// runOnce runs one boot of the node.
func runOnce(ctx context.Context, cfg Config, log zerolog.Logger) error {
	d, err := newDaemon(cfg, log)
	if err != nil {
		return err
	}
	defer func() { _ = d.store.Close() }()
	defer d.peers.close()
	if err := d.openScheduler(ctx); err != nil {
		return err
	}
	found, err := d.pods.claim(ctx) // before anybody can ask for them
	if err != nil {
		return fmt.Errorf("lamd: %w", err)
	}
	ctx, left := context.WithCancelCause(ctx)
	defer left(nil)
	d.left = func() { left(errLeft) }
	g, ctx := errgroup.WithContext(ctx)
	d.pods.onUp = func(p *localPod) {
		if ctx.Err() == nil { // else the next daemon meets it
			g.Go(func() error { d.agent.watch(ctx, p); return nil })
		}
	}
	g.Go(func() error { d.adopt(ctx, found); return nil })
	g.Go(func() error { return d.members.Run(ctx) })
	g.Go(func() error { return d.sched.Run(ctx) })
	g.Go(func() error { return d.news.follow(ctx, d.sched) })
	g.Go(func() error { return d.finder.run(ctx) })
	g.Go(func() error { return d.serve(ctx) })
	g.Go(func() error { return d.watchMembers(ctx) })
	g.Go(func() error { return d.joinCluster(ctx) })
	g.Go(func() error { return d.agent.renewLeases(ctx) })
	sw := &sweeper{node: d.node, state: d.sched.State, log: component(log, "sweeper")}
	g.Go(func() error { return sw.run(ctx) })
	err = g.Wait()
	if errors.Is(context.Cause(ctx), errLeft) {
		return errLeft
	}
	var stale *staleBoot
	if errors.As(err, &stale) {
		return errors.Join(err, d.endPods())
	}
	return err
}

// adopt takes over the pods that an earlier daemon of this node left running,
// and tells the leader of those that ended meanwhile. One that does not answer
// keeps nobody waiting.
func (d *Daemon) adopt(ctx context.Context, found []claimed) {
	var all sync.WaitGroup
	for _, c := range found {
		all.Go(func() {
			gone, err := d.pods.meet(ctx, c)
			if err != nil {
				d.log.Error().Err(err).Uint64("job", uint64(c.pod.job)).Msg("pod of an earlier daemon")
			}
			if gone {
				d.agent.reportGone(ctx, c.pod)
			}
		})
	}
	all.Wait()
}

// endPods ends every pod of a life that is over.
func (d *Daemon) endPods() error {
	each := func(*localPod) bool { return true }
	var errs []error
	for _, p := range d.pods.list() {
		errs = append(errs, d.pods.kill(context.Background(), p.job, each)) // bounded by killMax
	}
	return errors.Join(errs...)
}

func newDaemon(cfg Config, log zerolog.Logger) (*Daemon, error) {
	for _, dir := range []string{cfg.RuntimeDir, cfg.StateDir, cfg.podsDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("lamd: %w", err)
		}
	}
	d := &Daemon{cfg: cfg, log: log, news: newNews(), addrs: map[job.NodeID]netip.Addr{}}
	for _, p := range cfg.Peers {
		d.addrs[p.Node] = p.Addr
	}
	d.peers = newPeers(d.addrOf)
	var err error
	if d.store, err = image.OpenStore(cfg.StateDir); err != nil {
		return nil, fmt.Errorf("lamd: %w", err)
	}
	d.pods = newPods(cfg.podsDir(), pod.Starter{Exe: cfg.Exe}, linker{d.nodeLink}, component(log, "pods"))
	d.node = &nodeAPI{
		self: cfg.Node, boot: cfg.Boot, pods: d.pods, store: d.store, peers: d.peers, log: component(log, "node-api"),
		archive: &archive{dir: filepath.Join(cfg.RuntimeDir, "ended")},
		stateOf: func(id job.ID) string { return filepath.Join(cfg.imagesDir(), id.String()) },
		tmpOf:   func(id job.ID) string { return filepath.Join(cfg.RuntimeDir, "tmp", id.String()) },
	}
	d.fan = &fanout{self: cfg.Node, local: d.node, link: &httpTree{peers: d.peers}, log: component(log, "tree")}
	d.node.fan = d.fan
	d.peers.onFailure = func(e membership.Evidence) { d.members.Report(e) }
	d.finder = &leaderFinder{self: cfg.Node, told: func() bool { return d.sched.Leader().Node != "" }, nodes: d.knownNodes, peers: d.peers}
	d.agent = &agent{node: cfg.Node, boot: cfg.Boot, pods: d.pods, leader: d.leader, peers: d.peers, log: component(log, "agent")}
	if d.members, err = membership.New(d.membershipConfig()); err != nil {
		return nil, fmt.Errorf("lamd: %w", errors.Join(err, d.store.Close()))
	}
	return d, nil
}

// openScheduler starts this node's replica; its Run must follow. The first
// voters of a new cluster are chosen from the nodes known at boot.
func (d *Daemon) openScheduler(ctx context.Context) error {
	stream, err := scheduler.ListenTCP(ctx, net.JoinHostPort(d.cfg.Addr.String(), strconv.Itoa(RaftPort)))
	if err != nil {
		return fmt.Errorf("lamd: %w", err)
	}
	d.sched, err = scheduler.New(scheduler.Config{ID: d.cfg.Node, Dir: d.cfg.raftDir(), Stream: stream, Log: d.log, Lead: d.leadTerm})
	if err != nil {
		return fmt.Errorf("lamd: %w", errors.Join(err, stream.Close()))
	}
	var all []scheduler.Peer
	for _, p := range d.cfg.Peers {
		all = append(all, scheduler.Peer{ID: p.Node, Addr: net.JoinHostPort(p.Addr.String(), strconv.Itoa(RaftPort))})
	}
	first := scheduler.InitialVoters(all)
	if slices.ContainsFunc(first, func(p scheduler.Peer) bool { return p.ID == d.cfg.Node }) {
		return d.sched.Bootstrap(first)
	}
	return nil
}

// nodeLink finds the link that pods of this node hang on.
func (d *Daemon) nodeLink() (nodelink.PodLink, error) {
	name, err := nodelink.ParentOf(d.cfg.Addr)
	if err != nil {
		return nil, err
	}
	return nodelink.NewMacvlan(name), nil
}

func component(log zerolog.Logger, name string) zerolog.Logger {
	return log.With().Str("component", name).Logger()
}

func (d *Daemon) membershipConfig() membership.Config {
	role := membership.RoleCompute
	if d.cfg.Spare {
		role = membership.RoleSpare
	}
	return membership.Config{
		Node: d.cfg.Node, Boot: d.cfg.Boot, Session: d.cfg.Session, Role: role, Slots: d.cfg.Slots,
		Addr: d.cfg.Addr, Port: GossipPort, HTTPPort: HTTPPort,
		Seeds: func() []string {
			var out []string
			for _, p := range d.cfg.Peers {
				out = append(out, p.Addr.String())
			}
			return out
		},
		Log: component(d.log, "membership"),
	}
}

// addrOf returns the address of a node, as told at boot or by gossip.
func (d *Daemon) addrOf(id job.NodeID) (netip.Addr, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a, ok := d.addrs[id]
	return a, ok
}

// knownNodes lists the nodes whose address is known.
func (d *Daemon) knownNodes() []job.NodeID {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.addrs))
}

// leader returns the node that leads, as far as this one knows: raft tells its
// members, others have asked around.
func (d *Daemon) leader() (job.NodeID, bool) {
	switch l := d.sched.Leader(); {
	case l.Node == d.cfg.Node:
		return l.Node, d.lead() != nil // not before its conductor works
	case l.Node != "":
		return l.Node, true
	}
	// What others remember of us from before a restart does not make us lead.
	id, ok := d.finder.found()
	return id, ok && id != d.cfg.Node
}

// whileLeading refuses requests of other daemons that take this one for the
// leader when it is not.
func (d *Daemon) whileLeading(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.lead() == nil {
			writeError(w, errNotLeading)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// confirm makes sure that this daemon still leads the term of its conductor.
func (d *Daemon) confirm(ctx context.Context) error {
	term, err := d.sched.Confirm(ctx)
	if err != nil {
		return err
	}
	if l := d.lead(); l == nil || l.term != term {
		return errNotLeading
	}
	return nil
}

// raftRoles maps nodes to their part in raft, for display.
func (d *Daemon) raftRoles() map[job.NodeID]string {
	out := map[job.NodeID]string{}
	voters, err := d.sched.Voters()
	if err != nil {
		d.log.Debug().Err(err).Msg("voters not known")
	}
	for _, v := range voters {
		out[v.ID] = "voter"
	}
	if id := d.sched.Leader().Node; id != "" {
		out[id] = "leader"
	}
	return out
}

// lead returns the driver of the conductor while this daemon leads, else nil.
func (d *Daemon) lead() *lead {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.leading
}

// serve runs both servers.
func (d *Daemon) serve(ctx context.Context) error {
	leads := &leaderAPI{lead: d.lead, state: d.sched.State, confirm: d.confirm, apply: d.applyHere}
	jobs := &jobsAPI{
		lead: d.lead, state: d.sched.State, changed: d.news.after, apply: d.applyHere,
		raft: d.raftRoles, peers: d.peers, log: component(d.log, "jobs-api"),
	}
	handlers := jobs.routes()
	tcp := http.NewServeMux()
	d.node.routes(tcp)
	leads.routes(tcp)
	tcp.HandleFunc("GET /v1/leader", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, d.sched.Leader().Node) })
	tcp.Handle("/v1/control/", d.whileLeading(fromPeer(handlers)))
	unixMux := http.NewServeMux()
	unixMux.HandleFunc("POST "+podapi.PathFence, d.agent.relayFence)
	unixMux.HandleFunc("POST /v1/leave", d.leaveNode)
	unixMux.Handle("/", &leaderProxy{self: d.cfg.Node, leader: d.leader, peers: d.peers, local: handlers})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return serveTCP(ctx, net.JoinHostPort(d.cfg.Addr.String(), strconv.Itoa(HTTPPort)), tcp)
	})
	g.Go(func() error { return serveUnix(ctx, filepath.Join(d.cfg.RuntimeDir, control.Socket), unixMux) })
	return g.Wait()
}

// applyHere puts a command into the log; only the leader can.
func (d *Daemon) applyHere(ctx context.Context, c scheduler.Command) error {
	_, err := d.sched.Apply(ctx, c)
	return err
}
