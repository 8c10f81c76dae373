package cli

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

func newJob(a *App) *cobra.Command {
	return &cobra.Command{
		Use:   "job JOB",
		Short: "Describe a job: placement, epochs, recoveries and what they cost",
		Args:  exactly("JOB"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withJob(args[0], func(c *control.Client, id job.ID) error {
				d, err := c.Job(cmd.Context(), id)
				if err != nil {
					return err
				}
				if a.Format == formatJSON {
					return a.emitJSON(d)
				}
				return a.describeJob(d)
			})
		},
	}
}

// describeJob prints all that is known of a job, for people.
func (a *App) describeJob(d control.JobDetail) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Job %v: %s\n", d.Job.Job, d.Name)
	for _, l := range jobFacts(d) {
		fmt.Fprintf(&b, "  %-10s  %s\n", l[0], l[1])
	}
	if _, err := io.WriteString(a.Stdout, b.String()); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	for _, t := range []struct {
		title  string
		header []string
		rows   [][]string
	}{
		{"Pods", []string{"POD", "NODE", "RANKS", "ADDRESS", "HOSTNAME"}, podRows(d)},
		{"Epochs", []string{"EPOCH", "TIME", "SIZE", "NEW", "STALL", "REPLICAS"}, epochRows(d.Epochs)},
		{"Recoveries (ms)", slices.Concat([]string{"INC", "EPOCH", "LOST", "SPARES"}, upper(billParts()), []string{"CAUSE"}), billRows(d.Bills)},
		{"Ranks that failed", []string{"RANK", "STATUS"}, exitRows(d.Exits)},
	} {
		if len(t.rows) == 0 {
			continue
		}
		if _, err := fmt.Fprintf(a.Stdout, "\n%s\n", t.title); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		if err := a.emitTable(t.header, t.rows); err != nil {
			return err
		}
	}
	return nil
}

// jobFacts are the lines at the top, name and value.
func jobFacts(d control.JobDetail) [][2]string {
	state := string(d.State)
	if d.ExitCode != nil {
		state += fmt.Sprintf(", exit code %d", *d.ExitCode)
	}
	facts := [][2]string{
		{"state", state},
		{"program", programText(d.Spec)},
		{"directory", d.Spec.Dir},
		{"ranks", fmt.Sprintf("%d on %s", d.Ranks, foldNodes(d.Nodes))},
		{"protected", d.Protected},
		{"policy", policyText(d.Spec)},
		{"lives", fmt.Sprintf("incarnation %d, %s", d.Incarnation, counted(d.Recoveries, "recovery", "recoveries"))},
	}
	if d.Reason != "" {
		facts = append(facts, [2]string{"reason", d.Reason})
	}
	return facts
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// programText is the command line of a job, as mpirun takes it when the job
// has several programs.
func programText(s job.Spec) string {
	if len(s.More) == 0 {
		return strings.Join(s.Argv, " ")
	}
	var parts []string
	for _, p := range s.Programs() {
		parts = append(parts, fmt.Sprintf("-n %d %s", p.Ranks, strings.Join(p.Argv, " ")))
	}
	return strings.Join(parts, " : ")
}

func policyText(s job.Spec) string {
	ckpt := "no checkpoints"
	if s.CkptInterval > 0 {
		ckpt = fmt.Sprintf("checkpoint every %v on %d nodes", s.CkptInterval, s.Replicas)
	}
	return fmt.Sprintf("%s; on failure %s, without spare %s; files %s, output %s", ckpt, s.OnFailure, s.NoSpare, s.Files, s.Output)
}

func podRows(d control.JobDetail) [][]string {
	var rows [][]string
	for _, p := range d.Placement {
		row := []string{strconv.Itoa(int(p.Pod)), string(p.Node), ranksText(p.Ranks), "", ""}
		for _, a := range d.Book {
			if a.Pod == p.Pod {
				row[3], row[4] = a.IP.String(), a.Hostname
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func ranksText(ranks []job.Rank) string {
	ns := make([]int, len(ranks))
	for i, r := range ranks {
		ns[i] = int(r)
	}
	return foldNumbers(ns)
}

func epochRows(epochs []control.EpochInfo) [][]string {
	var rows [][]string
	for _, e := range epochs {
		var holders []string
		for pod, nodes := range e.Replicas {
			holders = append(holders, pod+":"+foldNodes(nodes))
		}
		slices.Sort(holders)
		rows = append(rows, []string{
			epochText(e.Epoch), e.Time.Local().Format(time.TimeOnly), sizeText(e.Bytes), sizeText(e.NewBytes),
			fmt.Sprintf("%.1fms", e.StallMS), strings.Join(holders, " "),
		})
	}
	return rows
}

// billParts are the parts of a recovery's bill, in the order in which they
// happen.
func billParts() []string {
	return []string{"detect", "agree", "stop", "rollback", "stage", "start", "restore", "rewire", "fence", "release", "refill", "total", "lost_work"}
}

func upper(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = strings.ToUpper(strings.ReplaceAll(w, "_", "-"))
	}
	return out
}

func billRows(bills []control.Bill) [][]string {
	var rows [][]string
	for _, b := range bills {
		row := []string{strconv.FormatUint(uint64(b.Incarnation), 10), epochText(b.Epoch), foldNodes(b.Lost), foldNodes(b.Spares)}
		for _, part := range billParts() {
			cell := ""
			if ms, ok := b.MS[part]; ok {
				cell = strconv.FormatFloat(ms, 'f', 1, 64)
			}
			row = append(row, cell)
		}
		cause := b.Cause
		if b.Skipped != 0 {
			cause += fmt.Sprintf(" (no intact image of epoch %d was left)", b.Skipped)
		}
		row = append(row, cause)
		rows = append(rows, row)
	}
	return rows
}

func exitRows(exits []job.Exit) [][]string {
	var rows [][]string
	for _, e := range exits {
		status := "exit code " + strconv.Itoa(e.Code)
		if e.Signal != 0 {
			status = "signal " + strconv.Itoa(e.Signal)
			if e.Core {
				status += ", core written"
			}
		}
		if e.Status() != 0 {
			rows = append(rows, []string{strconv.Itoa(int(e.Rank)), status})
		}
	}
	return rows
}

// sizeText writes a number of bytes for people: 1.5 GB is 1.5e9 bytes.
func sizeText(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	v, i := float64(n), 0
	for v >= 1000 && i < len(units)-1 {
		v /= 1000
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprintf("%.1f%s", v, units[i])
}
