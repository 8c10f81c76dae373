package pod

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/podapi"
)

// Names of files in a pod's directory, besides podapi.Socket.
const (
	specFile  = "spec.json"
	logFile   = "pod.log"
	exitsFile = "exits.json"
	voidFile  = "void.json"
	outDir    = "out"
	stdinFile = "stdin"
)

// Starter starts supervisors. The zero value runs the running program's own
// binary; it must dispatch `pod` and `podinit` to Main.
type Starter struct {
	Exe string // program to run, default /proc/self/exe
}

// startTimeout bounds the launcher: it ends when the supervisor answers.
const startTimeout = 15 * time.Second

// Start starts the supervisor of the pod directory dir, which holds spec.json,
// and returns when its socket answers. The supervisor is no child of the
// caller and outlives it. The directories of the specification are given to
// the job's owner.
//
// Expected errors: fs.ErrPermission when the kernel forbids user namespaces or
// the owner cannot reach dir; any text that the launcher printed.
func (s Starter) Start(ctx context.Context, dir string) error {
	spec, err := readSpec(dir)
	if err != nil {
		return fmt.Errorf("start pod: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	exe := s.Exe
	if exe == "" {
		exe = "/proc/self/exe"
	}
	cmd := exec.CommandContext(ctx, exe, "pod", dir)
	cmd.Dir = "/"
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if int(spec.Spec.UID) != os.Geteuid() {
		if err := giveTo(spec, dir); err != nil {
			return fmt.Errorf("start pod: %w", err)
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: spec.Spec.UID, Gid: spec.Spec.GID}
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start pod: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

// giveTo makes the owner of the job the owner of the pod's directories.
func giveTo(spec podapi.PodSpec, dir string) error {
	for _, p := range []string{dir, filepath.Join(dir, specFile), spec.TmpDir, spec.ImageDir} {
		if p == "" {
			continue
		}
		if err := os.Lchown(p, int(spec.Spec.UID), int(spec.Spec.GID)); err != nil {
			return err
		}
	}
	return nil
}

func readSpec(dir string) (podapi.PodSpec, error) {
	var spec podapi.PodSpec
	b, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return spec, err
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		return spec, fmt.Errorf("%s: %w", specFile, err)
	}
	if err := spec.Spec.Validate(); err != nil {
		return spec, fmt.Errorf("%s: %w", specFile, err)
	}
	return spec, nil
}

// insideArg marks the second stage of `lamd pod`.
const insideArg = "--inside"

// readyFD is the number under which the supervisor inherits a pipe to the
// launcher; it writes readyWord there when it answers on its socket.
const (
	readyFD   = 3
	readyWord = "ready\n"
)

// launch is the first stage of `lamd pod DIR`, run by the job's owner: it
// starts the supervisor in a new user and network namespace, in a session of
// its own, and returns when it is ready. The supervisor then is an orphan.
func launch(ctx context.Context, dir string) error {
	logTo, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = logTo.Close() }() // the supervisor has its copy
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // read to its end below
	id, err := ownID()
	if err != nil {
		return errors.Join(err, w.Close())
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/proc/self/exe", //nolint:gosec // ourselves
		"pod", insideArg, strconv.Itoa(id.uid), strconv.Itoa(id.gid), dir)
	cmd.Dir = "/"
	cmd.Env = supervisorEnv()
	cmd.Stdout, cmd.Stderr = logTo, logTo
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Setsid:      true,
	}
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("create user and network namespace: %w", err), w.Close())
	}
	if err := w.Close(); err != nil {
		return err
	}
	said, err := io.ReadAll(io.LimitReader(r, 4096))
	if err != nil {
		return err
	}
	if string(said) != readyWord {
		return fmt.Errorf("supervisor did not start: %s (see %s)", bytes.TrimSpace(said), logTo.Name())
	}
	return cmd.Process.Release()
}

// supervisorEnv is the environment of the supervisor: none of the job's, but
// what somebody set to look into the Go runtime.
func supervisorEnv() []string {
	env := []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/"}
	for _, key := range []string{"GODEBUG", "GORACE", "GOTRACEBACK"} {
		if v := os.Getenv(key); v != "" {
			env = append(env, key+"="+v)
		}
	}
	return env
}

// ownID returns the caller's numbers as the users of the machine know them: in
// a user namespace, those of its parent (user_namespaces(7)).
func ownID() (visibleID, error) {
	uid, err := outside("/proc/self/uid_map", os.Geteuid())
	if err != nil {
		return visibleID{}, err
	}
	gid, err := outside("/proc/self/gid_map", os.Getegid())
	return visibleID{uid, gid}, err
}

// outside translates id by a map of lines "inside outside count".
func outside(file string, id int) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var in, out, n int
		if _, err := fmt.Sscan(line, &in, &out, &n); err != nil {
			return 0, fmt.Errorf("%s: %q: %w", file, strings.TrimSpace(line), err)
		}
		if id >= in && id-in < n {
			return out + id - in, nil
		}
	}
	return id, nil
}
