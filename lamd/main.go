package lamd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/job"
)

// Main is `lamd run`: it reads the command line, runs the daemon until TERM or
// INT, and returns the exit code. Usage goes to out.
func Main(ctx context.Context, args []string, out io.Writer, log zerolog.Logger) int {
	cfg, err := parseArgs(args, out)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(out, "lamd run: %v\n", err)
		return job.ExitUsage
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err = Run(ctx, cfg, log)
	if errors.Is(err, errLeft) {
		log.Info().Err(err).Msg("daemon ended")
		return 0
	}
	if err != nil && ctx.Err() == nil {
		log.Error().Err(err).Msg("daemon ended")
		return job.ExitInternal
	}
	return 0
}

// parseArgs reads the flags of `lamd run`.
//
// Expected errors: flag.ErrHelp, or one that names the flag.
func parseArgs(args []string, out io.Writer) (Config, error) {
	var cfg Config
	var node, addr, peers string
	var boot uint64
	fs := flag.NewFlagSet("lamd run", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.StringVar(&node, "node", "", "name of this node")
	fs.StringVar(&addr, "addr", "", "IP address of this node")
	fs.StringVar(&peers, "peers", "", "all nodes: NAME=ADDRESS,...")
	fs.StringVar(&cfg.RuntimeDir, "runtime-dir", "", "directory of this node's sockets and pods")
	fs.StringVar(&cfg.StateDir, "state-dir", "", "directory of this node's log and images")
	fs.BoolVar(&cfg.Spare, "spare", false, "keep this node free of ranks until one is lost")
	fs.IntVar(&cfg.Slots, "slots", 0, "ranks that fit; 0 = number of cores")
	fs.Uint64Var(&boot, "boot", 1, "incarnation of the node")
	fs.Uint64Var(&cfg.Session, "session", 1, "number of this start of the daemon")
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	if fs.NArg() > 0 {
		return cfg, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	var err error
	if cfg.Addr, err = netip.ParseAddr(addr); err != nil {
		return cfg, fmt.Errorf("--addr: %w", err)
	}
	if cfg.Peers, err = parsePeers(peers); err != nil {
		return cfg, err
	}
	cfg.Node, cfg.Boot = job.NodeID(node), job.Boot(boot)
	return cfg, cfg.Validate()
}

// parsePeers reads "n1=10.77.0.11,n2=10.77.0.12".
func parsePeers(s string) ([]Peer, error) {
	var out []Peer
	for part := range strings.SplitSeq(s, ",") {
		name, addr, ok := strings.Cut(part, "=")
		a, err := netip.ParseAddr(addr)
		if !ok || err != nil || !job.ValidNode(job.NodeID(name)) {
			return nil, fmt.Errorf("--peers: %q is not NAME=ADDRESS", part)
		}
		if slices.ContainsFunc(out, func(p Peer) bool { return string(p.Node) == name || p.Addr == a }) {
			return nil, fmt.Errorf("--peers: %q: named twice", part)
		}
		out = append(out, Peer{Node: job.NodeID(name), Addr: a})
	}
	return out, nil
}
