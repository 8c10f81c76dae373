// Package cli is the command line of lam: the root command and the commands
// of a cluster's life. One App is made per invocation; nothing in the package
// is global, and nothing but the streams of the App is written to.
//
// To add a command, write newX(a *App) *cobra.Command in a file of its own and
// add it to the list in newRoot. A command returns its error; Run prints it as
// one line, "lam: ...", and chooses the exit code.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/lampause/lampause/internal/config"
	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/paths"
	"github.com/lampause/lampause/job"
)

// Formats of listings.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
)

// App is what the commands share. Fields are read only after New, but for
// Format, which the flags set.
type App struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Env    paths.Env
	Config error  // what is wrong with the configuration files, nil: nothing
	Format string // formatTable, formatWide or formatJSON
	Color  bool   // Stdout is a terminal that wants colours

	Terminal bool // Stdout is a terminal
}

// New returns the App of this process: its streams, its environment and
// configuration files. Colours
// are used on a terminal unless NO_COLOR is set (no-color.org).
func New() *App {
	a := &App{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Env: paths.OSEnv(), Format: formatTable,
		Terminal: isTerminal(os.Stdout),
		Color:    isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
	}
	set, err := config.Load(os.Getenv)
	if err != nil {
		a.Config = WithExit(job.ExitConfig, err)
		return a
	}
	a.Env.Get = set.Get
	return a
}

func isTerminal(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

// Dirs resolves the directories of the cluster that the commands speak to. A
// local cluster's own description wins over the default of the state
// directory.
//
// Expected errors: one with exit code job.ExitConfig.
func (a *App) Dirs() (paths.Dirs, error) {
	if a.Config != nil {
		return paths.Dirs{}, a.Config
	}
	d, err := paths.Resolve(a.Env)
	if err != nil {
		return d, WithExit(job.ExitConfig, err)
	}
	return d, nil
}

// Client returns a client of the cluster in the runtime directory.
func (a *App) Client() (*control.Client, error) {
	d, err := a.Dirs()
	if err != nil {
		return nil, err
	}
	sockets := func() []string {
		var all []string
		for _, n := range d.Nodes() {
			all = append(all, d.NodeSocket(n))
		}
		return all
	}
	return control.NewClient(sockets, d.Runtime), nil
}

// lamd returns the path of the daemon's program: $LAM_LAMD, else next to this
// one, as both are installed together.
func (a *App) lamd() (string, error) {
	if a.Config != nil {
		return "", a.Config
	}
	if p := a.Env.Get("LAM_LAMD"); p != "" {
		if !filepath.IsAbs(p) {
			return "", WithExit(job.ExitConfig, fmt.Errorf("LAM_LAMD %q: not an absolute path", p))
		}
		return p, nil
	}
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find lamd: %w", err)
	}
	if exe, err = filepath.EvalSymlinks(exe); err != nil {
		return "", fmt.Errorf("find lamd: %w", err)
	}
	p := filepath.Join(filepath.Dir(exe), "lamd")
	if _, err := os.Stat(p); err != nil {
		return "", WithExit(job.ExitConfig, fmt.Errorf("no lamd at %s; install it next to lam, or set LAM_LAMD", p))
	}
	return p, nil
}

// Run executes one command line (without the program's name) and returns its
// exit code.
func (a *App) Run(ctx context.Context, args []string) int {
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var quiet interface{ Silent() bool }
	if !errors.As(err, &quiet) || !quiet.Silent() {
		_, _ = fmt.Fprintf(a.Stderr, "lam: %v\n", err)
	}
	return exitCode(err)
}
