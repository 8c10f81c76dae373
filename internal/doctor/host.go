package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/paths"
)

const (
	gib         = 1 << 30
	leastMemory = 2 * gib
	leastDisk   = 2 * gib
	leastFiles  = 1024
	installMPI  = "apt-get install -y mpich libmpich-dev gcc"
)

// kernelVersion judges by the only thing that cannot be tried.
func kernelVersion() Result {
	const check = "kernel"
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return result(check, err, "", Missing, "")
	}
	release := unix.ByteSliceToString(u.Release[:])
	if runtime.GOARCH != "amd64" {
		return Result{check, Missing, "Linux " + release + " on " + runtime.GOARCH, "checkpoints know the registers of x86-64 only"}
	}
	major, minor := version(release)
	if major < 6 || major == 6 && minor < 7 {
		return Result{check, Warn, "Linux " + release, "Linux 6.7 or later tracks written memory without stopping programs"}
	}
	return Result{Check: check, Status: OK, Detail: "Linux " + release + " on " + runtime.GOARCH}
}

// version returns the first two numbers of a kernel release, 0 for what is
// none.
func version(release string) (major, minor int) {
	f := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(f) > 0 {
		major, _ = strconv.Atoi(f[0])
	}
	if len(f) > 1 {
		minor, _ = strconv.Atoi(f[1])
	}
	return major, minor
}

// engine tries on a child and on ourselves what checkpoints need.
func engine(ctx context.Context) []Result {
	sys := kernel.New(nil)
	return []Result{
		result("ptrace and pidfd_getfd", traceChild(ctx, sys), "granted for own processes", Missing,
			"root: sysctl kernel.yama.ptrace_scope=1 (or 0); a container needs a seccomp profile that allows ptrace and pidfd_getfd"),
		result("userfaultfd write tracking", track(sys), "granted without privilege", Warn,
			"Linux 6.7 or later with CONFIG_USERFAULTFD; without it checkpoints copy all memory"),
		result("PAGEMAP_SCAN", scanSelf(sys), "granted", Warn, "Linux 6.7 or later; without it checkpoints copy all memory"),
	}
}

// traceChild stops a child as a checkpoint does, takes a descriptor of it, and
// lets it go.
func traceChild(ctx context.Context, sys *kernel.Sys) error {
	runtime.LockOSThread() // ptrace belongs to a thread
	defer runtime.UnlockOSThread()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	cmd := exec.CommandContext(ctx, "/bin/cat")
	cmd.Stdin = r // it waits
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a child: %w", err)
	}
	pid := cmd.Process.Pid
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if err := sys.Seize(pid, 0); err != nil {
		return err
	}
	if err := sys.Interrupt(pid); err != nil {
		return err
	}
	if _, err := sys.WaitStop(pid, time.Now().Add(5*time.Second)); err != nil {
		return err
	}
	defer func() { _ = sys.Detach(pid, 0) }()
	pidfd, err := sys.PidfdOpen(pid)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(pidfd) }()
	fd, err := sys.PidfdGetfd(pidfd, pid, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func track(sys *kernel.Sys) error {
	fd, err := sys.UffdOpen()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return sys.UffdInit(fd, 0)
}

func scanSelf(sys *kernel.Sys) error {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	page := uint64(os.Getpagesize())
	_, err = sys.PagemapScan(f, os.Getpid(), kernel.Scan{Start: page, End: 64 * page, Mask: 1, Return: 1})
	return err
}

// programs looks for what users bring: an MPI and a compiler.
func (c Config) programs(ctx context.Context) []Result {
	var all []Result
	mpi := Result{"MPICH", Missing, "no MPICH library found: MPI programs cannot be built or run", "root: " + installMPI}
	libs, _ := filepath.Glob("/usr/lib/*/libmpich.so*") // the pattern is well-formed
	if p, err := c.Look("mpichversion"); err == nil {
		detail := "found " + p
		if out, err := exec.CommandContext(ctx, p, "-v").Output(); err == nil {
			detail = strings.Join(strings.Fields(string(out)), " ")
		}
		mpi = Result{Check: mpi.Check, Status: OK, Detail: detail}
	} else if len(libs) > 0 {
		mpi = Result{Check: mpi.Check, Status: OK, Detail: libs[0]}
	}
	all = append(all, mpi)
	for _, name := range []string{"mpicc", "gcc"} {
		p, err := c.Look(name)
		if errors.Is(err, exec.ErrNotFound) {
			err = errors.New("not found in PATH: MPI programs cannot be built here")
		}
		all = append(all, result(name, err, p, Warn, "root: "+installMPI))
	}
	return all
}

// limits looks at what the shell allows.
func limits() []Result {
	var files, procs unix.Rlimit
	err := errors.Join(unix.Getrlimit(unix.RLIMIT_NOFILE, &files), unix.Getrlimit(unix.RLIMIT_NPROC, &procs))
	if err != nil {
		return []Result{result("limits", err, "", Warn, "")}
	}
	open := Result{Check: "open files", Status: OK, Detail: count(files.Max, "at most")}
	if files.Max < leastFiles {
		open.Status, open.Cure = Warn, fmt.Sprintf("ulimit -n %d: every rank has a connection to every other", leastFiles)
	}
	return []Result{open}
}

// room looks at memory, disk and the directories.
func (c Config) room() []Result {
	var all []Result
	memory, err := memAvailable()
	r := result("memory", err, count(memory>>20, "MiB available"), Warn, "")
	if err == nil && memory < leastMemory {
		r.Status, r.Cure = Warn, "images are held in memory and on disk: up to three times the memory of the ranks of a node"
	}
	all = append(all, r)
	dir, free, err := freeSpace(c.State)
	r = result("disk", err, fmt.Sprintf("%d MiB free at %s", free>>20, dir), Missing, "set LAM_STATE_DIR to a directory on a disk with room")
	if err == nil && free < leastDisk {
		r.Status, r.Cure = Warn, "set LAM_STATE_DIR to a directory on a disk with room for the images"
	}
	all = append(all, r)
	err = paths.Dirs{Runtime: c.Runtime}.CheckSockets("n64")
	return append(all, result("runtime directory", err, c.Runtime, Missing, "export LAM_RUNTIME_DIR=/tmp/lam-"+strconv.Itoa(os.Getuid())))
}

// memAvailable reads /proc/meminfo, in bytes (proc_meminfo(5)).
func memAvailable() (uint64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) > 1 && f[0] == "MemAvailable:" {
			kib, err := strconv.ParseUint(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.Join(lines.Err(), errors.New("/proc/meminfo: no MemAvailable"))
}

// freeSpace returns the room, in bytes, where dir is or would be made.
func freeSpace(dir string) (existing string, bytes uint64, err error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return dir, st.Bavail * uint64(st.Bsize), nil
		}
		if !errors.Is(err, unix.ENOENT) || dir == "/" {
			return dir, 0, fmt.Errorf("%s: %w", dir, err)
		}
		dir = filepath.Dir(dir)
	}
}
