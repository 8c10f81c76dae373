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

// stdinProbe is how often a sender that has nothing to send asks whether the
// job wants something again.
const stdinProbe = time.Second

// pumpStdin sends in to rank 0 until all of it is there for good, ctx ends, or
// the job takes no more. A failure to read counts as the end of the input. What
// a recovery may ask for again is kept until no recovery can.
//
// Expected errors: those of the control client; not the job's end.
func pumpStdin(ctx context.Context, to stdinSender, id job.ID, in io.Reader) error {
	log, err := newInputLog()
	if err != nil {
		return err
	}
	defer log.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pieces := make(chan inputPiece) // unbuffered: the next is read when this one was taken
	go readInput(ctx, in, pieces)
	p := &stdinPump{to: to, id: id, log: log}
	for {
		if err := p.flush(ctx); err != nil {
			return ignoreClosed(err)
		}
		if p.eof && p.safe {
			return nil
		}
		var probe <-chan time.Time
		if p.eof || log.base < log.end {
			probe = time.After(stdinProbe)
		}
		select {
		case piece := <-pieces:
			p.eof = piece.eof
			if err := log.append(piece.data); err != nil {
				return err
			}
		case <-probe:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// inputPiece is what one read of stdin gave.
type inputPiece struct {
	data []byte
	eof  bool
}

// readInput reads in to its end, or until ctx ends; a read that blocks is left
// behind then.
func readInput(ctx context.Context, in io.Reader, pieces chan<- inputPiece) {
	for {
		if awaitForeground(ctx, in) != nil {
			return
		}
		buf := make([]byte, stdinChunk)
		n, err := in.Read(buf)
		if n == 0 && err == nil {
			continue
		}
		select {
		case pieces <- inputPiece{buf[:n], err != nil}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// stdinPump sends what is in its log. It is not safe for concurrent use.
type stdinPump struct {
	to   stdinSender
	id   job.ID
	log  *inputLog
	sent int64 // everything below was taken
	eof  bool  // nothing follows the log
	safe bool  // all that was taken, and the end, will not be asked for again
}

// flush sends until all is taken, and asks at least once what is wanted: a rank
// that was rebuilt wants again what came after its checkpoint.
func (p *stdinPump) flush(ctx context.Context) error {
	for {
		data, err := p.log.piece(p.sent)
		if err != nil {
			return err
		}
		eof := p.eof && p.sent+int64(len(data)) == p.log.end
		taken, err := p.to.Stdin(ctx, p.id, p.sent, data, eof)
		if err != nil {
			return err
		}
		if taken.Offset < p.log.base || taken.Offset > p.sent+int64(len(data)) {
			return fmt.Errorf("stdin: %d bytes at %d were sent, and taken up to %d; what is below %d is not kept", len(data), p.sent, taken.Offset, p.log.base)
		}
		if err := p.log.forget(min(taken.Safe, taken.Offset)); err != nil {
			return err
		}
		stuck := taken.Offset == p.sent && len(data) > 0
		p.sent = taken.Offset
		if p.sent == p.log.end && eof == p.eof {
			p.safe = taken.SafeEOF && taken.Safe >= p.log.end
			return nil
		}
		if stuck { // nothing taken yet: the job is not ready
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
			return nil //nolint:nilerr // not a terminal of ours, or in the foreground
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
