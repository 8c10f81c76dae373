package mpirun

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lampause/lampause/internal/config"
	"github.com/lampause/lampause/internal/nearest"
	"github.com/lampause/lampause/job"
)

// Error is a failure of the client itself, with the exit code that it leads
// to.
type Error struct {
	Exit int
	Err  error
}

// Error implements error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns e.Exit.
func (e *Error) ExitCode() int { return e.Exit }

func fail(exit int, format string, args ...any) error {
	return &Error{Exit: exit, Err: fmt.Errorf(format, args...)}
}

// parse reads the flags in front of the program, and where a ":" follows, those
// of the next one. set presets those that have a variable.
//
// Expected errors: *Error with job.ExitUsage; with job.ExitConfig for a preset.
func parse(args []string, set *config.Settings) (options, error) {
	o := defaults()
	flags := table()
	for _, f := range flags {
		if f.env == "" || set.Get(f.env) == "" {
			continue
		}
		if err := f.set(&o, []string{set.Get(f.env)}); err != nil {
			return o, fail(job.ExitConfig, "%s: %w", set.Source(f.env), err)
		}
	}
	o.onFailureSet = set.Get("LAM_ON_FAILURE") != ""
	first, rest, several := cutProgram(args)
	if err := parseProgram(&o, flags, first); err != nil {
		return o, err
	}
	each := slices.DeleteFunc(slices.Clone(flags), func(f option) bool { return !f.each })
	for several {
		first, rest, several = cutProgram(rest)
		next := options{program: o.program}
		next.ranks, next.own, next.words = 1, nil, nil
		next.exports = slices.Clone(o.exports)
		if err := parseProgram(&next, each, first); err != nil {
			return o, inFront(err, flags)
		}
		if len(next.words) == 0 {
			return o, fail(job.ExitUsage, "no program after \":\": mpirun [OPTIONS] PROGRAM [ARGUMENTS] : [OPTIONS] PROGRAM [ARGUMENTS]")
		}
		o.more = append(o.more, next.program)
	}
	return o, check(&o)
}

// cutProgram cuts the words at the ":" that separates programs.
func cutProgram(args []string) (first, rest []string, several bool) {
	if i := slices.Index(args, ":"); i >= 0 {
		return args[:i], args[i+1:], true
	}
	return args, nil, false
}

// unknownError is the refusal of a flag.
type unknownError struct{ written, name, near string }

// Error implements error.
func (e *unknownError) Error() string {
	if e.near == "" {
		return fmt.Sprintf("unknown option %s; mpirun --help lists the options", e.written)
	}
	return fmt.Sprintf("unknown option %s: did you mean %s? mpirun --help lists the options", e.written, dashed(e.near))
}

// inFront rewords the refusal of a flag that is known, but holds for all
// programs.
func inFront(err error, flags []option) error {
	var no *unknownError
	if errors.As(err, &no) && slices.ContainsFunc(flags, func(f option) bool { return slices.Contains(f.names, no.name) }) {
		return fail(job.ExitUsage, "%s: holds for the whole job: write it in front of the first program", no.written)
	}
	return err
}

// parseProgram reads the flags of one program, and the program.
func parseProgram(o *options, flags []option, args []string) error {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "-" {
		if args[0] == "--" {
			args = args[1:]
			break
		}
		rest, err := parseFlag(o, flags, args)
		if err != nil {
			return &Error{Exit: job.ExitUsage, Err: err}
		}
		args = rest
	}
	o.words = args
	return nil
}

// check finds what single flags cannot.
func check(o *options) error {
	switch {
	case o.help || o.version:
		return nil
	case len(o.words) == 0:
		return fail(job.ExitUsage, "no program given: mpirun [OPTIONS] PROGRAM [ARGUMENTS]; mpirun --help lists the options")
	case o.hostList != "" && o.hostFile != "":
		return fail(job.ExitUsage, "both -host and -hostfile: give one of them")
	case o.oversubscr && o.ppn > 0:
		return fail(job.ExitUsage, "both -oversubscribe and -ppn: give one of them")
	}
	return nil
}

// parseFlag applies args[0] and returns what follows it and its values.
func parseFlag(o *options, flags []option, args []string) ([]string, error) {
	written := args[0]
	name, value, assigned := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(written, "-"), "-"), "=")
	at := slices.IndexFunc(flags, func(f option) bool { return slices.Contains(f.names, name) })
	if at < 0 {
		return nil, unknown(written, name, flags)
	}
	f := flags[at]
	var values []string
	args = args[1:]
	switch {
	case assigned && len(f.values) == 1:
		values = []string{value}
	case assigned:
		return nil, fmt.Errorf("%s: takes %d values, without \"=\"", written, len(f.values))
	case len(args) < len(f.values):
		return nil, fmt.Errorf("%s: missing %s", written, f.values[len(args)])
	default:
		values, args = args[:len(f.values)], args[len(f.values):]
	}
	if err := f.set(o, values); err != nil {
		return nil, fmt.Errorf("%s: %w", dashed(name), err)
	}
	return args, nil
}

// dashed writes a flag the way people do: one dash for short names.
func dashed(name string) string {
	if len(name) <= 4 {
		return "-" + name
	}
	return "--" + name
}

// unknown words the refusal of a flag, with the nearest known one.
func unknown(written, name string, flags []option) error {
	var names []string
	for _, f := range flags {
		if f.help != "" {
			names = append(names, f.names...)
		}
	}
	return &unknownError{written, name, nearest.Word(name, names)}
}

// Usage returns the help text of a command called name.
func Usage(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s [OPTIONS] PROGRAM [ARGUMENTS] [: [OPTIONS] PROGRAM [ARGUMENTS]]...\n\nRuns an MPI program, or several as one job, on the nodes of the cluster.\n", name)
	section := func(title string, flags []option) {
		fmt.Fprintf(&b, "\n%s\n", title)
		for _, f := range flags {
			if f.help == "" {
				continue
			}
			names := make([]string, len(f.names))
			for i, n := range f.names {
				names[i] = dashed(n)
			}
			left := strings.Join(append([]string{strings.Join(names, ", ")}, f.values...), " ")
			text := f.help
			if f.env != "" {
				text += " [" + f.env + "]"
			}
			fmt.Fprintf(&b, "  %s\n        %s\n", left, text)
		}
	}
	section("Launch:", launchOptions())
	section("Surviving failures:", lamOptions())
	b.WriteString(usageEnd)
	return b.String()
}

const usageEnd = `
After ":" comes the next program of the job, with ranks of its own (-n) and, if
they shall differ, -wdir and environment; all else is said once, in front of the
first program.

Signals: Ctrl-C asks the ranks to end and kills them 5 s later; twice, at once.
Ctrl-Z suspends the job, fg resumes it. USR1 and USR2 are passed on. When mpirun
itself dies or hangs up, the job goes on: lam attach JOB.

Exit code: that of the first rank that failed (128+n for signal n), else 0;
64 usage or unknown program, 69 no nodes or slots, or a node was lost and not
replaced, 70 internal, 75 stopped with a usable checkpoint, 77 not permitted or
not executable, 78 configuration.
`
