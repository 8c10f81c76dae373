// Command lam starts, shows and ends clusters and jobs. See `lam --help`.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/lampause/lampause/internal/cli"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return cli.New().Run(ctx, os.Args[1:])
}
