package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/job"
)

// Commands are the first arguments with which a program must call Main.
func Commands() []string { return []string{"pod", "podinit"} }

// Main runs one of the internal commands `pod DIR` and `podinit` with the
// program's arguments (without its name) and returns the exit code. A program
// that uses a Starter dispatches to it before it does anything else: `podinit`
// is pid 1 of a pod.
func Main(ctx context.Context, args []string, stderr io.Writer) int {
	log := zerolog.New(stderr).With().Timestamp().Int("pid", os.Getpid()).Logger()
	// Whatever was inherited by accident must not reach the ranks: it would be
	// part of every checkpoint.
	err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		err = dispatch(ctx, args, log)
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return 0
	}
	_, _ = fmt.Fprintln(stderr, err) // nowhere else to say it
	return job.ExitInternal
}

func dispatch(ctx context.Context, args []string, log zerolog.Logger) error {
	switch {
	case len(args) == 1 && args[0] == "podinit":
		return runInit(ctx, log)
	case len(args) == 2 && args[0] == "pod":
		return launch(ctx, args[1])
	case len(args) == 5 && args[0] == "pod" && args[1] == insideArg:
		return inside(ctx, args[2:], log)
	}
	return fmt.Errorf("usage: pod DIR (internal command; lamd starts it)")
}

// inside is the second stage of `pod DIR`: the supervisor.
func inside(ctx context.Context, args []string, log zerolog.Logger) error {
	ready := os.NewFile(readyFD, "ready")
	uid, err := strconv.Atoi(args[0])
	if err != nil {
		return fmt.Errorf("uid: %w", err)
	}
	gid, err := strconv.Atoi(args[1])
	if err != nil {
		return fmt.Errorf("gid: %w", err)
	}
	err = runSupervisor(ctx, args[2], visibleID{uid, gid}, ready, log)
	if err != nil && !errors.Is(err, os.ErrClosed) {
		// If the launcher still waits, it says so to lamd.
		_, _ = fmt.Fprintln(ready, err)
	}
	return err
}
