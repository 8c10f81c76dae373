// Command run measures lampause on this machine: ./run bench. It prints a table
// (-o md: that of docs/measurements.md; -o json: everything) and with -json FILE
// writes the figures there. It needs bin/lam and bin/lamd (./run build), MPICH,
// NetPIPE and a quiet machine; it refuses to run more ranks than there are
// cores.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/bench"
)

func main() { os.Exit(run()) }

func run() int {
	var s bench.Suite
	var kernels, parts, out, format string
	flag.StringVar(&s.Lam, "lam", filepath.Join(os.Getenv("LAM_BIN"), "lam"), "the lam program (default: in $LAM_BIN, else bin/lam)")
	flag.IntVar(&s.Ranks, "ranks", 0, "number of ranks (default: the cores, at most 4)")
	flag.IntVar(&s.Rounds, "rounds", 5, "repetitions")
	flag.IntVar(&s.MB, "mb", 500, "memory of all ranks together for stall and recovery, MB")
	flag.StringVar(&kernels, "kernels", bench.DefaultKernels, "NAS kernels for the ratio")
	flag.StringVar(&parts, "parts", "", "what to measure, of: "+bench.AllParts+" (default: all)")
	flag.StringVar(&format, "o", bench.Table, "what to print: table, md or json")
	flag.StringVar(&out, "json", "", "write the figures to this file")
	flag.Parse()
	if s.Lam == "lam" {
		s.Lam = "bin/lam"
	}
	s.Kernels = words(kernels)
	s.Parts = words(parts)
	s.Log = zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr}).With().Timestamp().Logger()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	lam, err := filepath.Abs(s.Lam)
	if err == nil {
		s.Lam = lam
		err = measure(ctx, &s, format, out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func words(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// measure runs the suite and prints what it has, also after an error.
func measure(ctx context.Context, s *bench.Suite, format, out string) error {
	if err := bench.Write(io.Discard, bench.Result{}, format); err != nil { // before all the work
		return err
	}
	result, failed := s.Run(ctx)
	if result.Ranks == 0 {
		return failed
	}
	errs := []error{failed, bench.Write(os.Stdout, result, format)}
	if out != "" {
		var text bytes.Buffer
		errs = append(errs, bench.Write(&text, result, bench.JSON), os.WriteFile(out, text.Bytes(), 0o644))
	}
	return errors.Join(errs...)
}
