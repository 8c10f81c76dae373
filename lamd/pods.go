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
	"strconv"
	"sync"
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

	mu  sync.Mutex // guards all below
	all map[job.ID]*localPod
}

// localPod is a running supervisor. Its fields do not change once it is in the
// manager.
type localPod struct {
	job    job.ID
	dir    string
	spec   podapi.PodSpec
	pids   []int // supervisor, pod-init
	client *http.Client
	done   context.Context // ends when the pod was taken out of the manager
	cancel context.CancelFunc
	ending chan struct{} // capacity 1: whoever fills it ends the pod
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
	if old, ok := m.get(spec.Job); ok {
		if old.spec.Incarnation == spec.Incarnation && old.spec.Placement.Pod == spec.Placement.Pod {
			return nil
		}
		if err := m.kill(ctx, spec.Job); err != nil {
			return err
		}
	}
	dir := m.podDir(spec.Job)
	if err := writePodDir(dir, spec); err != nil {
		return fmt.Errorf("pod of job %d: %w", spec.Job, err)
	}
	p := m.open(spec.Job, dir, spec)
	err := m.bringUp(ctx, p)
	if err != nil {
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
	return os.WriteFile(filepath.Join(dir, specFile), b, 0o600)
}

func (m *pods) open(id job.ID, dir string, spec podapi.PodSpec) *localPod {
	ctx, cancel := context.WithCancel(context.Background()) // ends with the pod, not with a request
	return &localPod{job: id, dir: dir, spec: spec, client: unixClient(filepath.Join(dir, podapi.Socket)), done: ctx, cancel: cancel, ending: make(chan struct{}, 1)}
}

// bringUp forks the supervisor, waits for its answer, and gives it its link.
func (m *pods) bringUp(ctx context.Context, p *localPod) error {
	ctx, cancel := context.WithTimeout(ctx, supervisorUp)
	defer cancel()
	if err := m.starter.Start(ctx, p.dir); err != nil {
		return err
	}
	st, err := p.awaitStatus(ctx)
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
	p.pids = []int{st.SupervisorPID}
	if err := p.call(ctx, http.MethodPost, podapi.PathLink, podapi.Link{Name: name}, nil); err != nil {
		return err
	}
	if st, err = p.awaitStatus(ctx); err != nil {
		return err
	}
	p.pids = []int{st.SupervisorPID, st.InitPID}
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
	m.mu.Lock()
	m.all[p.job] = p
	m.mu.Unlock()
	if m.onUp != nil {
		m.onUp(p)
	}
}

// adopt finds the supervisors that an earlier daemon of this node left
// running. A directory without a living supervisor is what a dead pod left:
// those are returned in gone, with their processes ended.
func (m *pods) adopt(ctx context.Context) (gone []*localPod, err error) {
	entries, err := os.ReadDir(m.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("adopt pods: %w", err)
	}
	for _, e := range entries {
		id, perr := job.ParseID(e.Name())
		if perr != nil {
			continue
		}
		p, err := m.known(id)
		if err != nil {
			m.log.Warn().Err(err).Uint64("job", uint64(id)).Msg("directory of a pod without a specification")
			continue
		}
		if err := p.meet(ctx); err != nil {
			m.log.Warn().Err(err).Uint64("job", uint64(id)).Msg("pod not adopted")
			gone = append(gone, p)
			continue
		}
		m.add(p)
	}
	return gone, nil
}

// known reads the specification of a pod from its directory.
func (m *pods) known(id job.ID) (*localPod, error) {
	dir := m.podDir(id)
	b, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return nil, err
	}
	var spec podapi.PodSpec
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, fmt.Errorf("%s: %w", specFile, err)
	}
	return m.open(id, dir, spec), nil
}

// meet asks a supervisor who it is.
func (p *localPod) meet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var st podapi.Status
	if err := p.call(ctx, http.MethodGet, podapi.PathStatus, nil, &st); err != nil {
		return err
	}
	if st.Version != podapi.Version {
		return fmt.Errorf("supervisor speaks protocol %d, this lamd %d", st.Version, podapi.Version)
	}
	p.pids = []int{st.SupervisorPID, st.InitPID}
	return nil
}

// kill ends the pod of a job and returns when none of its processes is left:
// a positive fence. A job without a pod here is fenced already.
func (m *pods) kill(ctx context.Context, id job.ID) error {
	p, ok := m.get(id)
	if !ok {
		return nil
	}
	select {
	case p.ending <- struct{}{}:
		defer func() { <-p.ending }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.done.Err() != nil { // somebody else has ended it
		return nil
	}
	if err := m.endProcesses(ctx, p); err != nil {
		return err
	}
	m.forget(p)
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("pod of job %d: %w", id, err)
	}
	return nil
}

// forget takes a pod out of the manager.
func (m *pods) forget(p *localPod) {
	m.mu.Lock()
	if m.all[p.job] == p {
		delete(m.all, p.job)
	}
	m.mu.Unlock()
	p.cancel()
	p.client.CloseIdleConnections()
}

// endProcesses asks the supervisor to end the pod; a supervisor that does not
// answer is killed, and its pod with it.
func (m *pods) endProcesses(ctx context.Context, p *localPod) error {
	ctx, cancel := context.WithTimeout(ctx, podGone)
	defer cancel()
	half, cancelHalf := context.WithTimeout(ctx, podGone/2)
	err := p.call(half, http.MethodPost, podapi.PathKill, nil, nil)
	cancelHalf()
	if err != nil {
		if !supervisorGone(err) {
			m.log.Warn().Err(err).Uint64("job", uint64(p.job)).Msg("supervisor does not end its pod; killing both")
		}
		for _, pid := range p.pids {
			if pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is what we want
			}
		}
	}
	return awaitGone(ctx, p.pids)
}

// supervisorGone reports whether err says that nobody serves the socket.
func supervisorGone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// awaitGone waits until every pid is gone or a zombie. A zombie pod-init has
// seen the end of every process of its pid namespace (pid_namespaces(7)).
func awaitGone(ctx context.Context, pids []int) error {
	tick := time.NewTicker(pollPod)
	defer tick.Stop()
	for _, pid := range pids {
		for pid > 1 && alive(pid) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("process %d of the pod does not end: %w", pid, ctx.Err())
			case <-tick.C:
			}
		}
	}
	return nil
}

// alive reports whether pid exists and is no zombie.
func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] == ')' {
			return i+2 < len(b) && b[i+2] != 'Z' && b[i+2] != 'X'
		}
	}
	return false
}
