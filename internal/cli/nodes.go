package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lampause/lampause/internal/control"
)

func newNodes(a *App) *cobra.Command {
	return &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes of the cluster",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.Client()
			if err != nil {
				return err
			}
			nodes, err := c.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			return a.showNodes(nodes)
		},
	}
}

// showNodes prints a list of nodes.
func (a *App) showNodes(nodes []control.Node) error {
	rows := make([][]string, 0, len(nodes))
	for _, n := range nodes {
		jobs := make([]string, 0, len(n.Jobs))
		for _, j := range n.Jobs {
			jobs = append(jobs, j.String())
		}
		rows = append(rows, []string{
			string(n.Node), n.Addr, n.State, n.Role, strconv.Itoa(n.Slots),
			strings.Join(n.Ranks, ","), strings.Join(jobs, ","), strconv.FormatUint(uint64(n.Boot), 10), n.Raft,
		})
	}
	if nodes == nil {
		nodes = []control.Node{}
	}
	return a.emit(nodes, []string{"NODE", "ADDR", "STATE", "ROLE", "SLOTS", "RANKS", "JOB", "BOOT", "RAFT"}, rows)
}
