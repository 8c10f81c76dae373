package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lampause/lampause/internal/cli/proctool"
	"github.com/lampause/lampause/internal/nearest"
)

const rootLong = `lam runs MPI programs that outlive the nodes they run on.

When a node dies, the ranks that live are rolled back in place to the last
checkpoint, the lost ones are restarted on spare nodes, and the job goes on.

A first cluster, four nodes and a spare on this machine:

  lam boot --local 4 --spares 1
  mpirun -n 4 ./program
  lam nodes
  lam halt

Environment: LAM_RUNTIME_DIR (sockets and logs; one per cluster),
LAM_STATE_DIR (images), NO_COLOR; ~/.config/lam/config.toml may say the same.`

// newRoot builds the command tree.
func newRoot(a *App) *cobra.Command {
	root := &cobra.Command{
		Use:           "lam",
		Short:         "MPI jobs that survive the loss of nodes",
		Long:          rootLong,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetFlagErrorFunc(flagError)
	root.SuggestionsMinimumDistance = 2
	root.PersistentFlags().VarP((*formatFlag)(&a.Format), "output", "o", "how to print: table, wide (nothing shortened) or json")
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(
		newBoot(a), newHalt(a), newFail(a), newRevive(a), newNodes(a),
		newDoctor(a), newVersion(a), newCompletion(a),
	)
	root.AddCommand(jobCommands(a)...)
	root.AddCommand(proctool.Command())
	return root
}

// formatFlag is the value of -o.
type formatFlag string

// String, Set and Type implement pflag.Value.
func (f *formatFlag) String() string { return string(*f) }

// Set accepts a known format only.
func (f *formatFlag) Set(s string) error {
	if s != formatTable && s != formatWide && s != formatJSON {
		return fmt.Errorf("must be table, wide or json")
	}
	*f = formatFlag(s)
	return nil
}

// Type names the kind of value in help texts.
func (f *formatFlag) Type() string { return "format" }

// unknownCommand names the nearest command there is.
func unknownCommand(cmd *cobra.Command, word string) error {
	if s := cmd.SuggestionsFor(word); len(s) > 0 {
		return usage("unknown command %q; did you mean %q? (%s --help lists all)", word, s[0], cmd.CommandPath())
	}
	return usage("unknown command %q (%s --help lists all)", word, cmd.CommandPath())
}

// flagError makes one line of a wrong flag, with the nearest known one.
func flagError(cmd *cobra.Command, err error) error {
	text := strings.TrimSpace(strings.SplitN(err.Error(), "\n", 2)[0])
	if word, ok := strings.CutPrefix(text, "unknown flag: --"); ok {
		if near := nearestFlag(cmd, word); near != "" {
			return usage("unknown flag --%s; did you mean --%s? (%s --help lists all)", word, near, cmd.CommandPath())
		}
	}
	// What the standard library says of a number is not for users.
	if i := strings.Index(text, "strconv."); i >= 0 {
		text = text[:i] + "not a whole number"
		if strings.HasSuffix(err.Error(), strconv.ErrRange.Error()) {
			text += " of this size"
		}
	}
	text = strings.ReplaceAll(text, "time: invalid duration", "not a duration like 30s:")
	return usage("%s (%s --help lists all)", text, cmd.CommandPath())
}

// nearestFlag returns the flag of cmd whose name is closest to word, if it is
// close at all.
func nearestFlag(cmd *cobra.Command, word string) string {
	word, _, _ = strings.Cut(word, "=")
	var names []string
	see := func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	}
	cmd.LocalFlags().VisitAll(see)
	cmd.InheritedFlags().VisitAll(see)
	return nearest.Word(word, names)
}

// exactly makes a one-line usage error of a wrong number of arguments. words
// name them, in order.
func exactly(words ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(words):
			return usage("missing %s: %s %s", words[len(args)], cmd.CommandPath(), strings.Join(words, " "))
		case len(args) > len(words):
			return usage("unexpected argument %q: %s", args[len(words)], strings.TrimSpace(cmd.CommandPath()+" "+strings.Join(words, " ")))
		}
		return nil
	}
}
