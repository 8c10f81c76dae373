package lamd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// Bounds of work on local pods.
const (
	supervisorUp  = 20 * time.Second // from fork to the first answer
	podGone       = 10 * time.Second // from kill to the last process gone
	startMax      = supervisorUp + 2*podGone
	killMax       = supervisorUp + podGone // a start under way is waited for
	pollPod       = 5 * time.Millisecond
	specFile      = "spec.json"
	statusTimeout = 5 * time.Second
)

// podStarter forks the supervisor of the pod directory dir, detached: it
// outlives this daemon.
type podStarter interface {
	Start(ctx context.Context, dir string) error
}

// podLinker gives a pod its network link.
type podLinker interface {
	// Attach makes the link of pod self and moves it into the network
	// namespace of process pid; name is what it is called in there.
	Attach(ctx context.Context, pid int, id job.ID, self job.PodAddress) (name string, err error)
}

// pods manages the supervisors of this node. Safe for concurrent use.
type pods struct {
	dir     string
	starter podStarter
	linker  podLinker
	log     zerolog.Logger
	onUp    func(*localPod) // called once per pod that is up, also when adopted

	// busy is held, per job, by whoever starts, meets or ends its pod: a
	// repeated start must not build a second one, and an end must not be
	// reported while one is being built.
	busy keyLock[job.ID]

	mu  sync.Mutex // guards all below
	all map[job.ID]*localPod
	// over holds the incarnation up to which pods of a job ended here: a start
	// that comes late must not bring one back.
	over map[job.ID]job.Incarnation
}

// localPod is a supervisor of this node. Its fields but procs do not change
// once it is in the manager.
type localPod struct {
	job    job.ID
	dir    string
	spec   podapi.PodSpec
	procs  []process // supervisor, pod-init; empty when not known. Guarded by pods.busy
	client *http.Client
	done   context.Context //nolint:containedctx // ends when the pod was taken out of the manager
	cancel context.CancelFunc
	ending atomic.Bool // a stale pod is being ended
}

func newPods(dir string, s podStarter, l podLinker, log zerolog.Logger) *pods {
	return &pods{dir: dir, starter: s, linker: l, log: log, all: map[job.ID]*localPod{}}
}

// unixClient returns a client that sends every request to the socket path.
func unixClient(path string) *http.Client {
	d := &net.Dialer{Timeout: dialTimeout}
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", path)
		},
		MaxIdleConnsPerHost: 8,
		DisableCompression:  true,
	}}
}

// call is one request to the supervisor.
//
// Expected errors: *control.Error when it refuses; syscall.ECONNREFUSED or
// fs.ErrNotExist, wrapped, when it is gone.
func (p *localPod) call(ctx context.Context, method, path string, in, out any) error {
	if err := callJSON(ctx, p.client, method, "http://pod"+path, in, out); err != nil {
		return fmt.Errorf("pod of job %d: %w", p.job, err)
	}
	return nil
}

// get returns the pod of a job.
func (m *pods) get(id job.ID) (*localPod, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.all[id]
	return p, ok
}

// list returns the pods of this node, in no order.
func (m *pods) list() []*localPod {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*localPod, 0, len(m.all))
	for _, p := range m.all {
		out = append(out, p)
	}
	return out
}

// podDir is the runtime directory of a job's pod on this node.
func (m *pods) podDir(id job.ID) string { return filepath.Join(m.dir, id.String()) }

// start builds the pod of spec and returns when its supervisor has its link.
// An older pod of the same job on this node is ended first; the same one
// (same incarnation) is left as it is: starting is idempotent.
func (m *pods) start(ctx context.Context, spec podapi.PodSpec) error {
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	unlock, err := m.busy.lock(ctx, spec.Job)
	if err != nil {
		return fmt.Errorf("start pod of job %d: %w", spec.Job, err)
	}
	defer unlock()
	if err := m.admit(spec); err != nil {
		return err
	}
	if old, ok := m.get(spec.Job); ok {
		if old.spec.Incarnation == spec.Incarnation && old.spec.Placement.Pod == spec.Placement.Pod {
			return nil
		}
		if err := m.end(ctx, old); err != nil {
			return err
		}
	}
	dir := m.podDir(spec.Job)
	if err := writePodDir(dir, spec); err != nil {
		return fmt.Errorf("pod of job %d: %w", spec.Job, err)
	}
	p := m.open(spec.Job, dir, spec)
	if err := m.bringUp(ctx, p); err != nil {
		p.cancel()
		return errors.Join(fmt.Errorf("start pod of job %d: %w", spec.Job, err), m.endProcesses(context.WithoutCancel(ctx), p))
	}
	m.add(p)
	return nil
}

// writePodDir makes a fresh runtime directory with the pod's specification.
func writePodDir(dir string, spec podapi.PodSpec) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for _, d := range []string{dir, spec.TmpDir, spec.ImageDir} {
		if d == "" {
			continue
		}
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode pod: %w", err)
	}
	path := filepath.Join(dir, specFile)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil { // whole or not there
		return err
	}
	return os.Rename(path+".new", path)
}

func (m *pods) open(id job.ID, dir string, spec podapi.PodSpec) *localPod {
	ctx, cancel := context.WithCancel(context.Background()) // ends with the pod, not with a request
	return &localPod{job: id, dir: dir, spec: spec, client: unixClient(filepath.Join(dir, podapi.Socket)), done: ctx, cancel: cancel}
}

// bringUp forks the supervisor, waits for its answer, and gives it its link.
func (m *pods) bringUp(ctx context.Context, p *localPod) error {
	ctx, cancel := context.WithTimeout(ctx, supervisorUp)
	defer cancel()
	if err := m.starter.Start(ctx, p.dir); err != nil {
		return err
	}
	st, err := p.awaitStatus(ctx)
	p.procs = processesOf(st.SupervisorPID, st.InitPID)
	if err != nil {
		return err
	}
	self, err := ownAddress(p.spec)
	if err != nil {
		return err
	}
	name, err := m.linker.Attach(ctx, st.SupervisorPID, p.job, self)
	if err != nil {
		return fmt.Errorf("attach link: %w", err)
	}
	if err := p.call(ctx, http.MethodPost, podapi.PathLink, podapi.Link{Name: name}, nil); err != nil {
		return err
	}
	if st, err = p.awaitStatus(ctx); err != nil {
		return err
	}
	p.procs = processesOf(st.SupervisorPID, st.InitPID)
	return nil
}

// ownAddress finds the pod's own line in its address book.
func ownAddress(spec podapi.PodSpec) (job.PodAddress, error) {
	for _, a := range spec.Book {
		if a.Pod == spec.Placement.Pod {
			return a, nil
		}
	}
	return job.PodAddress{}, fmt.Errorf("pod %d: not in its own address book", spec.Placement.Pod)
}

// awaitStatus polls the supervisor until it answers.
func (p *localPod) awaitStatus(ctx context.Context) (podapi.Status, error) {
	tick := time.NewTicker(pollPod)
	defer tick.Stop()
	for {
		var st podapi.Status
		err := p.call(ctx, http.MethodGet, podapi.PathStatus, nil, &st)
		if err == nil && st.Version != podapi.Version {
			return st, fmt.Errorf("supervisor speaks protocol %d, this lamd %d", st.Version, podapi.Version)
		}
		if err == nil {
			return st, nil
		}
		select {
		case <-ctx.Done():
			return st, fmt.Errorf("supervisor did not answer (see %s): %w", filepath.Join(p.dir, "pod.log"), err)
		case <-tick.C:
		}
	}
}

// add makes a running pod known and tells onUp of it.
func (m *pods) add(p *localPod) {
	m.put(p)
	m.tellUp(p)
}

func (m *pods) put(p *localPod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all[p.job] = p
}

func (m *pods) tellUp(p *localPod) {
	if m.onUp != nil {
		m.onUp(p)
	}
}

// kill ends the pod of a job, if which is true of it, and returns when none of
// its processes is left: a positive fence. It waits for a pod that is being
// built. A job without such a pod here is fenced already.
func (m *pods) kill(ctx context.Context, id job.ID, which func(*localPod) bool) error {
	ctx, cancel := context.WithTimeout(ctx, killMax)
	defer cancel()
	unlock, err := m.busy.lock(ctx, id)
	if err != nil {
		return fmt.Errorf("kill pod of job %d: %w", id, err)
	}
	defer unlock()
	p, ok := m.get(id)
	if !ok || !which(p) {
		return nil
	}
	return m.end(ctx, p)
}

// end ends a pod and everything that it left. Precondition: its job is busy.
func (m *pods) end(ctx context.Context, p *localPod) error {
	if err := m.endProcesses(ctx, p); err != nil {
		return fmt.Errorf("pod of job %d: %w", p.job, err)
	}
	m.forget(p)
	if err := os.RemoveAll(p.dir); err != nil { // the next start tries again
		m.log.Warn().Err(err).Uint64("job", uint64(p.job)).Msg("directory of an ended pod stays")
	}
	return nil
}

// reap takes a pod whose supervisor has ended out of the manager, so that roll
// calls do not name it any more, and makes sure that its processes are gone.
// False when the supervisor lives, or that cannot be told now. The directory
// stays, for its log.
func (m *pods) reap(ctx context.Context, p *localPod) bool {
	unlock, err := m.busy.lock(ctx, p.job)
	if err != nil {
		return false
	}
	defer unlock()
	call, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	err = p.call(call, http.MethodGet, podapi.PathStatus, nil, nil)
	if err == nil || !supervisorGone(err) {
		return false
	}
	if err := m.endProcesses(ctx, p); err != nil {
		m.log.Error().Err(err).Uint64("job", uint64(p.job)).Msg("pod of a dead supervisor")
		return false
	}
	m.forget(p)
	return true
}

// forget takes a pod out of the manager.
func (m *pods) forget(p *localPod) {
	m.mu.Lock()
	if m.all[p.job] == p {
		delete(m.all, p.job)
	}
	m.mu.Unlock()
	m.endUpTo(p.job, p.spec.Incarnation)
	p.cancel()
	p.client.CloseIdleConnections()
}

// endProcesses asks the supervisor to end the pod; a supervisor that does not
// answer is killed, and its pod with it.
func (m *pods) endProcesses(ctx context.Context, p *localPod) error {
	ctx, cancel := context.WithTimeout(ctx, podGone)
	defer cancel()
	procs := p.processes(ctx)
	half, cancelHalf := context.WithTimeout(ctx, podGone/2)
	err := p.call(half, http.MethodPost, podapi.PathKill, nil, nil)
	cancelHalf()
	if err != nil {
		if len(procs) == 0 && !supervisorGone(err) {
			return fmt.Errorf("supervisor does not answer, and its process is not known: %w", err)
		}
		if !supervisorGone(err) {
			m.log.Warn().Err(err).Uint64("job", uint64(p.job)).Msg("supervisor does not end its pod; killing both")
		}
		for _, q := range procs {
			q.kill()
		}
	}
	return awaitGone(ctx, procs)
}

// supervisorGone reports whether err says that nobody serves the socket.
func supervisorGone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}
