package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lampause/lampause/internal/control"
)

func newNodes(a *App) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes of the cluster",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.Client()
			if err != nil {
				return err
			}
			return a.list(cmd.Context(), watch, func(a *App) error {
				nodes, err := c.Nodes(cmd.Context())
				if err != nil {
					return err
				}
				return a.showNodes(nodes)
			})
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, watchHelp)
	return cmd
}

// rankList writes the ranks of a node, as JOB:RANK; ranges of them unless all
// shall be spelled out.
func (a *App) rankList(ranks []string) string {
	if a.Format == formatWide {
		return strings.Join(ranks, ",")
	}
	var jobs []string
	of := map[string][]int{}
	for _, r := range ranks {
		id, number, _ := strings.Cut(r, ":")
		n, err := strconv.Atoi(number)
		if err != nil {
			return strings.Join(ranks, ",") // a newer lamd says it in another way
		}
		if _, seen := of[id]; !seen {
			jobs = append(jobs, id)
		}
		of[id] = append(of[id], n)
	}
	for i, id := range jobs {
		jobs[i] = id + ":" + foldNumbers(of[id])
	}
	return strings.Join(jobs, ";")
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
			a.rankList(n.Ranks), strings.Join(jobs, ","), strconv.FormatUint(uint64(n.Boot), 10), n.Raft,
		})
	}
	if nodes == nil {
		nodes = []control.Node{}
	}
	return a.emit(nodes, []string{"NODE", "ADDR", "STATE", "ROLE", "SLOTS", "RANKS", "JOB", "BOOT", "RAFT"}, rows)
}
