package mpirun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// errDetached ends a session without ending its job.
var errDetached = errors.New("detached")

// Once the job has ended, its output must come to an end, too.
const (
	// silence is how long the stream may bring nothing before it is opened
	// anew: the lamd at its other end may have died without a word.
	silence = time.Second
	// drainLimit is how long nothing at all may come before it is given up.
	drainLimit = 30 * time.Second
)

// session stands between one job and the streams of this process.
type session struct {
	p      Process
	client *control.Client
	id     job.ID
	label  bool
	files  string    // --output-filename
	stdin  io.Reader // nil: not forwarded
	quiet  bool
	resume bool // go on where an earlier client stopped

	noteMu   sync.Mutex
	muxes    []*mux
	broken   chan struct{} // closed when the output cannot be written
	breakOne sync.Once
}

// note prints one line on stderr, on a line of its own.
func (s *session) note(text string) {
	s.noteMu.Lock()
	defer s.noteMu.Unlock()
	for _, m := range s.muxes {
		m.fresh()
	}
	_, _ = fmt.Fprintf(s.p.Stderr, "%s: %s\n", s.p.Name, text) // nowhere to report it
}

// run follows the job to its end and returns the exit code.
func (s *session) run(ctx context.Context) int {
	s.broken = make(chan struct{})
	pos := openPositions(positionsPath(s.p.Dirs, s.id))
	out, finish, err := s.output(pos)
	if err != nil {
		return s.failed(err)
	}
	session, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var ended control.Ended
	waited := make(chan error, 1)
	go func() {
		var err error
		ended, err = s.client.Wait(session, s.id)
		waited <- err
	}()
	s.accompany(session, cancel)
	read := make(chan error, 1)
	reading, stopReading := context.WithCancelCause(session)
	defer stopReading(nil)
	jobEnded := make(chan struct{})
	go func() { read <- s.read(reading, out, jobEnded) }()

	waitErr := <-waited
	close(jobEnded)
	if waitErr != nil {
		stopReading(waitErr)
	}
	readErr := <-read
	if err := finish(); readErr == nil {
		readErr = err
	}
	pos.close(waitErr == nil)
	return s.result(waitErr, readErr, ended)
}

// accompany starts the goroutines for stdin and signals. They end with ctx.
func (s *session) accompany(ctx context.Context, cancel context.CancelCauseFunc) {
	w := &warden{
		to: s.client, id: s.id, signals: s.p.Signals, stop: s.p.Stop, note: s.note, broken: s.broken,
		detach: func() { cancel(errDetached) },
	}
	go w.run(ctx)
	if s.stdin == nil {
		return
	}
	go func() {
		if err := pumpStdin(ctx, s.client, s.id, s.stdin); err != nil && ctx.Err() == nil {
			s.note(fmt.Sprintf("stdin is not forwarded any more: %v", err))
		}
	}()
}

// output builds the way from the job's frames to the reader. finish writes
// what is held back and returns the first error of writing.
func (s *session) output(pos *positions) (out *replay, finish func() error, err error) {
	var stdout, stderr sink
	if s.files != "" {
		o, e := newFiles(s.files, "out", pos.reached(1)), newFiles(s.files, "err", pos.reached(2))
		stdout, stderr = o, e
		finish = func() error { return errors.Join(o.close(), e.close()) }
	} else {
		o := newMux(s.p.Stdout, s.label, isTerminal(s.p.Stdout), pos.reached(1))
		e := newMux(s.p.Stderr, s.label, isTerminal(s.p.Stderr), pos.reached(2))
		stdout, stderr = o, e
		s.muxes = []*mux{o, e}
		finish = func() error { return errors.Join(o.close(), e.close()) }
	}
	out = newReplay(stdout, stderr, s.note)
	if s.resume {
		c, err := pos.load()
		if err != nil {
			return nil, nil, err
		}
		out.resume(c)
	}
	return out, finish, nil
}

// read passes the job's output on until it ends with the job. Once nobody can
// take it any more, it is read and dropped, so that the job can end.
func (s *session) read(ctx context.Context, out *replay, jobEnded <-chan struct{}) error {
	var writing error
	var flow flow
	take := func(o podapi.Output) error {
		flow.begin()
		defer flow.end()
		if writing != nil {
			return nil
		}
		if writing = out.take(o); writing != nil {
			s.breakOne.Do(func() { close(s.broken) })
		}
		return nil
	}
	for {
		attempt, cancel := context.WithCancelCause(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			flow.watch(attempt, jobEnded, cancel)
		}()
		err := s.client.Output(attempt, s.id, out.cursor, take)
		cancel(nil)
		<-done
		if err != nil && !errors.Is(err, errSilent) {
			return errors.Join(writing, err)
		}
		select {
		case <-jobEnded:
			if err == nil {
				return writing
			}
		case <-ctx.Done():
			return errors.Join(writing, context.Cause(ctx))
		case <-time.After(endPoll):
			// The stream ended before the job did, or just before we hear of it:
			// opened again it brings nothing that was seen.
		}
	}
}

// errSilent ends an attempt to read the output that brings nothing.
var errSilent = errors.New("the output stream is silent")

// flow watches whether frames come. Time that is spent on printing them does
// not count. It is safe for concurrent use.
type flow struct {
	mu   sync.Mutex
	busy bool      // a frame is being printed
	last time.Time // of the last frame, the zero time before the first
}

func (f *flow) begin() { f.set(true) }
func (f *flow) end()   { f.set(false) }

func (f *flow) set(busy bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy, f.last = busy, time.Now()
}

// watch cancels an attempt when the job has ended and nothing comes: at first
// to try once more, in the end for good.
func (f *flow) watch(ctx context.Context, jobEnded <-chan struct{}, cancel context.CancelCauseFunc) {
	select {
	case <-jobEnded:
	case <-ctx.Done():
		return
	}
	f.mu.Lock()
	if f.last.IsZero() {
		f.last = time.Now()
	}
	f.mu.Unlock()
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(silence / 4):
		}
		f.mu.Lock()
		busy, quiet := f.busy, time.Since(f.last)
		f.mu.Unlock()
		switch {
		case busy:
		case quiet > drainLimit:
			cancel(errors.New("the rest of the output does not come"))
			return
		case quiet > silence && time.Since(began) > silence:
			cancel(errSilent)
			return
		}
	}
}

// endPoll is how soon an output stream that ended before its job is opened
// again.
const endPoll = 200 * time.Millisecond

// result prints what there is to say at the end and returns the exit code.
func (s *session) result(waitErr, readErr error, ended control.Ended) int {
	switch {
	case errors.Is(waitErr, errDetached):
		s.note(fmt.Sprintf("hung up; job %v goes on: lam attach %v", s.id, s.id))
		return 129
	case waitErr != nil:
		return s.failed(fmt.Errorf("job %v: %w; it may still run: lam job %v", s.id, waitErr, s.id))
	}
	if ended.Message != "" {
		s.note(ended.Message)
	}
	if ended.Summary != "" && !s.quiet {
		s.note(ended.Summary)
	}
	switch {
	case errors.Is(readErr, syscall.EPIPE):
		return 128 + int(syscall.SIGPIPE) // as if the signal had killed us: nobody reads
	case readErr != nil:
		s.note(fmt.Sprintf("output of job %v is not complete: %v", s.id, readErr))
		if ended.ExitCode == 0 {
			return job.ExitInternal
		}
	}
	return ended.ExitCode
}

func (s *session) failed(err error) int {
	s.note(err.Error())
	return ExitCode(err)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull
}
