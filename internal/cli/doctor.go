package cli

import (
	"github.com/spf13/cobra"
)

func newDoctor(a *App) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check what this machine offers and what is missing",
		Args:  exactly(),
		RunE: func(_ *cobra.Command, _ []string) error {
			return usage("not built yet")
		},
	}
}
