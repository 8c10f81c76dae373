package cli

import (
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/lamd/local"
)

func newBoot(a *App) *cobra.Command {
	var nodes, spares, slots, mtu int
	var subnet, daemon, hosts string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "boot --local N [--spares S]",
		Short: "Start a cluster",
		Long: `Start a cluster of nodes on this machine: each a set of namespaces with an
address of its own and a real lamd. Returns when all nodes are alive, and prints
them. Needs no privilege where the kernel allows user namespaces; lam doctor
tells.

The cluster lives until "lam halt". Clusters with different LAM_RUNTIME_DIR can
run side by side. Images are kept in LAM_STATE_DIR; unless it is set, each
runtime directory gets a state directory of its own.`,
		Example: "  lam boot --local 4 --spares 1",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if hosts != "" {
				return usage("--hostfile %s: clusters of real hosts cannot be booted yet; --local N starts N nodes on this machine", hosts)
			}
			if !cmd.Flags().Changed("local") {
				return usage("which nodes? --local N starts N of them on this machine")
			}
			o := local.Options{Nodes: nodes, Spares: spares, Slots: slots, MTU: mtu, Wait: wait}
			if subnet != "" {
				p, err := netip.ParsePrefix(subnet)
				if err != nil {
					return usage("--subnet %q: not a network like 10.77.0.0/16", subnet)
				}
				o.Subnet = p
			}
			if daemon != "" {
				o.Daemon = strings.Fields(daemon)
			}
			return a.bootLocal(cmd, o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&nodes, "local", 0, "number of compute nodes to start on this machine")
	f.IntVar(&spares, "spares", 0, "number of spare nodes in addition")
	f.IntVar(&slots, "slots", 0, "ranks that fit on a node (default: the number of cores)")
	f.DurationVar(&wait, "wait", local.DefaultWait, "how long to wait for all nodes to be alive")
	f.StringVar(&subnet, "subnet", "", "network of nodes and pods, a /16 (default "+local.DefaultSubnet().String()+")")
	f.IntVar(&mtu, "mtu", 0, "MTU of the links, in bytes (default 65520)")
	f.StringVar(&daemon, "daemon", "", "command to run on the nodes instead of lamd run")
	f.StringVar(&hosts, "hostfile", "", "file with the hosts of the cluster") // to come
	_ = f.MarkHidden("daemon")
	_ = f.MarkHidden("hostfile")
	return cmd
}

func (a *App) bootLocal(cmd *cobra.Command, o local.Options) error {
	d, err := a.Dirs()
	if err != nil {
		return err
	}
	o.Dirs = d.Local(a.Env)
	if o.Lamd, err = a.lamd(); err != nil {
		return err
	}
	b, err := local.Boot(cmd.Context(), o)
	if err != nil {
		return err
	}
	if b.Note != "" {
		a.note("%s", b.Note)
	}
	return a.showNodes(b.Nodes)
}

func newHalt(a *App) *cobra.Command {
	var purge bool
	cmd := &cobra.Command{
		Use:   "halt",
		Short: "End the cluster and everything that runs on it",
		Long: `End the local cluster in LAM_RUNTIME_DIR, with all jobs, and remove its runtime
files; also those of a cluster that died. Images of jobs are kept unless --purge
is given.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.Dirs()
			if err != nil {
				return err
			}
			h, err := local.Halt(cmd.Context(), d.Local(a.Env), purge)
			if err != nil {
				return err
			}
			if h.KeptState != "" {
				a.note("images of jobs are kept in %s (lam halt --purge removes them)", h.KeptState)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "remove the images of jobs, too")
	return cmd
}

func newFail(a *App) *cobra.Command {
	return &cobra.Command{
		Use:   "fail NODE",
		Short: "Take the power of a local cluster's node away",
		Long: `Take the power of a node away: its link goes down first, then every process on
it is killed. Returns when they are dead. "lam revive NODE" boots it again.`,
		Args: exactly("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.Dirs()
			if err != nil {
				return err
			}
			_, err = local.Fail(cmd.Context(), d, job.NodeID(args[0]))
			return err
		},
	}
}

func newRevive(a *App) *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "revive NODE",
		Short: "Boot a node that has failed",
		Long: `Boot a node of a local cluster that is down. It comes back with the next boot
number and nothing but its state directory. Returns when all nodes with power
list each other as alive.`,
		Args: exactly("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.Dirs()
			if err != nil {
				return err
			}
			c, err := local.Revive(cmd.Context(), d, job.NodeID(args[0]))
			if err != nil {
				return err
			}
			_, err = local.AwaitNodes(cmd.Context(), c, wait)
			return err
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", local.DefaultWait, "how long to wait for the node to be alive")
	return cmd
}
