package mpirun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// stdinChunk is how much of stdin is sent at once, in bytes. The next piece is
// read when the job has taken this one.
const stdinChunk = 32 << 10

// stdinSender takes the bytes of rank 0's standard input.
type stdinSender interface {
	Stdin(ctx context.Context, id job.ID, offset int64, data []byte, eof bool) (control.StdinTaken, error)
}

// pumpStdin sends in to rank 0 until it ends, ctx ends, or the job takes no
// more. A failure to read counts as the end of the input.
//
// Expected errors: those of the control client; not the job's end.
func pumpStdin(ctx context.Context, to stdinSender, id job.ID, in io.Reader) error {
	buf := make([]byte, stdinChunk)
	var offset int64
	for {
		if err := awaitForeground(ctx, in); err != nil {
			return err
		}
		n, err := in.Read(buf)
		eof := err != nil
		if n == 0 && !eof {
			continue
		}
		if err := sendStdin(ctx, to, id, &offset, buf[:n], eof); err != nil || eof {
			return ignoreClosed(err)
		}
	}
}

// sendStdin sends data at *offset, which it advances, until all is taken.
func sendStdin(ctx context.Context, to stdinSender, id job.ID, offset *int64, data []byte, eof bool) error {
	for {
		taken, err := to.Stdin(ctx, id, *offset, data, eof)
		if err != nil {
			return err
		}
		n := taken.Offset - *offset
		if n < 0 || n > int64(len(data)) {
			return fmt.Errorf("stdin: %d bytes at %d were sent, and taken up to %d", len(data), *offset, taken.Offset)
		}
		*offset += n
		data = data[n:]
		if len(data) == 0 {
			return nil
		}
		if n == 0 { // nothing taken yet: the job is not ready
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// ignoreClosed drops the error that says nobody reads any more.
func ignoreClosed(err error) error {
	var e *control.Error
	if errors.As(err, &e) && e.Status == http.StatusGone {
		return nil
	}
	return err
}

// awaitForeground returns when in may be read without stopping this process:
// a read of the terminal from the background raises SIGTTIN (tty_ioctl(2)).
func awaitForeground(ctx context.Context, in io.Reader) error {
	f, ok := in.(*os.File)
	for ok && ctx.Err() == nil {
		group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
		if err != nil || group == unix.Getpgrp() {
			return nil // not a terminal of ours, or in the foreground
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
