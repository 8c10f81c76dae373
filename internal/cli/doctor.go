package cli

import (
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/lampause/lampause/internal/doctor"
)

// exitUnhealthy is the exit code of a doctor that found something missing.
const exitUnhealthy = 1

func newDoctor(a *App) *cobra.Command {
	var stage string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what this machine offers and what is missing",
		Long: `Try, as the user who asks, what clusters and checkpoints need of the kernel and of
this machine, and name the cure for what is missing. Nothing is changed.

Exit status: 0 when nothing is missing (warnings do not count), else 1.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.doctorConfig()
			if err != nil {
				return err
			}
			if stage != "" {
				return c.RunStage(cmd.Context(), stage, a.Stdin, a.Stdout)
			}
			return a.showHealth(doctor.Run(cmd.Context(), c))
		},
	}
	cmd.Flags().StringVar(&stage, "stage", "", "used by the command itself")
	_ = cmd.Flags().MarkHidden("stage")
	return cmd
}

func (a *App) doctorConfig() (doctor.Config, error) {
	d, err := a.Dirs()
	if err != nil {
		return doctor.Config{}, err
	}
	exe, err := os.Executable()
	if err != nil {
		return doctor.Config{}, fmt.Errorf("find lam: %w", err)
	}
	return doctor.Config{
		Stage:   func(name string) []string { return []string{exe, "doctor", "--stage", name} },
		Runtime: d.Runtime, State: d.State, Look: exec.LookPath,
	}, nil
}

// showHealth prints the results; the cures follow the table, where they have
// room.
func (a *App) showHealth(all []doctor.Result) error {
	rows := make([][]string, 0, len(all))
	for _, r := range all {
		rows = append(rows, []string{r.Check, a.paint(r.Status), r.Detail})
	}
	if err := a.emit(all, []string{"CHECK", a.paint("STATUS"), "DETAIL"}, rows); err != nil {
		return err
	}
	if a.Format == formatTable {
		for _, r := range all {
			if r.Cure == "" {
				continue
			}
			if _, err := fmt.Fprintf(a.Stdout, "\n%s: %s\n", r.Check, r.Cure); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
	}
	if !doctor.Healthy(all) {
		return WithExit(exitUnhealthy, nil)
	}
	return nil
}

// paint colours a status on terminals. Every result has the same number of
// invisible bytes, so that columns stay aligned.
func (a *App) paint(s doctor.Status) string {
	if !a.Color {
		return string(s)
	}
	code := map[doctor.Status]string{doctor.OK: "32", doctor.Warn: "33", doctor.Missing: "31"}[s]
	if code == "" {
		code = "39"
	}
	return "\x1b[" + code + "m" + string(s) + "\x1b[0m"
}
