package nsinit

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/pid1"
)

// sockFD is the number under which init inherits its socket.
const sockFD = 3

// Serve is the body of init: pid 1 of the namespaces that Start made, with the
// socket at descriptor 3. It returns when the caller is gone.
//
// Expected errors: when it is not run by Start; those of mounting /proc.
func Serve(ctx context.Context) error {
	if err := pid1.Serve(ctx, sockFD, complete); err != nil {
		return fmt.Errorf("nsinit: %w", err)
	}
	return nil
}

// complete gives the namespaces their own /proc and leaves init's children one
// capability at most. Source: capabilities(7).
func complete() error {
	// Whatever our ancestors forgot to close must not get into programs.
	if err := unix.CloseRange(sockFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close on exec: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if os.Geteuid() == 0 {
		return nil // root in earnest: its programs keep what they have
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	return nil
}
