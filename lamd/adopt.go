package lamd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// claim finds the pods that an earlier daemon of this node left, before
// anybody can ask for them: each is in the manager from now on, and busy until
// meet is called for it, once. Whether its supervisor lives is not known yet.
//
// Expected errors: those of the file system.
func (m *pods) claim(ctx context.Context) ([]claimed, error) {
	entries, err := os.ReadDir(m.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("adopt pods: %w", err)
	}
	var out []claimed
	for _, e := range entries {
		id, perr := job.ParseID(e.Name())
		if perr != nil {
			continue
		}
		unlock, err := m.busy.lock(ctx, id)
		if err != nil {
			return out, fmt.Errorf("adopt pods: %w", err)
		}
		p, err := m.known(id)
		if err != nil {
			m.log.Warn().Err(err).Uint64("job", uint64(id)).Msg("directory of a pod without a specification")
			p = m.open(id, m.podDir(id), podapi.PodSpec{})
		} else {
			m.put(p)
		}
		out = append(out, claimed{pod: p, unlock: unlock, unnamed: err != nil})
	}
	return out, nil
}

// claimed is a pod that claim found.
type claimed struct {
	pod     *localPod
	unlock  func()
	unnamed bool // nobody can tell which incarnation it was: it is only ended
}

// meet adopts a claimed pod if its supervisor answers. If not, whatever is
// left of it is ended and swept, and gone is true: no process of the pod is
// left. A pod that cannot be ended stays in the manager.
func (m *pods) meet(ctx context.Context, c claimed) (gone bool, err error) {
	defer c.unlock()
	p := c.pod
	err = errors.New("no specification")
	if !c.unnamed {
		err = p.greet(ctx)
	}
	if err == nil {
		m.tellUp(p)
		return false, nil
	}
	if ctx.Err() != nil { // this daemon ends: nothing was learnt of the pod
		return false, nil
	}
	m.log.Warn().Err(err).Uint64("job", uint64(p.job)).Msg("pod not adopted")
	if err := m.end(ctx, p); err != nil {
		if !c.unnamed {
			m.tellUp(p)
		}
		return false, fmt.Errorf("end a pod that does not answer: %w", err)
	}
	return !c.unnamed, nil
}

// known reads the specification of a pod from its directory.
func (m *pods) known(id job.ID) (*localPod, error) {
	dir := m.podDir(id)
	spec, err := readSpec(dir)
	if err != nil {
		return nil, err
	}
	return m.open(id, dir, spec), nil
}

// readSpec reads what writePodDir wrote.
func readSpec(dir string) (podapi.PodSpec, error) {
	var spec podapi.PodSpec
	b, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return spec, err
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		return spec, fmt.Errorf("%s: %w", specFile, err)
	}
	return spec, nil
}

// greet asks a supervisor who it is.
func (p *localPod) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var st podapi.Status
	if err := p.call(ctx, http.MethodGet, podapi.PathStatus, nil, &st); err != nil {
		return err
	}
	p.procs = processesOf(st.SupervisorPID, st.InitPID)
	if st.Version != podapi.Version {
		return fmt.Errorf("supervisor speaks protocol %d, this lamd %d", st.Version, podapi.Version)
	}
	return nil
}
