package lamd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/membership/tree"
	"github.com/lampause/lampause/scheduler/conduct"
)

// treeLoad is the payload of a treeOps message. What all nodes are told alike
// is in it once: the job's specification, address book, placement and record
// grow with the job, and one of each per pod would grow with its square.
type treeLoad struct {
	Common map[string]json.RawMessage     `json:"common,omitempty"` // fields of bodies
	Parts  map[job.NodeID]json.RawMessage `json:"parts"`            // lists of treePart
}

// treePart is what one node is asked for.
type treePart struct {
	Ref    conduct.Ref     `json:"ref"`
	Job    job.ID          `json:"job"`
	Kind   treeKind        `json:"kind"`
	Body   json.RawMessage `json:"body,omitempty"`
	Common []string        `json:"common,omitempty"` // fields of Body that are to be taken from the load
}

// commonMin is the size of the smallest field, in bytes of JSON, that is worth
// being told only once.
const commonMin = 32

// packAsks makes the payload out of asks, of which there is at least one.
func packAsks(asks []treeAsk) (json.RawMessage, error) {
	load := treeLoad{Parts: map[job.NodeID]json.RawMessage{}}
	parts := map[job.NodeID][]treePart{}
	for _, a := range asks {
		fields, err := fieldsOf(a.body)
		if err != nil {
			return nil, err
		}
		if load.Common == nil {
			load.Common = maps.Clone(fields)
			maps.DeleteFunc(load.Common, func(_ string, v json.RawMessage) bool { return len(v) < commonMin })
		}
		p := treePart{Ref: a.ref, Job: a.job, Kind: a.kind}
		for name, v := range load.Common {
			if bytes.Equal(fields[name], v) {
				delete(fields, name)
				p.Common = append(p.Common, name)
			}
		}
		slices.Sort(p.Common)
		if p.Body, err = json.Marshal(fields); err != nil {
			return nil, fmt.Errorf("encode ops: %w", err)
		}
		parts[a.node] = append(parts[a.node], p)
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

// fieldsOf returns the fields of a body as they travel.
func fieldsOf(body any) (map[string]json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	b, err := json.Marshal(body)
	if err == nil {
		err = json.Unmarshal(b, &fields)
	}
	if err != nil {
		return nil, fmt.Errorf("encode ops: %w", err)
	}
	return fields, nil
}

// unpackParts returns what a node is asked for, with whole bodies; nothing when
// it only relays.
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
		if err := parts[i].complete(load.Common); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// complete fills in the fields that were told once.
func (p *treePart) complete(common map[string]json.RawMessage) error {
	if len(p.Common) == 0 {
		return nil
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(p.Body, &fields); err != nil {
		return fmt.Errorf("message of the tree: %w", err)
	}
	for _, name := range p.Common {
		v, ok := common[name]
		if !ok {
			return fmt.Errorf("message of the tree: field %q is missing", name)
		}
		fields[name] = v
	}
	b, err := json.Marshal(fields)
	if err != nil {
		return fmt.Errorf("message of the tree: %w", err)
	}
	p.Body, p.Common = b, nil
	return nil
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
