package cli

import (
	"errors"
	"fmt"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// exitError gives an error, or silence when err is nil, an exit code.
type exitError struct {
	code int
	err  error
}

// Error implements error.
func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

// Unwrap returns the cause.
func (e *exitError) Unwrap() error { return e.err }

// Silent reports that there is nothing to print.
func (e *exitError) Silent() bool { return e.err == nil }

// ExitCode returns the code.
func (e *exitError) ExitCode() int { return e.code }

// WithExit attaches the exit code that the command should end with. With a nil
// err the command ends with code and prints nothing more.
func WithExit(code int, err error) error { return &exitError{code: code, err: err} }

// usage is an error about the command line itself.
func usage(format string, args ...any) error {
	return WithExit(job.ExitUsage, fmt.Errorf(format, args...))
}

// exitCode returns the exit code that err asks for: that of the outermost
// error that has one, a daemon's own, else job.ExitInternal.
func exitCode(err error) int {
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return control.ExitCode(err)
}
