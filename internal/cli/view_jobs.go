package cli

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

func newJobs(a *App) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "jobs",
		Short: "List the jobs of the cluster",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.Client()
			if err != nil {
				return err
			}
			return a.list(cmd.Context(), watch, func(a *App) error {
				jobs, err := c.Jobs(cmd.Context())
				if err != nil {
					return err
				}
				return a.showJobs(jobs)
			})
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, watchHelp)
	return cmd
}

// showJobs prints a list of jobs.
func (a *App) showJobs(jobs []control.Job) error {
	if jobs == nil {
		jobs = []control.Job{}
	}
	header := []string{"JOB", "NAME", "STATE", "RANKS", "NODES", "EPOCH", "PROTECTED", "RECOV", "EXIT", "NODELIST"}
	if a.Format == formatWide {
		header = append(header, "PLACEMENT")
	}
	rows := make([][]string, 0, len(jobs))
	for _, j := range jobs {
		row := []string{
			j.Job.String(), j.Name, string(j.State), strconv.Itoa(j.Ranks), strconv.Itoa(len(j.Nodes)),
			epochText(j.Epoch), j.Protected, strconv.Itoa(j.Recoveries), exitText(j.ExitCode), foldNodes(j.Nodes),
		}
		if a.Format == formatWide {
			row = append(row, placementText(j.Placement))
		}
		rows = append(rows, row)
	}
	return a.emit(jobs, header, rows)
}

// placementText says which ranks are where: n1:0-1;n5:2-3.
func placementText(pods []job.PodPlacement) string {
	parts := make([]string, 0, len(pods))
	for _, p := range pods {
		parts = append(parts, string(p.Node)+":"+ranksText(p.Ranks))
	}
	return strings.Join(parts, ";")
}

func epochText(e job.Epoch) string {
	if e == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(e), 10)
}

func exitText(code *int) string {
	if code == nil {
		return ""
	}
	return strconv.Itoa(*code)
}

// numbered matches a node name that ends in a number.
var numbered = regexp.MustCompile(`^(.*?)(0|[1-9][0-9]{0,8})$`)

// foldNodes writes a list of nodes the way host files do: n1 n2 n3 n5 is
// n[1-3,5]. Names keep the order of their first appearance.
func foldNodes(nodes []job.NodeID) string {
	var order []string
	numbers := map[string][]int{}
	for _, n := range nodes {
		prefix, number := string(n), -1
		if m := numbered.FindStringSubmatch(string(n)); m != nil {
			prefix = m[1] + "["
			number, _ = strconv.Atoi(m[2]) // at most nine digits
		}
		if _, seen := numbers[prefix]; !seen {
			order = append(order, prefix)
		}
		numbers[prefix] = append(numbers[prefix], number)
	}
	parts := make([]string, 0, len(order))
	for _, prefix := range order {
		ns := numbers[prefix]
		switch {
		case ns[0] < 0:
			parts = append(parts, prefix)
		case len(ns) == 1:
			parts = append(parts, strings.TrimSuffix(prefix, "[")+strconv.Itoa(ns[0]))
		default:
			parts = append(parts, prefix+foldNumbers(ns)+"]")
		}
	}
	return strings.Join(parts, ",")
}

// foldNumbers writes numbers as ranges: 1 2 3 5 is "1-3,5".
func foldNumbers(ns []int) string {
	ns = slices.Clone(ns)
	slices.Sort(ns)
	ns = slices.Compact(ns)
	var parts []string
	for i := 0; i < len(ns); {
		j := i
		for j+1 < len(ns) && ns[j+1] == ns[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, strconv.Itoa(ns[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", ns[i], ns[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// jobArg reads the number of a job from the command line.
func jobArg(text string) (job.ID, error) {
	id, err := job.ParseID(text)
	if err != nil {
		return 0, usage("%v (lam jobs lists them)", err)
	}
	return id, nil
}
