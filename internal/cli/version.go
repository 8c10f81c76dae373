package cli

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Version describes the build.
type Version struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // commit, "+dirty" when the tree was changed
	Go       string `json:"go"`
}

// BuildVersion reads what the Go tool recorded in the program.
func BuildVersion() Version {
	v := Version{Version: "devel"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	v.Go = info.GoVersion
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		v.Version = info.Main.Version
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty && v.Revision != "" {
		v.Revision += "+dirty"
	}
	return v
}

// String is the line that `lam version` and `lamd version` print.
func (v Version) String() string {
	s := "lampause " + v.Version
	if v.Revision != "" {
		s += " (" + v.Revision + ")"
	}
	return s + " " + v.Go
}

func newVersion(a *App) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  exactly(),
		RunE: func(*cobra.Command, []string) error {
			v := BuildVersion()
			if a.Format == formatJSON {
				return a.emitJSON(v)
			}
			_, err := fmt.Fprintln(a.Stdout, v)
			return err
		},
	}
}

func newCompletion(a *App) *cobra.Command {
	return &cobra.Command{
		Use:       "completion SHELL",
		Short:     "Print a completion script for bash, zsh or fish",
		Example:   "  source <(lam completion bash)",
		ValidArgs: []string{"bash", "zsh", "fish"},
		Args:      exactly("SHELL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.Stdout)
			case "fish":
				return root.GenFishCompletion(a.Stdout, true)
			}
			return usage("no completion for %q: bash, zsh or fish", args[0])
		},
	}
}
