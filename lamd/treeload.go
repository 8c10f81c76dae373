package lamd

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/membership/tree"
	"github.com/lampause/lampause/scheduler/conduct"
)

// treeLoad is the payload of a treePhase message. What all pods are told alike
// is in it once: address book and placement grow with the job, and one of each
// per pod would grow with its square.
type treeLoad struct {
	Common treeCommon                     `json:"common"`
	Parts  map[job.NodeID]json.RawMessage `json:"parts"` // lists of treePart
}

// treeCommon is the part of a request that is the same for all pods.
type treeCommon struct {
	Lost      []job.PodIndex     `json:"lost,omitempty"`
	Book      []job.PodAddress   `json:"book,omitempty"`
	Placement []job.PodPlacement `json:"placement,omitempty"`
}

// treePart is what one node is asked for one pod of its own. With Common set,
// the fields of treeCommon are to be taken from the load.
type treePart struct {
	Ref     conduct.Ref         `json:"ref"`
	Job     job.ID              `json:"job"`
	Request podapi.PhaseRequest `json:"request"`
	Common  bool                `json:"common,omitempty"`
}

func commonOf(r podapi.PhaseRequest) treeCommon { return treeCommon{r.Lost, r.Book, r.Placement} }

func (c treeCommon) equal(o treeCommon) bool {
	same := func(a, b job.PodPlacement) bool {
		return a.Pod == b.Pod && a.Node == b.Node && slices.Equal(a.Ranks, b.Ranks)
	}
	return slices.Equal(c.Lost, o.Lost) && slices.Equal(c.Book, o.Book) && slices.EqualFunc(c.Placement, o.Placement, same)
}

// packCalls makes the payload out of calls, of which there is at least one.
func packCalls(calls []conduct.Call) (json.RawMessage, error) {
	load := treeLoad{Common: commonOf(calls[0].Request), Parts: map[job.NodeID]json.RawMessage{}}
	parts := map[job.NodeID][]treePart{}
	for _, c := range calls {
		p := treePart{Ref: c.Ref, Job: c.Job, Request: c.Request}
		if commonOf(c.Request).equal(load.Common) {
			p.Common = true
			p.Request.Lost, p.Request.Book, p.Request.Placement = nil, nil, nil
		}
		parts[c.Node] = append(parts[c.Node], p)
	}
	for node, of := range parts {
		b, err := json.Marshal(of)
		if err != nil {
			return nil, fmt.Errorf("encode ops: %w", err)
		}
		load.Parts[node] = b
	}
	return json.Marshal(load)
}

// unpackParts returns what a node is asked for; nothing when it only relays.
func unpackParts(payload json.RawMessage, node job.NodeID) ([]treePart, error) {
	var load treeLoad
	if err := json.Unmarshal(payload, &load); err != nil {
		return nil, fmt.Errorf("message of the tree: %w", err)
	}
	mine, ok := load.Parts[node]
	if !ok {
		return nil, nil
	}
	var parts []treePart
	if err := json.Unmarshal(mine, &parts); err != nil {
		return nil, fmt.Errorf("message of the tree: %w", err)
	}
	for i := range parts {
		if r := &parts[i].Request; parts[i].Common {
			r.Lost, r.Book, r.Placement = load.Common.Lost, load.Common.Book, load.Common.Placement
		}
	}
	return parts, nil
}

// prune keeps the parts of the nodes in a message's interval.
func prune(m tree.Message) (json.RawMessage, error) {
	var load treeLoad
	if err := json.Unmarshal(m.Payload, &load); err != nil {
		return nil, fmt.Errorf("message of the tree: %w", err)
	}
	all := load.Parts
	load.Parts = make(map[job.NodeID]json.RawMessage, m.Hi-m.Lo)
	root := max(slices.Index(m.View.Nodes, m.Root), 0)
	for i := m.Lo; i < m.Hi; i++ {
		n := m.View.Nodes[(root+i)%len(m.View.Nodes)]
		if part, ok := all[n]; ok {
			load.Parts[n] = part
		}
	}
	return json.Marshal(load)
}
