package lamd

import (
	"fmt"
	"net/http"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// admit refuses a start that comes late: its pod ended since, or a newer build
// of it is here. A positive fence would be worth nothing otherwise.
//
// Expected errors: *control.Error with status 409.
func (m *pods) admit(spec podapi.PodSpec) error {
	m.mu.Lock()
	over, newer := m.over[spec.Job], m.all[spec.Job]
	m.mu.Unlock()
	switch {
	case spec.Incarnation <= over && (newer == nil || newer.spec.Incarnation != spec.Incarnation):
		return tooLate("the pod of job %d on this node ended in incarnation %d: that of %d is not started again", spec.Job, over, spec.Incarnation)
	case newer != nil && newer.spec.Incarnation > spec.Incarnation:
		return tooLate("the pod of job %d here is of incarnation %d: %d is not started any more", spec.Job, newer.spec.Incarnation, spec.Incarnation)
	}
	return nil
}

func tooLate(format string, args ...any) error {
	return &control.Error{Message: fmt.Sprintf(format, args...), Exit: job.ExitNoNodes, Status: http.StatusConflict}
}

// endUpTo marks the builds of a job up to an incarnation as over. A pod is
// never built twice in an incarnation: whoever lost one asks for a new one.
func (m *pods) endUpTo(id job.ID, upTo job.Incarnation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over == nil {
		m.over = map[job.ID]job.Incarnation{}
	}
	m.over[id] = max(m.over[id], upTo)
}
