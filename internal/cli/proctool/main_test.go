package proctool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/spf13/cobra"
)

// TestMain makes the test binary a lam that has only the command proc, as the
// commands run their own executable.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "proc" {
		os.Exit(lam(os.Args[1:]))
	}
	os.Exit(m.Run())
}

func lam(args []string) int {
	root := &cobra.Command{Use: "lam", SilenceUsage: true, SilenceErrors: true}
	root.PersistentFlags().StringP("output", "o", "table", "")
	root.AddCommand(Command())
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return 0
	}
	var coded *exitError
	if !errors.As(err, &coded) {
		coded = &exitError{70, err}
	}
	if !coded.Silent() {
		fmt.Fprintln(os.Stderr, "lam:", err)
	}
	return coded.code
}
