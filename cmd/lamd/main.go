// Command lamd is the daemon of a node, and the processes around it. Users
// start none of them by hand: lam boot does.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/cli"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/lamd"
	"github.com/lampause/lampause/lamd/local"
	"github.com/lampause/lampause/lamd/pod"
)

const usage = `usage: lamd COMMAND

  run      the daemon of a node
  node     pid 1 of a node of a local cluster
  local    pid 1 of a local cluster
  pod      supervisor of a job's ranks on a node
  podinit  pid 1 of a pod
  version  print the version

lam boot starts the daemons; see lam --help.
`

func main() { os.Exit(run(context.Background(), os.Args[1:])) }

// level is LAM_LOG_LEVEL (trace debug info warn error), else info.
func level(s string) zerolog.Level {
	if l, err := zerolog.ParseLevel(s); err == nil && s != "" {
		return l
	}
	return zerolog.InfoLevel
}

func run(ctx context.Context, args []string) int {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return job.ExitUsage
	}
	log := zerolog.New(os.Stderr).Level(level(os.Getenv("LAM_LOG_LEVEL"))).With().Timestamp().Logger()
	switch args[0] {
	case "run":
		return lamd.Main(ctx, args[1:], os.Stderr, log)
	case "pod", "podinit":
		return pod.Main(ctx, args, os.Stderr)
	case "local":
		return local.HolderMain(ctx, log)
	case "node":
		return local.NodeMain(ctx, log)
	case "version", "--version":
		fmt.Println(cli.BuildVersion())
		return 0
	case "help", "--help", "-h":
		fmt.Print(usage)
		return 0
	}
	fmt.Fprintf(os.Stderr, "lamd: unknown command %q (lamd --help lists all)\n", args[0])
	return job.ExitUsage
}
