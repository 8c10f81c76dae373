// Command run measures lampause on this machine: go run ./bench/run. It prints
// a table, and with -json FILE writes the figures there. It needs bin/lam and
// bin/lamd (make build), MPICH, and a quiet machine; it refuses to run more
// ranks than there are cores.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
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
	var kernels, parts, out string
	flag.StringVar(&s.Lam, "lam", filepath.Join(os.Getenv("LAM_BIN"), "lam"), "the lam program (default: in $LAM_BIN, else bin/lam)")
	flag.IntVar(&s.Ranks, "ranks", 0, "number of ranks (default: the cores, at most 4)")
	flag.IntVar(&s.Rounds, "rounds", 5, "repetitions")
	flag.IntVar(&s.MB, "mb", 500, "memory of all ranks together for stall and recovery, MB")
	flag.StringVar(&kernels, "kernels", "cg.B,mg.B,ep.A", "NAS kernels for the ratio")
	flag.StringVar(&parts, "parts", "", "what to measure, of: "+bench.AllParts+" (default: all)")
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
		err = measure(ctx, &s, out)
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
func measure(ctx context.Context, s *bench.Suite, out string) error {
	result, failed := s.Run(ctx)
	if result.Ranks > 0 {
		if err := bench.WriteTable(os.Stdout, result); err != nil {
			return err
		}
	}
	if out != "" {
		text, err := json.MarshalIndent(result, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(out, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	return failed
}
