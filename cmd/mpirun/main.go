// Command mpirun runs an MPI program on the nodes of a lampause cluster. It is
// `lam run` under the name that people type. See `mpirun --help`.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/lampause/lampause/internal/cli"
	"github.com/lampause/lampause/mpirun"
)

func main() { os.Exit(run()) }

func run() int {
	p, release, err := mpirun.OSProcess("mpirun")
	if err != nil {
		fmt.Fprintf(os.Stderr, "mpirun: %v\n", err)
		return mpirun.ExitCode(err)
	}
	defer release()
	p.Version = cli.BuildVersion().String()
	return mpirun.Main(context.Background(), p, os.Args[1:])
}
