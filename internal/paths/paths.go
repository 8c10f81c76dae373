// Package paths knows where lampause keeps things: the one place that turns
// the environment into directories, and directories into the names of
// sockets, logs and state. It opens no files but those of EnsurePrivate.
//
// Runtime directory (sockets, logs, gone after `lam halt`):
//
//	RUNTIME/cluster.json        what a local cluster consists of
//	RUNTIME/cluster.sock        control socket of its holder
//	RUNTIME/cluster.lock        flock'ed by the living holder
//	RUNTIME/holder.log
//	RUNTIME/clients/JOB.pos     how much of a job's output mpirun has printed
//	RUNTIME/NODE/lamd.sock      control socket of the node's lamd
//	RUNTIME/NODE/lamd.log
//	RUNTIME/NODE/tmp            $TMPDIR of the node's daemons
//	RUNTIME/NODE/pods/JOB/      spec.json pod.sock pod.log exits.json
//
// State directory (images and the replicated log, outlives a boot):
//
//	STATE/NODE/raft/
//	STATE/NODE/jobs/JOB/EPOCH/podN/
package paths

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// MaxSocketPath is the longest path a unix socket can be bound to, in bytes:
// sun_path holds 108 with the final zero (unix(7)).
const MaxSocketPath = 107

// longestJob is the longest job id that paths make room for.
const longestJob = job.ID(99999999)

// Dirs are the two roots of one cluster or node. Both are absolute and clean.
// The zero value is not usable; call Resolve.
type Dirs struct {
	Runtime string `json:"runtime_dir"`
	State   string `json:"state_dir"`
}

// Env are the inputs of Resolve, so that tests need not touch the process.
type Env struct {
	Get  func(key string) string // os.Getenv
	UID  int                     // effective uid
	Temp string                  // directory for temporary files, os.TempDir()
}

// OSEnv is the environment of this process.
func OSEnv() Env { return Env{Get: os.Getenv, UID: os.Geteuid(), Temp: os.TempDir()} }

// Resolve applies the defaults of docs/cli.md. Runtime is $LAM_RUNTIME_DIR,
// else $XDG_RUNTIME_DIR/lam, else /run/lam for root and TEMP/lam-UID for
// others. State is $LAM_STATE_DIR, else /var/lib/lam for root,
// $XDG_STATE_HOME/lam or ~/.local/state/lam for others, else RUNTIME/state.
// Nothing is created.
//
// Expected errors: a variable that holds a relative path.
func Resolve(env Env) (Dirs, error) {
	var d Dirs
	switch {
	case env.Get("LAM_RUNTIME_DIR") != "":
		d.Runtime = env.Get("LAM_RUNTIME_DIR")
	case env.Get("XDG_RUNTIME_DIR") != "":
		d.Runtime = filepath.Join(env.Get("XDG_RUNTIME_DIR"), "lam")
	case env.UID == 0:
		d.Runtime = "/run/lam"
	default:
		d.Runtime = filepath.Join(env.Temp, "lam-"+strconv.Itoa(env.UID))
	}
	if !filepath.IsAbs(d.Runtime) {
		return Dirs{}, fmt.Errorf("runtime directory %q: not an absolute path (set LAM_RUNTIME_DIR)", d.Runtime)
	}
	d.Runtime = filepath.Clean(d.Runtime)
	switch {
	case env.Get("LAM_STATE_DIR") != "":
		d.State = env.Get("LAM_STATE_DIR")
	case env.UID == 0:
		d.State = "/var/lib/lam"
	case env.Get("XDG_STATE_HOME") != "":
		d.State = filepath.Join(env.Get("XDG_STATE_HOME"), "lam")
	case env.Get("HOME") != "":
		d.State = filepath.Join(env.Get("HOME"), ".local/state/lam")
	default:
		d.State = filepath.Join(d.Runtime, "state")
	}
	if !filepath.IsAbs(d.State) {
		return Dirs{}, fmt.Errorf("state directory %q: not an absolute path (set LAM_STATE_DIR)", d.State)
	}
	d.State = filepath.Clean(d.State)
	return d, nil
}

// Local returns d with the state directory that a local cluster uses. Unless
// LAM_STATE_DIR names one, clusters with different runtime directories get
// different state directories, STATE/local-HASH, so that any number of them
// can run side by side. They are kept on disk, not beneath the runtime
// directory, because that is often a file system in memory.
func (d Dirs) Local(env Env) Dirs {
	if env.Get("LAM_STATE_DIR") != "" {
		return d
	}
	sum := sha256.Sum256([]byte(d.Runtime))
	d.State = filepath.Join(d.State, "local-"+hex.EncodeToString(sum[:4]))
	return d
}

// ClusterFile describes a local cluster (local.Cluster, JSON).
func (d Dirs) ClusterFile() string { return filepath.Join(d.Runtime, "cluster.json") }

// ClusterSocket is the control socket of a local cluster's holder.
func (d Dirs) ClusterSocket() string { return filepath.Join(d.Runtime, "cluster.sock") }

// ClusterLock is locked (flock(2)) for as long as the holder lives.
func (d Dirs) ClusterLock() string { return filepath.Join(d.Runtime, "cluster.lock") }

// HolderLog is the log of a local cluster's holder.
func (d Dirs) HolderLog() string { return filepath.Join(d.Runtime, "holder.log") }

// Clients is the directory of the files of mpirun.
func (d Dirs) Clients() string { return filepath.Join(d.Runtime, "clients") }

// Node is the runtime directory of a node.
func (d Dirs) Node(n job.NodeID) string { return filepath.Join(d.Runtime, string(n)) }

// NodeSocket is the control socket of the node's lamd.
func (d Dirs) NodeSocket(n job.NodeID) string { return filepath.Join(d.Node(n), control.Socket) }

// NodeLog is where the node's lamd writes.
func (d Dirs) NodeLog(n job.NodeID) string { return filepath.Join(d.Node(n), "lamd.log") }

// NodeTmp is $TMPDIR of the node's daemons; pods get their own beneath it.
func (d Dirs) NodeTmp(n job.NodeID) string { return filepath.Join(d.Node(n), "tmp") }

// Pods is the directory that holds one directory per job on this node.
func (d Dirs) Pods(n job.NodeID) string { return filepath.Join(d.Node(n), "pods") }

// Pod is the runtime directory of the pod of a job on a node.
func (d Dirs) Pod(n job.NodeID, id job.ID) string { return filepath.Join(d.Pods(n), id.String()) }

// PodSocket is the control socket of a pod's supervisor.
func (d Dirs) PodSocket(n job.NodeID, id job.ID) string {
	return filepath.Join(d.Pod(n, id), podapi.Socket)
}

// NodeState is the state directory of a node.
func (d Dirs) NodeState(n job.NodeID) string { return filepath.Join(d.State, string(n)) }

// Raft is the directory of the node's replica of the log.
func (d Dirs) Raft(n job.NodeID) string { return filepath.Join(d.NodeState(n), "raft") }

// JobState is the directory of a job's images on a node.
func (d Dirs) JobState(n job.NodeID, id job.ID) string {
	return filepath.Join(d.NodeState(n), "jobs", id.String())
}

// Nodes lists the nodes that have a lamd socket beneath Runtime, in the order
// of their names. The sockets may be dead.
func (d Dirs) Nodes() []job.NodeID {
	found, err := filepath.Glob(filepath.Join(d.Runtime, "*", control.Socket))
	if err != nil { // only for a malformed pattern: a runtime path with [
		return nil
	}
	nodes := make([]job.NodeID, 0, len(found))
	for _, f := range found {
		nodes = append(nodes, job.NodeID(filepath.Base(filepath.Dir(f))))
	}
	return nodes
}

// CheckSockets reports whether the sockets of the given nodes and their pods
// fit into MaxSocketPath.
//
// Expected errors: one that says by how much Runtime is too long and what to
// set.
func (d Dirs) CheckSockets(nodes ...job.NodeID) error {
	worst := d.ClusterSocket()
	for _, n := range nodes {
		if p := d.PodSocket(n, longestJob); len(p) > len(worst) {
			worst = p
		}
	}
	if over := len(worst) - MaxSocketPath; over > 0 {
		return fmt.Errorf("runtime directory %s: %d bytes too long for unix sockets (%d at most); set LAM_RUNTIME_DIR to a shorter one",
			d.Runtime, over, len(d.Runtime)-over)
	}
	return nil
}

// EnsurePrivate makes dir and its parents, dir itself with mode 0700, and
// refuses one that others could have prepared or can write to.
//
// Expected errors: a directory of another owner, a symbolic link, a directory
// writable by others, and those of os.MkdirAll.
func EnsurePrivate(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err == nil {
		return nil
	} else if !os.IsExist(err) {
		return err
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.IsDir():
		return fmt.Errorf("%s: not a directory", dir)
	case ok && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s: belongs to uid %d, not to you (uid %d)", dir, st.Uid, os.Geteuid())
	case fi.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s: writable by others (mode %04o); chmod 700 it", dir, fi.Mode().Perm())
	}
	return nil
}
