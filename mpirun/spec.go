package mpirun

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/hostfile"
	"github.com/lampause/lampause/job"
)

// buildSpec turns options into a Spec. environ and dir are those of this
// process.
//
// Expected errors: *Error with the exit code for what is wrong.
func buildSpec(o options, environ []string, dir string) (job.Spec, error) {
	first, err := buildProgram(o.program, environ, dir)
	if err != nil {
		return job.Spec{}, err
	}
	hosts, err := readHosts(o, environ)
	if err != nil {
		return job.Spec{}, err
	}
	spec := job.Spec{
		Name: o.name, Argv: first.Argv, Env: first.Env, Dir: first.Dir,
		Ranks: first.Ranks, PPN: o.ppn, MapBy: o.mapBy, Hosts: hosts, Spares: o.spares,
		CkptInterval: o.ckpt, OnFailure: o.onFailure, NoSpare: o.noSpare, Replicas: o.replicas,
		Files: o.files, Backing: o.backing, Output: o.output, CrashRetries: o.crashRetries, Preflight: o.preflight, StdinRank: job.Rank(o.stdinRank),
	}
	for _, p := range o.more {
		next, err := buildProgram(p, environ, dir)
		if err != nil {
			return job.Spec{}, err
		}
		spec.More = append(spec.More, next)
		spec.Ranks += next.Ranks
	}
	if spec.Name == "" {
		spec.Name = filepath.Base(first.Argv[0])
		spec.Name = spec.Name[:min(len(spec.Name), job.MaxNameLen)]
	}
	if err := spec.Validate(); err != nil {
		return job.Spec{}, &Error{Exit: job.ExitUsage, Err: err}
	}
	return spec, nil
}

// buildProgram finds a program and completes what it gets.
func buildProgram(p program, environ []string, dir string) (job.Program, error) {
	env := environment(p, environ)
	if p.dir != "" {
		if !filepath.IsAbs(p.dir) {
			p.dir = filepath.Join(dir, p.dir)
		}
		dir = filepath.Clean(p.dir)
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			return job.Program{}, fail(job.ExitUsage, "-wdir %s: not a directory", dir)
		}
	}
	env = setenv(env, "PWD", dir)
	path, err := lookUp(p.words[0], dir, getenv(env, "PATH"))
	if err != nil {
		return job.Program{}, err
	}
	return job.Program{Ranks: p.ranks, Argv: append([]string{path}, p.words[1:]...), Env: env, Dir: dir}, nil
}

// environment is what the ranks get of environ.
func environment(o program, environ []string) []string {
	var env []string
	for _, kv := range environ {
		key, _, _ := strings.Cut(kv, "=")
		switch {
		case key == "" || strings.HasPrefix(key, "PMI_") || strings.HasPrefix(key, "PMIX_"):
			// of a launcher that we were started by
		case o.envNone, o.envList != nil && !slices.Contains(o.envList, key):
		default:
			env = append(env, kv)
		}
	}
	for _, x := range slices.Concat(o.exports, o.own) {
		key, value, assigned := strings.Cut(x, "=")
		if !assigned {
			value, assigned = lookupEnv(environ, key)
		}
		if assigned {
			env = setenv(env, key, value)
		}
	}
	return env
}

func lookupEnv(env []string, key string) (string, bool) {
	for _, kv := range slices.Backward(env) {
		if k, v, _ := strings.Cut(kv, "="); k == key {
			return v, true
		}
	}
	return "", false
}

func getenv(env []string, key string) string {
	v, _ := lookupEnv(env, key)
	return v
}

func setenv(env []string, key, value string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool { return strings.HasPrefix(kv, key+"=") })
	return append(env, key+"="+value)
}

// lookUp finds the program: a name with a slash is a path relative to dir,
// any other is looked up in path as execvp(3) does.
//
// Expected errors: *Error: job.ExitUsage if there is none, job.ExitPermission
// if it cannot be executed.
func lookUp(program, dir, path string) (string, error) {
	if program == "" {
		return "", fail(job.ExitUsage, "the name of the program is empty")
	}
	if strings.Contains(program, "/") {
		full := program
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, full)
		}
		if err := executable(full); err != nil {
			return "", err
		}
		return filepath.Clean(full), nil
	}
	var denied error
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		full := filepath.Join(d, program)
		if _, err := os.Stat(full); err != nil {
			continue // not there, or in a directory that is closed to this user
		}
		err := executable(full)
		if err == nil {
			return full, nil
		}
		var e *Error
		if errors.As(err, &e) && e.Exit == job.ExitPermission {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	if executable(filepath.Join(dir, program)) == nil {
		return "", fail(job.ExitUsage, "program %s: not found in PATH; the one in this directory is ./%s", program, program)
	}
	return "", fail(job.ExitUsage, "program %s: not found in PATH", program)
}

// executable reports why the file cannot be run by this user.
func executable(file string) error {
	fi, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fail(job.ExitPermission, "program %s: permission denied", file)
	case err != nil:
		return fail(job.ExitUsage, "program %s: not found", file)
	case fi.IsDir():
		return fail(job.ExitPermission, "program %s: is a directory", file)
	case !fi.Mode().IsRegular():
		return fail(job.ExitPermission, "program %s: not a regular file", file)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS); err != nil {
		return fail(job.ExitPermission, "program %s: not executable", file)
	}
	return nil
}

// readHosts reads -host or the host file, which HYDRA_HOST_FILE may name, too.
func readHosts(o options, environ []string) ([]job.HostSlots, error) {
	var entries []hostfile.Entry
	var err error
	switch {
	case o.hostList != "":
		if entries, err = hostfile.ParseList("-host", o.hostList); err != nil {
			return nil, &Error{Exit: job.ExitUsage, Err: err}
		}
	case o.hostFile != "":
		entries, err = hostfile.Read(o.hostFile)
	case getenv(environ, "HYDRA_HOST_FILE") != "":
		entries, err = hostfile.Read(getenv(environ, "HYDRA_HOST_FILE"))
	}
	if err != nil {
		return nil, &Error{Exit: job.ExitConfig, Err: err}
	}
	hosts := make([]job.HostSlots, 0, len(entries))
	for _, e := range entries {
		hosts = append(hosts, job.HostSlots{Node: job.NodeID(e.Host), Slots: e.Slots, Spare: e.Spare})
	}
	if len(hosts) == 0 {
		return nil, nil
	}
	return hosts, nil
}
